import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from foreign import (
    GpleissDenseNet,
    KuangliuBlock,
    KuangliuDenseNet,
    KuangliuPreActBlock,
    KuangliuResNet18,
    KuangliuVGG16,
    WeiaicunzaiBottleneck,
    WeiaicunzaiResNet,
    names_of_weiaicunzai_densenet121,
    shapes_of_kuangliu_mobilenetv2,
)
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.errors import CheckpointError
from candid.models import REGISTRY, build_model
from candid.models.vgg import VGG, VGGConfig
from candid.weights import Loaded, layouts, load_weights
from candid.weights.layouts import LOOKALIKES, TORCHVISION
from candid.weights.names import bare

State = dict[str, Tensor]
UNSEEN = "strides, poolings and activations cannot be seen in a file. Measure the accuracy before you rely on it."


def randomise(model: nn.Module) -> nn.Module:
    """Moves all that starts at 0 or 1, so that no value can stand in for another."""
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return model


def load(
    content: object, path: Path, model: str = "resnet20-cifar", num_classes: int = 10, **options: object
) -> Loaded:
    torch.save(content, path)
    return load_weights(path, build_model(model, num_classes), model, **options)


def refusal(
    content: object, path: Path, model: str = "resnet20-cifar", num_classes: int = 10, **options: object
) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(content, path, model, num_classes, **options)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.fixture(scope="module")
def resnet20() -> State:
    torch.manual_seed(0)
    return randomise(build_model("resnet20-cifar", 10)).state_dict()


def assert_same_state(loaded: Loaded, state: State) -> None:
    assert loaded.state.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state.items())


