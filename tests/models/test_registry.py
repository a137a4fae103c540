import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from candid.models import (
    ALIASES,
    REGISTRY,
    build_model,
    count_parameters,
    find_variant,
    list_models,
    smallest_image_size,
)
from candid.models.auxiliary import split_output

torch.set_num_threads(1)

# Over a hundred layers or 20 million parameters, or one more width of a mobile net: for `make long`. A smaller sibling
# made of the same blocks is always tested, and test_model_parameters.py builds them all.
LARGE = {
    "alexnet",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vgg11-bn",
    "vgg13-bn",
    "vgg16-bn",
    "vgg19-bn",
    "vgg11-notes",
    "resnet34",
    "resnet101",
    "resnet152",
    "resnet34-cifar",
    "resnet50-cifar",
    "resnet56-cifar",
    "resnet110-cifar",
    "resnet1202-cifar",
    "resnext50-32x4d",
    "resnext101-32x8d",
    "resnext101-64x4d",
    "wide-resnet50-2",
    "wide-resnet101-2",
    "stochastic-depth-resnet110",
    "stochastic-depth-resnet1202",
    "resnext29-8x64d",
    "resnext29-16x64d",
    "preact-resnet110",
    "preact-resnet164",
    "preact-resnet1001",
    "wrn-28-10",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet264",
    "densenet161-cifar",
    "densenet169-cifar",
    "densenet201-cifar",
    "densenet-bc-40-36",
    "densenet-bc-40-48",
    "densenet-bc-40-60",
    "densenet-100-12",
    "densenet-100-24",
    "densenet-bc-190-40",
    "densenet-bc-250-24",
    "mobilenetv2-0.5",
    "mobilenetv2-0.75",
    "mobilenetv2-1.3",
    "mobilenetv2-1.4",
    "shufflenetv2-1.5",
    "shufflenetv2-2.0",
    "ghostnet-1.3",
    "fractalnet",
}
NUM_CLASSES = 5
# Networks that leave out random parts in training: so many passes reach every parameter.
NUM_PASSES: dict[str, int] = {
    "stochastic-depth-resnet110": 12,
    "stochastic-depth-resnet1202": 16,
    "fractalnet": 12,
    "fractalnet-small": 12,
}
# With the running statistics 0 and 1 that they begin with, evaluation grows beyond float32 on the way through them.
THOUSAND_LAYERS = {"resnet1202-cifar", "stochastic-depth-resnet1202", "preact-resnet1001"}
# What torch says of images too small: a map would vanish, or, where all layers are linear, they do not fit.
VANISHED = r"Output size is too small|Kernel size can't be greater"
MISFIT = "must have same reduction dim"
ON_META = torch.device("meta")
MARKED = [pytest.param(n, marks=pytest.mark.long) if n in LARGE else n for n in list_models()]


def contract_size(name: str) -> int:
    return max(smallest_image_size(name), 16)


def random_images(name: str, num_images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num_images, 3, contract_size(name), contract_size(name), generator=generator)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(name, NUM_CLASSES, image_size=contract_size(name))
    if name in THOUSAND_LAYERS:
        with torch.no_grad():
            model.train()(random_images(name, num_images=4))
    return model


