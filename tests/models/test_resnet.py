from dataclasses import replace
from functools import partial

import pytest
import torch
import torchvision
from parity import State, assert_drawn_as_he_fan_out, assert_same_network, from_module, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import ALIASES, build_model
from candid.models.resnet import VARIANTS, Block, ResNet
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


@pytest.mark.parametrize(
    "their_name",
    [
        "resnext50_32x4d",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")
        ),
    ],
)
def test_wide_and_grouped_networks_compute_what_torchvisions_do(their_name: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(their_name, num_classes=7)
    ours = build_model(ALIASES[their_name], 7)
    assert_same_network(ours, from_module(theirs, TORCHVISION["resnet"]), random_images(4, 3, 33))


@pytest.mark.parametrize(
    "groups", [2, pytest.param(8, marks=pytest.mark.long), pytest.param(16, marks=pytest.mark.long)]
)
def test_cifar_resnext_is_torchvisions_network_with_three_stages(groups: int) -> None:
    with torch.device("meta"):
        bottleneck = torchvision.models.resnet.Bottleneck
        theirs = torchvision.models.ResNet(bottleneck, [3, 3, 3, 1], 7, groups=groups, width_per_group=64)
        theirs.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        theirs.fc = nn.Linear(1024, 7)
        theirs.maxpool = theirs.layer4 = nn.Identity()
    ours = ResNet(replace(VARIANTS["resnext29-8x64d"], groups=groups), 7)
    assert_same_network(ours, from_module(theirs, TORCHVISION["resnet"]), random_images(4, 3, 8))


@pytest.mark.parametrize(("name", "printed"), [("resnext29-8x64d", "34.4"), ("resnext29-16x64d", "68.1")])
def test_cifar_resnext_count_is_printed_without_normalisations(name: str, printed: str) -> None:
    with torch.device("meta"):
        layers = [module for module in build_model(name, 10).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert f"{sum(p.numel() for layer in layers for p in layer.parameters()) / 1e6:.1f}" == printed


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


def section_4_2(state: State, x: Tensor, training: bool, shares: list[float] | None = None) -> Tensor:
    """He et al. 2016, section 4.2, written from the paper: shortcuts are identities, option A.

    With `shares` Huang et al. 2016: what each block takes of its residual branch, and squares are averaged.
    """

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
            share = 1.0 if shares is None else shares[stage * blocks_per_stage + block]
            residual = conv_bn(F.relu(conv_bn(x, place, 1, stride)), place, 2) * share if share else None
            if stride == 2:
                pool = F.max_pool2d(x, kernel_size=1, stride=2) if shares is None else F.avg_pool2d(x, kernel_size=2)
                x = torch.cat((pool, torch.zeros_like(pool)), dim=1)
            x = x if residual is None else F.relu(x + residual)
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


def shallow_stochastic(last_survival: float) -> ResNet:
    config = replace(VARIANTS["stochastic-depth-resnet110"], blocks_per_stage=(2, 2, 2), last_survival=last_survival)
    return ResNet(config, 7)


def test_survival_falls_linearly_to_a_half() -> None:
    for name, num_blocks in [("stochastic-depth-resnet110", 54), ("stochastic-depth-resnet1202", 600)]:
        with torch.device("meta"):
            model = build_model(name, 10)
        found = [module.survival for module in model.modules() if isinstance(module, Block)]
        assert found == pytest.approx([1 - 0.5 * number / num_blocks for number in range(1, num_blocks + 1)])
        assert replace(VARIANTS[name], shortcut="padding", last_survival=1.0) == VARIANTS[f"resnet{name[23:]}-cifar"]


def test_stochastic_depth_without_skipping_is_section_4_2_with_averages() -> None:
    model = shallow_stochastic(last_survival=1.0)
    assert_same_network(model, partial(section_4_2, shares=[1.0] * 6), random_images(4, 3, 16))


def test_stochastic_depth_weighs_branches_in_evaluation() -> None:
    model = shallow_stochastic(last_survival=0.4).double().eval()
    images, shares = random_images(4, 3, 16).double(), [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    expected = section_4_2(model.state_dict(), images, False, shares)
    assert (model(images) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("seed", range(6))
def test_stochastic_depth_skips_whole_branches_in_training(seed: int) -> None:
    """A skipped branch has no gradients and moves no statistics; whoever survives is not weighed."""
    model, images = shallow_stochastic(last_survival=0.1).double().train(), random_images(4, 3, 16).double()
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    torch.manual_seed(seed)
    kept = [float(torch.rand(()) < 1 - 0.15 * number) for number in range(1, 7)]
    expected = section_4_2(state, images, True, kept)
    torch.manual_seed(seed)
    found = model(images)
    assert (found - expected).abs().max() < 1e-10
    found.sum().backward()
    for block, keeps in zip((m for m in model.modules() if isinstance(m, Block)), kept, strict=True):
        assert all((parameter.grad is not None) == bool(keeps) for parameter in block.parameters())
        assert block.norm2.num_batches_tracked == keeps
    for name, value in model.named_buffers():
        assert "num_batches" in name or torch.allclose(value, state[name], rtol=1e-10)


def test_stochastic_depth_keeps_a_block_as_often_as_it_should() -> None:
    torch.manual_seed(0)
    block = next(m for m in shallow_stochastic(last_survival=1.0).modules() if isinstance(m, Block)).train()
    block.survival = 0.7
    with torch.no_grad():
        for _ in range(400):
            block(torch.zeros(2, 16, 1, 1))
    assert block.norm1.num_batches_tracked.item() == pytest.approx(280, abs=37)  # four standard deviations


@pytest.mark.parametrize("side", [1, 5, 7])
def test_averages_of_odd_maps_fit_what_the_strided_convolution_leaves(side: int) -> None:
    assert shallow_stochastic(last_survival=0.5).eval()(random_images(1, 3, side)).shape == (1, 7)


def test_initialisation_is_he_fan_out() -> None:
    torch.manual_seed(0)
    for name in ("resnet20-cifar", "resnet18", "resnet50-cifar", "resnext50-32x4d"):
        assert_drawn_as_he_fan_out(build_model(name, 10))
