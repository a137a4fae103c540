from dataclasses import replace

import pytest
import torch
from parity import State, assert_drawn_as_he_fan_out, assert_same_network, from_module, random_images
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model, count_parameters, find_variant
from candid.models.preact_resnet import VARIANTS, PreActResNet
from candid.weights.layouts import key_map

torch.set_num_threads(1)

TIMM_BLOCKS = key_map(
    (r"^stages\.(\d)\.", r"stages.\1.blocks."), (r"shortcut", "downsample.conv"), (r"^last\.0", "norm"), ("^head", "fc")
)


def timm_network(name: str) -> nn.Module:
    """timm's pre-activation blocks behind a stem for CIFAR, with seven classes."""
    config = VARIANTS[name]
    with torch.device("meta"):
        theirs = ResNetV2(
            config.blocks_per_stage,
            config.widths,
            stem_chs=config.stem_channels,
            basic=True,
            bottle_ratio=1.0,
            norm_layer=BatchNormAct2d,
            conv_layer=create_conv2d,
        )
        theirs.stem = nn.Conv2d(3, config.stem_channels, kernel_size=3, padding=1, bias=False)
        theirs.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        theirs.fc = nn.Linear(config.widths[-1], 7)
    theirs.forward = lambda x: theirs.fc(theirs.head(theirs.norm(theirs.stages(theirs.stem(x)))))
    return theirs


@pytest.mark.parametrize(
    "name", ["wrn-16-4", *(pytest.param(n, marks=pytest.mark.long) for n in ("wrn-16-8", "wrn-28-10", "wrn-40-4"))]
)
def test_wide_network_is_made_of_timms_blocks(name: str) -> None:
    assert_same_network(build_model(name, 7), from_module(timm_network(name), TIMM_BLOCKS), random_images(4, 3, 8))


def test_popular_network_of_18_layers_has_no_activations_at_its_ends() -> None:
    theirs = timm_network("preact-resnet18-cifar")
    theirs.norm = nn.Identity()
    assert_same_network(
        build_model("preact-resnet18-cifar", 7), from_module(theirs, TIMM_BLOCKS), random_images(4, 3, 16)
    )


def authors_code(state: State, x: Tensor, training: bool) -> Tensor:
    """What He et al. 2016 published for CIFAR, on the values of our network: bottlenecks, or basic blocks."""

    def bn_relu(x: Tensor, norm: str) -> Tensor:
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.relu(F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], training))

    x = F.conv2d(x, state["stem.weight"], padding=1)
    places = [name.removesuffix(".conv1.weight") for name in state if name.endswith(".conv1.weight")]
    for place in places:
        stride = 2 if place.endswith(".0") and place != "stages.0.0" else 1
        first = state[f"{place}.conv1.weight"]
        activated = bn_relu(x, f"{place}.norm1")
        branch = F.conv2d(activated, first, stride=stride, padding=first.shape[-1] // 2)
        branch = F.conv2d(bn_relu(branch, f"{place}.norm2"), state[f"{place}.conv2.weight"], padding=1)
        if f"{place}.conv3.weight" in state:
            branch = F.conv2d(bn_relu(branch, f"{place}.norm3"), state[f"{place}.conv3.weight"])
        if f"{place}.shortcut.weight" in state:
            x = F.conv2d(activated, state[f"{place}.shortcut.weight"], stride=stride)
        elif stride == 2:
            halved = F.max_pool2d(activated, kernel_size=1, stride=2)
            x = torch.cat((halved, torch.zeros_like(halved)), dim=1)
        elif place == places[0]:
            x = activated
        x = x + branch
    x = F.adaptive_avg_pool2d(bn_relu(x, "last.0"), 1).flatten(1)
    return F.linear(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("preact-resnet110", 2),
        ("preact-resnet164", 2),
        ("wrn-16-4", 2),
        pytest.param("preact-resnet110", 18, marks=pytest.mark.long),
        pytest.param("preact-resnet164", 18, marks=pytest.mark.long),
    ],
)
def test_network_is_the_authors_code(name: str, blocks: int) -> None:
    model = PreActResNet(replace(VARIANTS[name], blocks_per_stage=(blocks,) * 3), 7)
    assert_same_network(model, authors_code, random_images(4, 3, 16))


@pytest.mark.parametrize("name", VARIANTS)
def test_count_follows_from_the_papers_and_is_printed_without_normalisations(name: str) -> None:
    config = VARIANTS[name]
    channels, weights, norms = config.stem_channels, 27 * config.stem_channels, 0
    for width, num_blocks in zip(config.widths, config.blocks_per_stage, strict=True):
        wide = 4 * width if config.block == "bottleneck" else width
        for _ in range(num_blocks):
            weights += channels * wide if channels != wide and name != "preact-resnet110" else 0
            weights += width * (channels + 9 * width + wide) if wide > width else 9 * width * (channels + width)
            norms += 2 * (channels + width + (width if wide > width else 0))
            channels = wide
    weights += 10 * channels + 10
    norms += 0 if name == "preact-resnet18-cifar" else 2 * channels
    assert count_parameters(name, 10) == weights + norms
    printed = {"preact-resnet110": 1.7, "preact-resnet164": 1.7, "preact-resnet1001": 10.2}  # million
    assert round(weights / 1e6, 1) == printed.get(name, round(weights / 1e6, 1))


@pytest.mark.parametrize(("name", "depth"), [("wrn-28-10", 28), ("preact-resnet164", 163), ("preact-resnet1001", 1000)])
def test_network_has_the_depth_of_its_name(name: str, depth: int) -> None:
    """Wide networks count the three projections and not the head; the others the head alone."""
    with torch.device("meta"):
        model = build_model(name, 10)
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) - (0 if "wrn" in name else sum("shortcut" in path for path in layers)) == depth


def test_dropout_is_between_the_convolutions_of_wide_blocks_and_off_by_default() -> None:
    model, order = build_model("wrn-16-4", 10, dropout=0.3), []
    for path, module in model.named_modules():
        if path.startswith("stages.1.1.") and isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.Dropout):
            module.register_forward_hook(lambda module, *_: order.append(type(module).__name__))
    with torch.no_grad():
        model(random_images(2, 3, 8))
    assert order == ["BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d"]
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.3}
    assert [find_variant(name).has_dropout for name in VARIANTS] == ["wrn" in name for name in VARIANTS]
    assert find_variant("wrn-28-10").dropout == 0


def test_initialisation_is_he_fan_out() -> None:
    torch.manual_seed(0)
    for name in ("preact-resnet110", "preact-resnet164", "wrn-16-4", "preact-resnet18-cifar"):
        model = build_model(name, 10)
        assert model.head.bias.eq(0).all()
        assert_drawn_as_he_fan_out(model)
