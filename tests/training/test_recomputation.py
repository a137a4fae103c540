"""Networks that compute again what they did not keep learn the same, bit by bit, and keep less."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import make_pictures, silent, small_recipe
from test_exactness import differences
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from candid.checkpoint import RunFolder
from candid.errors import InputError
from candid.models import build_model, find_variant
from candid.models.auxiliary import split_output
from candid.training.recomputation import recompute_segments
from candid.training.run import resume_run, train_run
from candid.training.setup import choose_memory, describe_dense_blocks
from candid.training.stopping import Stopped

KEPT = {  # of each family one, with the largest share that it may keep of what the plain network keeps
    "alexnet": 0.6,  # its linear layers are not computed again, and at 64 px they keep as much as the rest
    "vgg16-bn-cifar": 0.2,
    "vgg11-notes-small": 0.28,
    "nin": 0.23,
    "dsn": 0.43,  # the companions read the maps that NiN can forget
    "all-cnn-c": 0.21,
    "googlenet": 0.2,
    "googlenet-bn": 0.22,
    "resnet18": 0.21,
    "stochastic-depth-resnet110": 0.4,
    "preact-resnet110": 0.26,
    "wrn-16-4": 0.27,
    "mobilenetv2-0.35": 0.08,
    "shufflenetv2-0.5": 0.22,
    "ghostnet-0.5": 0.12,
    "highway19": 0.06,
    "fractalnet-small": 0.06,
    "lenet-bn": 1.0,  # made of single layers only
}


def build(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A plain network and the same one with recomputation, in float64, and images [4, 3, H, W]."""
    torch.manual_seed(0)
    side = min(find_variant(name).image_size, 64)
    dropout = 0.3 if find_variant(name).has_dropout else None
    plain = build_model(name, num_classes=5, image_size=side, dropout=dropout).double()
    frugal = copy.deepcopy(plain)
    recompute_segments(frugal)
    return plain, frugal, torch.rand(4, 3, side, side, dtype=torch.float64)


