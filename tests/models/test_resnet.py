import math
from dataclasses import replace

import pytest
import torch
import torchvision
from parity import State, assert_same_network, from_module, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model
from candid.models.resnet import VARIANTS
from candid.weights.layouts import TORCHVISION

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet34",
        "resnet50",
        pytest.param("resnet101", marks=pytest.mark.long),
        pytest.param("resnet152", marks=pytest.mark.long),
    ],
)
def test_computes_what_torchvision_computes(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=7)
    assert_same_network(build_model(name, 7), from_module(theirs, TORCHVISION["resnet"]), random_images(4, 3, 40))


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.long)])
def test_small_stem_is_torchvisions_network_with_another_start(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, num_classes=7)
        theirs.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        theirs.maxpool = nn.Identity()
    ours = build_model(f"{name}-cifar", 7)
    assert_same_network(ours, from_module(theirs, TORCHVISION["resnet"]), random_images(4, 3, 12))


def test_network_of_the_notes_differs_in_image_size_alone() -> None:
    assert replace(VARIANTS["resnet18"], image_size=96) == VARIANTS["resnet18-notes"]


def section_4_2(state: State, x: Tensor, training: bool) -> Tensor:
    """He et al. 2016, section 4.2, written from the paper: shortcuts are identities, option A."""

    def conv_bn(x: Tensor, place: str, number: int | str, stride: int = 1) -> Tensor:
        conv, norm = (f"{place}.conv{number}", f"{place}.norm{number}") if place else ("stem.0", "stem.1")
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"], training)

    x = F.relu(conv_bn(x, "", ""))
    blocks_per_stage = sum(name.startswith("stages.0.") and name.endswith("conv1.weight") for name in state)
    for stage in range(3):
        for block in range(blocks_per_stage):
            stride = 2 if stage > 0 and block == 0 else 1
            place = f"stages.{stage}.{block}"
            residual = conv_bn(F.relu(conv_bn(x, place, 1, stride)), place, 2)
            if stride == 2:
                x = F.max_pool2d(x, kernel_size=1, stride=2)
                x = torch.cat((x, torch.zeros_like(x)), dim=1)
            x = F.relu(x + residual)
    x = F.adaptive_avg_pool2d(x, 1).flatten(1)
    return F.linear(x, state["head.weight"], state["head.bias"])


@pytest.mark.parametrize("depth", [20, 56])
def test_cifar_network_is_section_4_2(depth: int) -> None:
    assert_same_network(build_model(f"resnet{depth}-cifar", 7), section_4_2, random_images(4, 3, 16))


def test_cifar_network_has_the_depth_of_its_name() -> None:
    with torch.device("meta"):
        for depth in (20, 32, 44, 56, 110):
            model = build_model(f"resnet{depth}-cifar", 10)
            layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
            assert layers == depth


def test_initialisation_is_he_fan_out() -> None:
    torch.manual_seed(0)
    for name in ("resnet20-cifar", "resnet18", "resnet50-cifar"):
        for module in build_model(name, 10).modules():
            if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight.eq(1).all()
                assert module.bias.eq(0).all()