def train_logits(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The logits and those of auxiliary classifiers, of one forward pass with draws that depend on nothing before."""
    torch.manual_seed(3)
    logits, auxiliary = split_output(model.train()(images))
    return [logits, *auxiliary]


@pytest.fixture(scope="module", params=MARKED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def original(name: str) -> nn.Module:
    return built(name)


@pytest.fixture
def model(original: nn.Module) -> Iterator[nn.Module]:
    """Its own copy for each test, so that no test sees what another left behind."""
    return copy.deepcopy(original)


def test_every_parameter_receives_a_gradient(name: str, model: nn.Module) -> None:
    torch.manual_seed(3)
    for _ in range(NUM_PASSES.get(name, 1)):
        logits, auxiliary = split_output(model.train()(random_images(name, num_images=4)))
        assert {one.shape for one in (logits, *auxiliary)} == {(4, NUM_CLASSES)}
        sum(nn.functional.cross_entropy(one, torch.tensor([0, 4, 1, 0])) for one in (logits, *auxiliary)).backward()
    idle = [path for path, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not idle, f"{name}: no finite gradient reaches {idle}"


def test_one_seed_makes_one_network(name: str, model: nn.Module) -> None:
    again = built(name)
    values = again.state_dict()
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    images = random_images(name)
    pairs = zip(train_logits(model, images), train_logits(again, images), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_state_dict_carries_everything(name: str, model: nn.Module) -> None:
    model.train()(random_images(name))  # moves the running statistics
    torch.manual_seed(1)
    other = build_model(name, NUM_CLASSES, image_size=contract_size(name))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(random_images(name)), other.eval()(random_images(name)))


def test_bf16_autocast_stays_finite(name: str, model: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        for logits in train_logits(model, random_images(name)):
            assert logits.dtype == torch.bfloat16
            assert logits.isfinite().all()


def test_channels_last_computes_the_same(name: str, model: nn.Module) -> None:
    model, images = model.double().eval(), random_images(name).double()
    with torch.no_grad():
        expected = model(images)
        found = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()  # float64: sums in another order


def test_one_image_gives_what_it_gives_in_a_batch(name: str, model: nn.Module) -> None:
    model, images = model.double().eval(), random_images(name).double()
    with torch.no_grad():
        alone, together = model(images[:1]), model(images)[:1]
    assert alone.shape == (1, NUM_CLASSES)
    assert (alone - together).abs().max() <= 1e-10 * together.abs().max()  # float64: sums in another order


def test_only_the_head_depends_on_the_number_of_classes(name: str, model: nn.Module) -> None:
    with ON_META:
        other = build_model(name, NUM_CLASSES + 1, image_size=contract_size(name)).state_dict()
    different = [key for key, value in model.state_dict().items() if value.shape != other[key].shape]
    assert [key.split(".")[-2] for key in different] == ["head"] * len(different)  # auxiliary classifiers have one too
    assert {"head.weight", "head.bias"} <= set(different)


def test_double_precision_computes_the_same_more_exactly(name: str, model: nn.Module) -> None:
    images = random_images(name)
    with torch.no_grad():
        single = model.eval()(images)
        double = model.double()(images.double())
    assert double.dtype == torch.float64
    assert (single - double).abs().max() <= 1e-3 * double.abs().max()  # float32 has 7 digits, over up to 100 layers


def test_config_survives_pickling_and_builds_the_same_network(name: str, model: nn.Module) -> None:
    variant = find_variant(name)
    config = pickle.loads(pickle.dumps(variant.config))
    assert config == variant.config
    with ON_META:
        again = variant.network(replace(config, image_size=contract_size(name)), NUM_CLASSES, 3)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes


def test_exported_graph_computes_the_same(name: str, model: nn.Module) -> None:
    images = random_images(name)
    exported = torch.export.export(model.eval(), (images,)).module()
    with torch.no_grad():
        expected = model(images)
        atol = 1e-5 * max(1.0, float(expected.abs().max()))  # a small logit may be what two large ones leave
        assert torch.allclose(exported(images), expected, rtol=1e-4, atol=atol)  # fp32, in another order


@pytest.mark.parametrize("name", MARKED)
def test_grey_images_of_the_smallest_size_become_logits_and_smaller_ones_do_not(name: str) -> None:
    side = smallest_image_size(name)
    with ON_META:
        model = build_model(name, NUM_CLASSES, in_channels=1, image_size=side).eval()
        assert model(torch.empty(1, 1, side, side)).shape == (1, NUM_CLASSES)
        with pytest.raises(RuntimeError, match=MISFIT if name.startswith("mlp-") else VANISHED):
            model(torch.empty(1, 1, side - 1, side - 1))


def test_aliases_lead_to_registered_networks_and_hide_none() -> None:
    assert set(ALIASES.values()) <= set(REGISTRY)
    assert not set(ALIASES) & set(REGISTRY)
    assert find_variant("tv_resnet50") is REGISTRY["resnet50"]


def test_families_are_modules_of_the_zoo() -> None:
    for variant in REGISTRY.values():
        assert variant.network.__module__ == f"candid.models.{variant.family}"


def test_native_image_sizes() -> None:
    names = ["lenet", "resnet20-cifar", "densenet121-cifar", "resnet50", "resnet18-notes", "densenet-notes"]
    assert [find_variant(name).image_size for name in names] == [28, 32, 32, 224, 96, 96]


def test_counting_parameters_takes_the_image_size_into_account() -> None:
    assert count_parameters("lenet", 10, 1, image_size=32) == 61_706  # 16 * 25 features: LeCun et al. 1998
    assert count_parameters("lenet", 10, 1) == 61_706 - 120 * 16 * (25 - 16)