def backward(model: nn.Module, images: Tensor, seed: int) -> tuple[Tensor, int]:
    """The loss, and the bytes that autograd kept for the backward pass beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    torch.manual_seed(seed)
    labels = torch.arange(4) % 5
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = split_output(model(images))
        loss = sum((cross_entropy(logits, labels) for logits in output.auxiliary), cross_entropy(output.logits, labels))
    num_bytes = sum(storage.nbytes() for storage in kept.values())
    kept.clear()
    loss.backward()
    return loss.detach(), num_bytes


def assert_same_training(plain: nn.Module, frugal: nn.Module, images: Tensor, num_steps: int = 3) -> None:
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for model in (plain, frugal)]
    for step in range(num_steps):
        losses = [backward(model, images, step)[0] for model in (plain, frugal)]
        assert torch.equal(losses[0], losses[1])
        for ours, theirs in zip(frugal.parameters(), plain.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            assert ours.grad is None or theirs.grad is None or torch.equal(ours.grad, theirs.grad)
        if step % 2:  # else the gradients of two passes add up
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    theirs = plain.state_dict()
    for name, value in frugal.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("name", KEPT)
def test_loss_gradients_and_statistics_are_those_of_the_plain_network(name: str):
    assert_same_training(*build(name))


@pytest.mark.parametrize("name", KEPT)
def test_less_is_kept(name: str):
    plain, frugal, images = build(name)
    share = backward(frugal, images, 0)[1] / backward(plain, images, 0)[1]
    assert share <= KEPT[name]


@pytest.mark.parametrize("name", ["resnet18", "vgg16-bn-cifar", "googlenet-bn"])
def test_frozen_layers_and_averages_of_all_batches_stay_exact(name: str):
    plain, frugal, images = build(name)
    for model in (plain, frugal):
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for number, norm in enumerate(norms):
            norm.momentum = None if number % 2 else 0.1
            norm.train(number >= len(norms) // 2)
            norm.requires_grad_(number >= len(norms) // 2)
    assert_same_training(plain, frugal, images)


def test_a_copy_computes_with_its_own_weights():
    plain, frugal, images = build("wrn-16-4")
    assert_same_training(plain, copy.deepcopy(frugal), images)
    assert all(parameter.grad is None for parameter in frugal.parameters())


def test_without_gradients_nothing_is_recomputed_and_the_network_is_the_same():
    plain, frugal, images = build("vgg16-bn-cifar")
    assert type(frugal) is type(plain)
    assert list(frugal.state_dict()) == list(plain.state_dict())
    plain.eval()
    frugal.eval()
    with torch.inference_mode():
        assert torch.equal(frugal(images), plain(images))


@pytest.mark.parametrize(
    "changes",
    [
        {"model__name": "resnet20-cifar", "training__ema_decay": 0.9, "training__micro_batch_size": 6},
        {"model__name": "mobilenetv2-0.35", "model__dropout": 0.3, "training__precision": "bf16"},
    ],
    ids=["average and micro-batches", "bf16 and dropout"],
)
def test_a_run_is_the_same_and_may_change_in_the_middle(changes: dict[str, object], tmp_path: Path):
    pictures = make_pictures(tmp_path / "pictures", per_class=12)
    recipe = small_recipe(pictures, training__epochs=2, **changes)
    plain = train_run(recipe, tmp_path / "plain", reporter=silent()).path
    frugal = recipe.replace({"training.memory": "recompute"})
    assert without_recipe(differences(train_run(frugal, tmp_path / "frugal", reporter=silent()).path, plain)) == []
    with pytest.raises(Stopped):
        train_run(recipe, tmp_path / "both", last_step=2, reporter=silent())
    resume_run(tmp_path / "both", frugal, {"training.memory"}, reporter=silent())
    assert without_recipe(differences(tmp_path / "both", plain)) == []


def without_recipe(names: list[str]) -> list[str]:
    """The files that differ, without those that tell of training.memory."""
    return [name for name in names if name != "recipe" and not name.endswith("state")]


def test_compiling_and_recomputing_are_refused_together():
    recipe = small_recipe(Path("unused"), training__memory="recompute", training__compile=True)
    with pytest.raises(InputError) as caught:
        choose_memory(recipe, torch.device("cpu"))
    assert str(caught.value) == (
        "training.memory is 'recompute' and training.compile is true, which torch cannot do together for lenet-relu; "
        "expected one of them. Leave --compile out, or set training.memory to plain."
    )


def test_sharing_needs_a_dense_block(pictures: Path, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        train_run(small_recipe(pictures, training__memory="shared"), tmp_path / "run", reporter=silent())
    assert str(caught.value) == (
        "training.memory is 'shared', but lenet-relu has no dense block whose maps could be shared; it must be "
        "'auto', 'plain' or 'recompute'. To need less memory, use recompute."
    )
    assert not (tmp_path / "run").exists()


def test_a_dense_block_shares_its_maps_unless_it_is_compiled_or_told_otherwise():
    recipe = small_recipe(Path("unused"), model__name="densenet-cifar")
    cpu = torch.device("cpu")
    assert choose_memory(recipe, cpu) == "shared"
    assert choose_memory(recipe.replace({"training.compile": True}), cpu) == "plain"
    assert choose_memory(recipe.replace({"training.memory": "recompute"}), cpu) == "recompute"
    assert describe_dense_blocks(recipe.replace({"training.memory": "shared"}), cpu) == "shared, compiled pieces"
    assert describe_dense_blocks(recipe.replace({"training.memory": "plain"}), cpu) == "plain"
    assert describe_dense_blocks(recipe.replace({"model.name": "resnet20-cifar"}), cpu) is None


def test_a_densenet_goes_on_in_another_way_of_remembering(pictures: Path, tmp_path: Path):
    recipe = small_recipe(
        pictures, model__name="densenet-bc-40-12", data__image_size=16, training__epochs=1, training__memory="shared"
    )
    with pytest.raises(Stopped):
        train_run(recipe, tmp_path / "run", last_step=2, reporter=silent())
    resume_run(
        tmp_path / "run", recipe.replace({"training.memory": "recompute"}), {"training.memory"}, reporter=silent()
    )
    assert RunFolder.open(tmp_path / "run").recipe.training.memory == "recompute"
    assert RunFolder.open(tmp_path / "run").is_finished
