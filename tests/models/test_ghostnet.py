import pytest
import timm
import torch
from parity import assert_drawn_as_he_fan_out, assert_same_network, from_module, random_images
from torch import nn

from candid.models import build_model, count_parameters
from candid.models.ghostnet import GhostModule, SqueezeExcite
from candid.weights.layouts import TIMM

torch.set_num_threads(1)


def timms(their_name: str, num_classes: int = 7) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(their_name, num_classes=num_classes, drop_rate=0.0)


def timms_with_small_stem(num_classes: int = 7) -> nn.Module:
    theirs = timms("ghostnet_100", num_classes)
    first_strided = theirs.blocks[1][0]
    theirs.conv_stem.stride = first_strided.shortcut[0].stride = (1, 1)
    first_strided.conv_dw = first_strided.bn_dw = None
    return theirs


@pytest.mark.parametrize(
    "their_name", ["ghostnet_050", "ghostnet_100", pytest.param("ghostnet_130", marks=pytest.mark.long)]
)
def test_computes_what_timm_computes(their_name: str) -> None:
    ours = build_model(their_name, 7, dropout=0.0)
    assert_same_network(ours, from_module(timms(their_name), TIMM["ghostnet"]), random_images(4, 3, 32))


def test_small_stem_is_timms_network_with_two_strides_less() -> None:
    ours = build_model("ghostnet-1.0-cifar", 7, dropout=0.0)
    assert_same_network(ours, from_module(timms_with_small_stem(), TIMM["ghostnet"]), random_images(4, 3, 12))


def test_count_is_timms() -> None:
    pairs = [("ghostnet-0.5", timms("ghostnet_050", 10)), ("ghostnet-1.0", timms("ghostnet_100", 10))]
    pairs += [("ghostnet-1.3", timms("ghostnet_130", 10)), ("ghostnet-1.0-cifar", timms_with_small_stem(10))]
    for name, theirs in pairs:
        assert count_parameters(name, 10) == sum(parameter.numel() for parameter in theirs.parameters())


@pytest.mark.parametrize(("width", "printed"), [("0.5", "2.6"), ("1.0", "5.2"), ("1.3", "7.3")])
def test_count_without_normalisation_rounds_to_what_the_paper_prints(width: str, printed: str) -> None:
    with torch.device("meta"):
        model = build_model(f"ghostnet-{width}", 1000)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    count = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    assert f"{count / 1e6:.1f}" == printed


TABLE_1 = [  # channels, expanded channels, SE, and side of the input of each bottleneck in px
    (16, 16, False, 112), (16, 48, False, 112), (24, 72, False, 56), (24, 72, True, 56),
    (40, 120, True, 28), (40, 240, False, 28), (80, 200, False, 14), (80, 184, False, 14),
    (80, 184, False, 14), (80, 480, True, 14), (112, 672, True, 14), (112, 672, True, 14),
    (160, 960, False, 7), (160, 960, True, 7), (160, 960, False, 7), (160, 960, True, 7),
]  # fmt: skip


def test_bottlenecks_are_those_of_table_1() -> None:
    found = []
    with torch.device("meta"):
        model = build_model("ghostnet-1.0", 1000)
        x = model.stem(torch.empty(2, 3, 224, 224))
        for bottleneck in model.bottlenecks:
            expanded = bottleneck.ghost1(x).shape[1]
            found.append((x.shape[1], expanded, isinstance(bottleneck.se, SqueezeExcite), x.shape[2]))
            x = bottleneck(x)
        assert model.last(x).shape[1:] == (960, 7, 7)
    assert found == TABLE_1


def test_half_of_a_ghost_modules_maps_each_depend_on_one_of_the_other_half() -> None:
    torch.manual_seed(0)
    module, x = GhostModule(6, 8, nn.ReLU).eval(), torch.rand(2, 6, 5, 5)
    intrinsic = module.primary(x)
    changed = intrinsic.clone()
    changed[:, 2] += 1
    is_touched = (module.cheap(changed) != module.cheap(intrinsic)).flatten(2).any(dim=2).any(dim=0)
    assert torch.equal(module(x)[:, :4], intrinsic)
    assert not is_touched[[0, 1, 3]].any()


def test_small_stem_leaves_4x4_maps() -> None:
    with torch.device("meta"):
        model = build_model("ghostnet-1.0-cifar", 10)
        assert model.bottlenecks(model.stem(torch.empty(2, 3, 32, 32))).shape == (2, 160, 4, 4)


def test_initialisation_is_he_fan_out() -> None:
    torch.manual_seed(0)
    assert_drawn_as_he_fan_out(build_model("ghostnet-1.0", 10))
