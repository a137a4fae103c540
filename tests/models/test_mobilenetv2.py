import pytest
import timm
import torch
from parity import assert_same_network, from_module, random_images
from timm.layers import make_divisible as timms_make_divisible
from torch import nn
from torchvision.models import MobileNetV2

from candid.models import REGISTRY, build_model, count_parameters, find_variant
from candid.models.mobilenetv2 import make_divisible
from candid.weights.layouts import TIMM, TORCHVISION

torch.set_num_threads(1)


def torchvisions(width: float, num_classes: int = 7) -> MobileNetV2:
    with torch.device("meta"):
        return MobileNetV2(num_classes, width, dropout=0.0)


@pytest.mark.parametrize(
    "width",
    ["0.35", "0.5", "0.6", "1.0", *(pytest.param(width, marks=pytest.mark.long) for width in ("0.75", "1.3", "1.4"))],
)
def test_computes_what_torchvision_computes(width: str) -> None:
    ours = build_model(f"mobilenetv2-{width}", 7, dropout=0.0)
    theirs = from_module(torchvisions(float(width)), TORCHVISION["mobilenetv2"])
    assert_same_network(ours, theirs, random_images(4, 3, 32))


@pytest.mark.parametrize(
    "their_name", ["mobilenetv2_035", "mobilenetv2_100", pytest.param("mobilenetv2_140", marks=pytest.mark.long)]
)
def test_computes_what_timm_computes(their_name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(their_name, num_classes=7, drop_rate=0.0)
    ours = build_model(their_name, 7, dropout=0.0)
    assert_same_network(ours, from_module(theirs, TIMM["mobilenetv2"]), random_images(4, 3, 32))


def test_small_stem_is_torchvisions_network_with_two_strides_less() -> None:
    theirs = torchvisions(1.0)
    theirs.features[0][0].stride = theirs.features[2].conv[1][0].stride = (1, 1)
    ours = build_model("mobilenetv2-cifar", 7, dropout=0.0)
    assert_same_network(ours, from_module(theirs, TORCHVISION["mobilenetv2"]), random_images(4, 3, 12))


def test_small_stem_leaves_4x4_maps() -> None:
    with torch.device("meta"):
        model = build_model("mobilenetv2-cifar", 10)
        maps = [model.stem(torch.empty(2, 3, 32, 32))]
        for stage in model.stages:
            maps.append(stage(maps[-1]))
    assert [one.shape[-1] for one in maps] == [32, 32, 32, 16, 8, 8, 4, 4]


@pytest.mark.parametrize("name", [name for name in REGISTRY if name.startswith("mobilenetv2")])
def test_count_is_torchvisions(name: str) -> None:
    theirs = torchvisions(find_variant(name).config.width, 10)
    assert count_parameters(name, 10) == sum(parameter.numel() for parameter in theirs.parameters())


# Millions of parameters in the table of checkpoints that the authors published; they leave normalisation out.
@pytest.mark.parametrize(
    ("width", "printed"),
    [("0.35", "1.66"), ("0.5", "1.95"), ("0.75", "2.61"), ("1.0", "3.47"), ("1.3", "5.34"), ("1.4", "6.06")],
)
def test_count_without_normalisation_rounds_to_what_the_authors_print(width: str, printed: str) -> None:
    with torch.device("meta"):
        model = build_model(f"mobilenetv2-{width}", 1000)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    count = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    assert f"{count / 1e6:.2f}" == printed


@pytest.mark.parametrize("divisor", [4, 8])
def test_rounding_of_channels_is_timms(divisor: int) -> None:
    values = [hundredths / 100 for hundredths in range(1, 10_000, 7)]
    assert [make_divisible(value, divisor) for value in values] == [timms_make_divisible(v, divisor) for v in values]


@pytest.mark.parametrize("name", ["mobilenetv2-0.1", "mobilenetv2-4", "ghostnet-0.1", "ghostnet-4"])
def test_narrowest_and_widest_networks_work(name: str) -> None:
    with torch.device("meta"):
        assert build_model(name, 7).eval()(torch.empty(2, 3, 64, 64)).shape == (2, 7)


def test_a_width_that_is_not_listed_changes_the_width_alone() -> None:
    for name in ("mobilenetv2-1", "mobilenetv2-1.00"):
        assert find_variant(name) == REGISTRY["mobilenetv2-1.0"]
    assert find_variant("mobilenetv2-1.0-cifar") == REGISTRY["mobilenetv2-cifar"]
    narrow = find_variant("mobilenetv2-0.6-cifar")
    assert (narrow.config.width, narrow.image_size, narrow.num_classes) == (0.6, 32, 10)
    assert find_variant("ghostnet-0.7").config.width == 0.7


def test_every_activation_is_capped_at_6() -> None:
    with torch.device("meta"):
        kinds = [type(module) for module in build_model("mobilenetv2-1.0", 7).modules()]
    assert kinds.count(nn.ReLU6) == 1 + 1 + 2 * 16 + 1  # stem, the block that does not expand, the others, last
    assert nn.ReLU not in kinds


@pytest.mark.parametrize("name", ["mobilenetv2-0.35", "ghostnet-0.5"])
def test_dropout_of_a_fifth_precedes_the_head(name: str) -> None:
    torch.manual_seed(0)
    model, seen = build_model(name, 7), []
    model.dropout.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    model.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        model.train()(random_images(64, 3, 16))
    before, after, head_input = seen
    assert after is head_input
    assert (after[before > 0] == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 1


def test_initialisation_is_normal_cut_off_at_two_deviations() -> None:
    torch.manual_seed(0)
    model = build_model("mobilenetv2-1.0", 100)
    assert model.head.bias.eq(0).all()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.weight.abs().max() <= 0.18
            if module.weight.numel() > 4000:
                # A normal distribution cut off at two deviations has 0.8796 of its deviation.
                assert module.weight.std().item() == pytest.approx(0.8796 * 0.09, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