@pytest.mark.parametrize(
    ("make", "model", "num_classes", "library"),
    [
        (lambda: KuangliuResNet18(KuangliuBlock), "resnet18-cifar", 10, "kuangliu/pytorch-cifar"),
        (lambda: KuangliuResNet18(KuangliuPreActBlock), "preact-resnet18-cifar", 10, "kuangliu/pytorch-cifar"),
        (KuangliuVGG16, "vgg16-bn-cifar", 10, "kuangliu/pytorch-cifar"),
        (KuangliuDenseNet, "densenet-cifar", 10, "kuangliu/pytorch-cifar"),
        (WeiaicunzaiResNet, "resnet18-cifar", 100, "weiaicunzai/pytorch-cifar100"),
        pytest.param(
            lambda: WeiaicunzaiResNet((3, 4, 6, 3), WeiaicunzaiBottleneck, 7),
            "resnet50-cifar",
            7,
            "weiaicunzai/pytorch-cifar100",
            marks=pytest.mark.long,
        ),
        (GpleissDenseNet, "densenet-bc-40-12", 10, "gpleiss/efficient_densenet_pytorch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_gives_the_outputs_of_the_network_that_it_is_of(
    path: Path, make: Callable[[], nn.Module], model: str, num_classes: int, library: str
) -> None:
    torch.manual_seed(0)
    theirs = randomise(make().double().eval())
    torch.save(theirs.state_dict(), path)
    ours = build_model(model, num_classes).double().eval()
    loaded = load_weights(path, ours, model)
    ours.load_state_dict(loaded.state)
    side = 32 if model == "vgg16-bn-cifar" else 8
    images = torch.rand(2, 3, side, side, dtype=torch.float64)
    with torch.no_grad():
        found, expected = ours(images), theirs(images)
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max()  # float64 leaves only rounding
    text = f"weights.pth: {len(ours.state_dict())} tensors for {model}, found by the names of {library}."
    if model == "densenet-cifar":
        text += f"\nChannels were put in our order: {library} has the newest maps of a block in front."
    assert loaded.report.text() == text


def test_timms_vgg_has_convolutions_for_linear_layers(path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.models.vgg.VGG(cfg=[8, "M"] * 5, num_classes=3).eval()
    torch.save(theirs.state_dict(), path)
    ours = VGG(VGGConfig((1,) * 5, widths=(8,) * 5), 3).eval()
    loaded = load_weights(path, ours, "vgg11")
    ours.load_state_dict(loaded.state)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), rtol=1e-4, atol=1e-6)  # fp32, in another order
    assert loaded.report.text() == "weights.pth: 16 tensors for vgg11, found by the names of timm."


def test_channels_in_the_wrong_order_would_give_other_outputs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rearrangement is for: without it every shape is right and the network is another."""
    monkeypatch.setattr(layouts, "oldest_maps_first", layouts.as_it_is)
    torch.manual_seed(0)
    theirs, ours = randomise(KuangliuDenseNet().eval()), build_model("densenet-cifar", 10).eval()
    torch.save(theirs.state_dict(), path)
    ours.load_state_dict(load_weights(path, ours, "densenet-cifar").state)
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert (ours(images) - theirs(images)).abs().max() > 1e-2 * theirs(images).abs().max()


def test_densenet_of_weiaicunzai_is_refused_although_every_shape_is_right(path: Path) -> None:
    with torch.device("meta"):
        shapes = build_model("densenet121-cifar", 100).state_dict()
    state = names_of_weiaicunzai_densenet121({name: torch.zeros(()).expand(v.shape) for name, v in shapes.items()})
    assert refusal(state, path, "densenet121-cifar", 100) == (
        f"{path} holds the weights of the DenseNet of weiaicunzai/pytorch-cifar100, which candid does not have: its "
        "transitions have no ReLU between normalisation and convolution, where DenseNet has one. Loaded into another "
        "network they would give other outputs; train that one."
    )


def test_mobilenetv2_of_kuangliu_is_refused(path: Path) -> None:
    state = {f"module.{name}": torch.zeros(()).expand(s) for name, s in shapes_of_kuangliu_mobilenetv2().items()}
    assert refusal({"net": state}, path, "mobilenetv2-1.0") == (
        f"{path} holds the weights of the MobileNetV2 of kuangliu/pytorch-cifar, which candid does not have: it has "
        "1x1 convolutions beside blocks whose widths differ at stride 1, where MobileNetV2 has nothing. Loaded into "
        "another network they would give other outputs; train that one."
    )


def test_lookalikes_are_known_by_names_that_no_other_network_has() -> None:
    for name in ("layers.0.conv1.weight", "layer1.0.shortcut.0.weight", "features.transition1.conv.weight"):
        assert not any(re.fullmatch(lookalike.sign, name) for lookalike in LOOKALIKES)


def test_dotted_names_of_torchvisions_densenet_files(path: Path) -> None:
    ours = build_model("densenet121", 2)
    names = {name: TORCHVISION["densenet"](name) for name in ours.state_dict()}
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", names[n]): v for n, v in ours.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    old = {name: value for name, value in old.items() if "num_batches" not in name}  # PyTorch had none then
    loaded = load(old, path, "densenet121", 2)
    assert_same_state(loaded, ours.state_dict())
    assert loaded.report.text() == (
        "weights.pth: 606 tensors for densenet121, found by the names of torchvision with dots in them, as of 2017."
    )


def test_auxiliary_classifiers_may_be_there_or_not(path: Path) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.googlenet(num_classes=5, init_weights=False).state_dict()
    state = {name: torch.zeros(v.shape, dtype=v.dtype) for name, v in theirs.items()}
    loaded = load(state, path, "googlenet-bn", 5)
    assert loaded.report.notes == ()
    without = {name: value for name, value in state.items() if not name.startswith("aux")}
    loaded = load(without, path, "googlenet-bn", 5)
    num_missing = len(state) - len(without)
    assert loaded.report.text() == (
        f"weights.pth: {len(without)} tensors for googlenet-bn, found by the names of torchvision.\n"
        f"Begun anew: {num_missing} tensors of auxiliary classifiers, which only training uses."
    )
    model = build_model("googlenet-bn", 5)
    model.load_state_dict(loaded.state)


@pytest.mark.parametrize(
    ("rename", "removed"),
    [
        (lambda name: f"module.{name}", "module"),
        (lambda name: f"_orig_mod.{name}", "_orig_mod"),
        (lambda name: f"module._orig_mod.{name}", "module, _orig_mod"),
        (lambda name: f"_orig_mod.module.{name}", "_orig_mod, module"),
        (lambda name: f"model.{name}", "model"),
        (lambda name: f"model.backbone.module.{name}", "model, backbone, module"),
        (
            lambda name: name.replace("stages.", "stages.module.").replace(".conv1", "._orig_mod.conv1"),
            "module, _orig_mod",
        ),
        (lambda name: f"resnet.{name}", "resnet"),
        (lambda name: f"module.student.{name}", "module, student"),
    ],
)
def test_what_wrappers_add_to_names_is_removed(path: Path, resnet20: State, rename, removed: str) -> None:
    loaded = load({rename(name): value for name, value in resnet20.items()}, path)
    assert_same_state(loaded, resnet20)
    assert loaded.report.text() == (
        "weights.pth: 116 tensors for resnet20-cifar, found by the names of candid.\n"
        f"Removed from the names: {removed}."
    )


def test_checkpoints_of_training_programs(path: Path, resnet20: State) -> None:
    wrapped = {f"module.{name}": value for name, value in resnet20.items()}
    loaded = load({"epoch": 164, "arch": "resnet20", "state_dict": wrapped, "best_prec1": 91.7}, path)
    assert_same_state(loaded, resnet20)
    assert loaded.report.text() == (
        "weights.pth: 116 tensors for resnet20-cifar, found by the names of candid.\n"
        "It says: epoch 164, arch resnet20, best_prec1 91.7.\n"
        "Taken from its entry state_dict.\n"
        "Removed from the names: module."
    )
    assert loaded.report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_average_is_taken_where_there_is_one_that_fits(path: Path, resnet20: State) -> None:
    other = {name: value + 1 for name, value in resnet20.items()}
    average = {"n_averaged": torch.tensor(9), **{f"module.{name}": value for name, value in resnet20.items()}}
    loaded = load({"model": other, "model_ema": average}, path)
    assert_same_state(loaded, resnet20)
    assert loaded.report.text() == (
        "weights.pth: 116 tensors for resnet20-cifar, found by the names of candid.\n"
        "Taken from its entry model_ema, an average over steps; it also has model.\n"
        "Removed from the names: module.\n"
        "Left out: 1 tensor (n_averaged), the number of averaged weights."
    )
    parameters = {name: value for name, value in other.items() if "running" not in name}
    loaded = load({"model": resnet20, "ema": parameters}, path)  # an average without running statistics
    assert_same_state(loaded, resnet20)
    assert loaded.report.entry == "model"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_formats_are_converted_and_that_is_said(path: Path, resnet20: State, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in resnet20.items()}
    loaded = load(state, path)
    assert all(loaded.state[name].dtype == value.dtype for name, value in resnet20.items())
    assert torch.equal(loaded.state["head.weight"], state["head.weight"].float())
    assert loaded.report.notes == (f"Converted to float32: 97 tensors of {str(dtype).removeprefix('torch.')}.",)


def test_profilers_counters_are_left_out(path: Path, resnet20: State) -> None:
    loaded = load({**resnet20, "total_ops": torch.zeros(1), "head.total_params": torch.zeros(1)}, path)
    assert_same_state(loaded, resnet20)
    assert loaded.report.notes == ("Left out: 2 tensors (total_ops), counters of a profiler.",)


def test_weights_do_not_hang_on_the_file(path: Path, resnet20: State) -> None:
    loaded = load(resnet20, path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same_state(loaded, resnet20)


def test_a_head_for_other_classes_is_refused_unless_a_new_one_is_asked_for(path: Path, resnet20: State) -> None:
    assert refusal(resnet20, path, num_classes=3) == (
        f"{path} has a head for 10 classes and resnet20-cifar was to have 3; they must be equal. "
        "Use data or class names with 10 classes, or keep all but the head with --new-head."
    )
    torch.manual_seed(1)
    model = build_model("resnet20-cifar", 3)
    loaded = load_weights(path, model, "resnet20-cifar", new_head=True)
    assert torch.equal(loaded.state["head.weight"], model.head.weight)
    assert torch.equal(loaded.state["stages.2.2.conv2.weight"], resnet20["stages.2.2.conv2.weight"])
    assert loaded.report.text() == (
        "weights.pth: 114 tensors for resnet20-cifar, found by the names of candid.\n"
        "Begun anew: head.weight, head.bias."
    )
    loaded = load(resnet20, path, new_head=True)  # also where it would fit
    assert not torch.equal(loaded.state["head.weight"], resnet20["head.weight"])


def test_a_head_that_is_missing_or_has_another_name(path: Path, resnet20: State) -> None:
    body = {name: value for name, value in resnet20.items() if not name.startswith("head")}
    assert refusal(body, path) == (
        f"{path} has no head of resnet20-cifar, only the layers before it; expected one for 10 classes. "
        "Keep those layers and begin the head anew with --new-head."
    )
    assert load(body, path, new_head=True).report.notes == ("Begun anew: head.weight, head.bias.",)
    renamed = {**body, "last.fc.weight": torch.zeros(7, 64), "last.fc.bias": torch.zeros(7)}
    assert load(renamed, path, new_head=True).report.notes == (
        "Left out, as its head: last.fc.weight, last.fc.bias.",
        "Begun anew: head.weight, head.bias.",
    )
    assert refusal(renamed, path) == (
        f"{path} has no head of resnet20-cifar, only the layers before it and last.fc.weight; expected one for 10 "
        "classes. Keep those layers and begin the head anew with --new-head."
    )


def test_images_of_other_channels_or_sizes(path: Path, resnet20: State) -> None:
    grey = {**resnet20, "stem.0.weight": resnet20["stem.0.weight"][:, :1]}
    assert refusal(grey, path) == (
        f"{path} is for images of 1 channel and resnet20-cifar was to read 3; they must be equal. "
        "Use --channels 1, or data with as many."
    )
    assert refusal(build_model("lenet", 10, image_size=32).state_dict(), path, "lenet") == (
        f"{path} is for images of another size: linear1.weight reads 400 values and 256 at the size chosen; "
        "they must be equal. Give the size that it was trained with: --image-size."
    )


class WiderLenet(nn.Module):
    """LeNet with another width before its head."""

    def __init__(self, lenet: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2, self.linear1 = lenet.conv1, lenet.conv2, lenet.linear1
        self.linear2, self.head = nn.Linear(120, 99), nn.Linear(99, 10)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: torchvision.models.resnet34(num_classes=10),
            "80 tensors left over (layer1.2.conv1.weight). They are those of resnet34, under the names of torchvision: "
            "use --model resnet34.",
        ),
        (
            lambda: KuangliuResNet18(KuangliuBlock),
            "stem.0.weight is 64x3x3x3, expected 64x3x7x7. They are those of resnet18-cifar, under the names of "
            "kuangliu/pytorch-cifar: use --model resnet18-cifar.",
        ),
        (
            lambda: WiderLenet(build_model("lenet", 10)),
            "100 of 102 tensors missing (stem.0.weight), 8 tensors left over (conv1.weight). "
            "The nearest network is lenet, of which 70% agrees (candid).",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 5)),
            "none of its 102 names is there, in any layout known. No network of candid is near to it; `candid models` "
            "lists them.",
        ),
    ],
)
def test_another_networks_weights_are_refused_with_its_name(
    path: Path, make: Callable[[], nn.Module], text: str
) -> None:
    with torch.device("meta"):
        shapes = make().state_dict()
    state = {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}
    assert refusal(state, path, "resnet18") == f"{path} does not hold the weights of resnet18: {text}"


def test_a_changed_network_is_called_so(path: Path) -> None:
    changed = {**build_model("lenet-bn", 10).state_dict(), "attention.weight": torch.zeros(3)}
    assert refusal(changed, path, "lenet-bn") == (
        f"{path} does not hold the weights of lenet-bn: 1 tensor left over (attention.weight). "
        "No other network is nearer (98% agrees), so it is of a changed one."
    )


def test_values_that_are_no_numbers_are_refused(path: Path, resnet20: State) -> None:
    wrong = {**resnet20, "head.bias": torch.full((10,), float("nan"))}
    assert refusal(wrong, path) == (
        f"{path} has values in head.bias that are not finite; expected numbers. "
        "Its training has diverged: use an earlier checkpoint."
    )
    for value, kind in (
        (torch.zeros(10, dtype=torch.int8), "int8"),
        (torch.zeros(10).to_sparse(), "sparse_coo float32"),
    ):
        assert refusal({**resnet20, "head.bias": value}, path) == (
            f"{path} has head.bias as {kind}; expected floating-point numbers, all of them. "
            "Save the weights as float32."
        )


def test_two_networks_under_two_wrappers_are_refused(path: Path, resnet20: State) -> None:
    both = {**resnet20, **{f"module.{name}": value for name, value in resnet20.items()}}
    assert refusal(both, path) == (
        f"{path} holds stem.0.weight more than once, in different wrappers; expected one network. "
        "Save the weights of one alone."
    )


def test_names_of_a_library_that_has_no_such_network_leave_a_doubt(path: Path) -> None:
    """Such as torchvision's names with a 3x3 stem: whether a pooling follows it cannot be seen."""
    state = build_model("resnet18-cifar", 10).state_dict()
    loaded = load({TORCHVISION["resnet"](name): value for name, value in state.items()}, path, "resnet18-cifar")
    assert_same_state(loaded, state)
    assert loaded.report.notes == (f"torchvision has no resnet18-cifar: names and shapes fit, but {UNSEEN}",)


class Lenet(nn.Module):
    """LeNet with names of its own."""

    def __init__(self, order: str) -> None:
        super().__init__()
        layers = {
            "a": nn.Conv2d(1, 6, 5),
            "b": nn.Conv2d(6, 16, 5),
            "c": nn.Linear(256, 120),
            "d": nn.Linear(120, 84),
            "e": nn.Linear(84, 10),
        }
        self.layers = nn.ModuleDict({name: layers[name] for name in order})

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = (self.layers[name] for name in "abcde")
        x = F.max_pool2d(F.relu(b(F.max_pool2d(F.relu(a(x)), 2))), 2).flatten(1)
        return e(F.relu(d(F.relu(c(x)))))


def test_order_and_shapes_are_the_announced_last_resort(path: Path) -> None:
    theirs = Lenet("abcde")
    torch.save(theirs.state_dict(), path)
    ours = build_model("lenet-relu", 10, in_channels=1)
    loaded = load_weights(path, ours, "lenet-relu")
    ours.load_state_dict(loaded.state)
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images))
    assert loaded.report.text() == (
        "weights.pth: 10 tensors for lenet-relu, found by their order and shapes alone.\n"
        "Removed from the names: layers.\n"
        f"No name in the file is known: order and shapes fit lenet-relu, but {UNSEEN}"
    )


