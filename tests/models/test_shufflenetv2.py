import pytest
import torch
import torchvision
from parity import assert_same_network, from_module, random_images
from torch import nn

from candid.models import build_model, count_parameters
from candid.models.shufflenetv2 import ShuffleUnit
from candid.weights.layouts import TORCHVISION

torch.set_num_threads(1)

THEIR_NAMES = {
    "shufflenetv2-0.5": "shufflenet_v2_x0_5",
    "shufflenetv2-1.0": "shufflenet_v2_x1_0",
    "shufflenetv2-1.5": "shufflenet_v2_x1_5",
    "shufflenetv2-2.0": "shufflenet_v2_x2_0",
}


def torchvisions(name: str, num_classes: int = 7) -> torchvision.models.ShuffleNetV2:
    with torch.device("meta"):
        return torchvision.models.get_model(THEIR_NAMES[name.removesuffix("-cifar")], num_classes=num_classes)


@pytest.mark.parametrize(
    "name",
    [
        "shufflenetv2-0.5",
        "shufflenetv2-1.0",
        pytest.param("shufflenetv2-1.5", marks=pytest.mark.long),
        pytest.param("shufflenetv2-2.0", marks=pytest.mark.long),
    ],
)
def test_computes_what_torchvision_computes(name: str) -> None:
    theirs = from_module(torchvisions(name), TORCHVISION["shufflenetv2"])
    assert_same_network(build_model(name, 7), theirs, random_images(4, 3, 32))


@pytest.mark.parametrize(
    "name", ["shufflenetv2-0.5-cifar", pytest.param("shufflenetv2-1.0-cifar", marks=pytest.mark.long)]
)
def test_small_stem_is_torchvisions_network_with_another_start(name: str) -> None:
    theirs = torchvisions(name)
    theirs.conv1[0].stride = (1, 1)
    theirs.maxpool = nn.Identity()
    assert_same_network(build_model(name, 7), from_module(theirs, TORCHVISION["shufflenetv2"]), random_images(4, 3, 16))


@pytest.mark.parametrize("name", ["shufflenetv2-0.5-cifar", "shufflenetv2-1.0-cifar"])
def test_count_with_the_small_stem_is_torchvisions(name: str) -> None:
    theirs = torchvisions(name, num_classes=10)
    assert count_parameters(name, 10) == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize(
    ("name", "channels", "last"),
    [
        ("shufflenetv2-0.5", (24, 48, 96, 192), 1024),
        ("shufflenetv2-1.0", (24, 116, 232, 464), 1024),
        ("shufflenetv2-1.5", (24, 176, 352, 704), 1024),
        ("shufflenetv2-2.0", (24, 244, 488, 976), 2048),
    ],
)
def test_maps_are_those_of_table_5(name: str, channels: tuple[int, ...], last: int) -> None:
    with torch.device("meta"):
        model = build_model(name, 1000)
        maps = [model.stem(torch.empty(2, 3, 224, 224))]
        for stage in model.stages:
            maps.append(stage(maps[-1]))
        found = [tuple(one.shape[1:3]) for one in (*maps, model.last(maps[-1]))]
    assert found == list(zip((*channels, last), (56, 28, 14, 7, 7), strict=True))
    assert [len(stage) for stage in model.stages] == [4, 8, 4]


def test_half_the_channels_pass_a_unit_untouched_and_are_interleaved_with_the_others() -> None:
    torch.manual_seed(0)
    unit, x = ShuffleUnit(8, 8, stride=1), torch.randn(2, 8, 5, 5)
    found = unit(x)
    assert torch.equal(found[:, 0::2], x[:, :4])
    assert torch.allclose(found[:, 1::2], unit.right(x[:, 4:]))


def test_initialisation_is_that_of_the_authors() -> None:
    torch.manual_seed(0)
    model = build_model("shufflenetv2-1.0", 100)
    assert model.stem[0].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.head.bias.eq(0).all()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000 and name != "stem.0":
            inputs = module.in_channels // module.groups  # 1 in depthwise convolutions
            assert module.weight.std().item() == pytest.approx(1 / inputs, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(1e-4).all()
