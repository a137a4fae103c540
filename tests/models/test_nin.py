import math

import pytest
import torch
from parity import State, assert_same_network, random_images
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from candid.models import build_model, count_parameters

torch.set_num_threads(1)


def perceptron(state: State, x: Tensor, number: int, stride: int, padding: int) -> Tensor:
    """Lin et al. 2014, equation 2: each layer of the sliding perceptron is linear and then rectified."""
    places = [f"blocks.{number}.conv", f"blocks.{number}.perceptron.1", f"blocks.{number}.perceptron.3"]
    for place in places:
        place = place if f"{place}.weight" in state else "head"
        weight = state[f"{place}.weight"]
        if weight.shape[-1] == 1:  # a 1x1 convolution is a matrix product over channels
            x = torch.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x) + state[f"{place}.bias"][:, None, None]
        else:
            x = F.conv2d(x, weight, state[f"{place}.bias"], stride, padding)
        x = x.clamp(min=0)
    return x


def section_4_2(state: State, x: Tensor, training: bool) -> Tensor:
    x = perceptron(state, x, 0, stride=1, padding=2)
    for number, padding in [(1, 2), (2, 1)]:
        x = F.pad(x, (0, 1, 0, 1), value=-math.inf)  # sides are even: the last window hangs over the edge
        x = perceptron(state, F.max_pool2d(x, 3, 2), number, stride=1, padding=padding)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def form_of_the_notes(state: State, x: Tensor, training: bool) -> Tensor:
    x = perceptron(state, x, 0, stride=4, padding=0)
    for number, padding in [(1, 2), (2, 1), (3, 1)]:
        x = perceptron(state, F.max_pool2d(x, 3, 2), number, stride=1, padding=padding)
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def test_cifar_network_is_section_4_2() -> None:
    assert_same_network(build_model("nin", 7, dropout=0.0), section_4_2, random_images(2, 3, 16))


def test_network_of_the_notes() -> None:
    ours = build_model("nin-notes", 7, 1, dropout=0.0)
    assert_same_network(ours, form_of_the_notes, random_images(2, 1, 99))


@pytest.mark.parametrize(
    ("name", "in_channels", "side", "sides"),
    [("nin", 3, 32, [32, 16, 16, 8, 8]), ("nin-notes", 1, 224, [54, 26, 26, 12, 12, 5, 5])],
)
def test_sides_of_blocks_and_poolings(name: str, in_channels: int, side: int, sides: list[int]) -> None:
    found = []
    with torch.device("meta"):
        model = build_model(name, 10, in_channels)
        for module in (place for block in model.blocks for place in (block.pooling, block.conv)):
            module.register_forward_hook(lambda *args: found.append(args[-1].shape[-1]))
        model(torch.empty(1, in_channels, side, side))
    assert found == [side, *sides]  # of the first pooling, which there is not


def test_only_the_first_layer_of_a_block_looks_around() -> None:
    """A convolution and exactly two 1x1 convolutions, of which the last of all is the head."""
    with torch.device("meta"):
        for name, sides in [("nin", [5, 5, 3]), ("nin-notes", [11, 5, 3, 3])]:
            layers = [m for m in build_model(name, 10).modules() if isinstance(m, nn.Conv2d)]
            assert [m.kernel_size[0] for m in layers] == [side for block in sides for side in (block, 1, 1)]


@pytest.mark.parametrize(
    ("name", "side", "expected"), [("nin", 16, "pool drop pool drop"), ("nin-notes", 99, "pool pool pool drop")]
)
def test_dropout_follows_poolings(name: str, side: int, expected: str) -> None:
    model, order = build_model(name, 10), []
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d | nn.Dropout):
            module.register_forward_hook(lambda module, *_: order.append(module))
    with torch.no_grad():
        model(random_images(1, 3, side))
    assert all(module.p in (0.0, 0.5) for module in order if isinstance(module, nn.Dropout))
    active = [module for module in order if isinstance(module, nn.MaxPool2d) or module.p > 0]
    assert " ".join("pool" if isinstance(module, nn.MaxPool2d) else "drop" for module in active) == expected


def test_initialisation_is_that_of_the_authors_and_he_for_the_notes() -> None:
    torch.manual_seed(0)
    for name in ("nin", "nin-notes"):
        for module in build_model(name, 10).modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias.eq(0).all()
                if module.weight.numel() > 4000:
                    fan_in = module.weight[0].numel()
                    expected = 0.05 if name == "nin" else math.sqrt(2 / fan_in)
                    assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_count_follows_from_the_widths() -> None:
    def count(layers: list[tuple[int, int, int]]) -> int:
        return sum((c_in * side**2 + 1) * c_out for c_in, c_out, side in layers)

    small = [(3, 192, 5), (192, 160, 1), (160, 96, 1), (96, 192, 5), (192, 192, 1), (192, 192, 1)]
    assert count_parameters("nin", 10) == count([*small, (192, 192, 3), (192, 192, 1), (192, 10, 1)])
    large = [(1, 96, 11), (96, 256, 5), (256, 384, 3), (384, 10, 3)]
    inner = [(c_out, c_out, 1) for _, c_out, _ in large for _ in range(2)]
    assert count_parameters("nin-notes", 10, 1) == count(large + inner)