def test_order_is_not_relied_on_where_it_is_another_or_was_lost(path: Path) -> None:
    reason = (
        f"{path} does not hold the weights of lenet-relu: none of its 10 names is there, in any layout known. "
        "No network of candid is near to it; `candid models` lists them."
    )
    ours = build_model("lenet-relu", 10, in_channels=1)
    torch.save(Lenet("bacde").state_dict(), path)
    with pytest.raises(CheckpointError) as caught:
        load_weights(path, ours, "lenet-relu")
    assert str(caught.value) == reason
    save_file(Lenet("abcde").state_dict(), path)  # sorted by name, whatever the order of the layers
    with pytest.raises(CheckpointError) as caught:
        load_weights(path, ours, "lenet-relu")
    assert str(caught.value) == reason


@pytest.mark.parametrize("family", list(dict.fromkeys(variant.family for variant in REGISTRY.values())))
def test_no_layout_gives_two_tensors_one_name(family: str) -> None:
    name = next(name for name, variant in REGISTRY.items() if variant.family == family)
    with torch.device("meta"):
        names = list(build_model(name, 10, REGISTRY[name].in_channels).state_dict())
    for layout in layouts.layouts_of(family):
        assert len({bare(layout.their_name(name)) for name in names}) == len(names), layout.library
