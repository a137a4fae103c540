"""Convolutions of small maps as products are torch's convolutions."""

import copy
from typing import Any

import pytest
import torch
from parity import maps
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from candid.models import build_model, convolution
from candid.models.convolution import Conv2d
from candid.models.fusion import fuse_norms

DIGITS = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def multiplied(out: Tensor) -> bool:
    """Whether a product made the gradient's way, at least."""
    return "_Convolve" in str(out.grad_fn)


@pytest.fixture
def many_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any filters count as too many for the cache."""
    monkeypatch.setattr(convolution, "CACHE_BYTES", 0)


def assert_learns_as_torch(conv: Conv2d, x: Tensor) -> None:
    """Result and all gradients are those of torch's layer in float64."""
    plain = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=conv.bias is not None
    )  # pyright: ignore[reportArgumentType]
    plain.load_state_dict(conv.state_dict())
    plain, ours, theirs = plain.double(), x.clone().requires_grad_(), x.double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        out = (conv.double() if x.dtype == torch.float64 else conv)(ours)
    expected = plain(theirs)
    assert multiplied(out)
    assert out.dtype == x.dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(expected).to(x.dtype)
    out.backward(gradient)
    expected.backward(gradient.double())
    pairs = [(out, expected), (ours.grad, theirs.grad)]
    pairs += [(mine.grad, known.grad) for mine, known in zip(conv.parameters(), plain.parameters(), strict=True)]
    for found, known in pairs:
        assert found is not None
        assert known is not None
        assert (found.double() - known).abs().max() <= DIGITS[x.dtype] * known.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (4, 4)])
def test_filters_of_one_pixel(dtype: torch.dtype, stride: int, bias: bool, height: int, width: int):
    assert_learns_as_torch(Conv2d(20, 7, 1, stride, bias=bias), maps(3, 20, height, width, dtype))


def test_larger_maps_in_bf16():
    assert_learns_as_torch(Conv2d(20, 7, 1), maps(3, 20, 8, 8, torch.bfloat16))


@pytest.mark.usefixtures("many_filters")
@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("side", "stride", "padding", "height", "width"),
    [
        (3, 1, 1, 3, 4),
        (3, 1, 1, 1, 1),
        (3, 2, 1, 7, 6),
        (3, 1, 0, 6, 5),
        (3, 3, 0, 9, 12),
        (2, 1, 0, 4, 4),
        (2, 2, 1, 4, 5),
        (2, 1, 2, 1, 1),
        (5, 1, 2, 4, 4),
    ],
)
def test_many_larger_filters(
    dtype: torch.dtype, bias: bool, side: int, stride: int, padding: int, height: int, width: int
):
    assert_learns_as_torch(Conv2d(12, 64, side, stride, padding, bias=bias), maps(3, 12, height, width, dtype))


@pytest.mark.parametrize("stride", [1, 2])
def test_few_larger_filters_in_bf16(stride: int):
    assert_learns_as_torch(Conv2d(12, 64, 3, stride, 1), maps(3, 12, 4, 4, torch.bfloat16))


def test_only_gradients_that_are_wanted():
    x, conv = maps(2, 8, 2, 2), Conv2d(8, 4, 1).double()
    conv.weight.requires_grad_(False)
    out = conv(x)
    assert multiplied(out)
    out.sum().backward()
    assert conv.weight.grad is None
    assert conv.bias is not None
    assert torch.equal(conv.bias.grad, torch.full((4,), 8.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("conv", "x"),
    [
        (Conv2d(8, 4, 1), maps(2, 8, 5, 4, torch.float32)),  # more pixels than are small
        (Conv2d(8, 4, 3, padding=1), maps(2, 8, 4, 4, torch.float32)),  # few filters, in full precision
        (Conv2d(8, 60, 3, padding=1), maps(2, 8, 4, 4, torch.bfloat16)),  # too few to copy windows for
        (Conv2d(8, 4, 1), maps(2, 8, 2, 2, torch.float32).contiguous()),
        (Conv2d(8, 4, 1, groups=2), maps(2, 8, 2, 2, torch.float32)),
        (Conv2d(8, 4, (1, 2)), maps(2, 8, 2, 2, torch.float32)),
        (Conv2d(8, 4, 1, stride=(1, 2)), maps(2, 8, 2, 2, torch.float32)),
        (Conv2d(8, 4, 2, dilation=2), maps(2, 8, 4, 4, torch.float32)),
        (Conv2d(8, 4, 1, padding="same"), maps(2, 8, 2, 2, torch.float32)),
        (Conv2d(8, 4, 1, padding=1, padding_mode="circular"), maps(2, 8, 2, 2, torch.float32)),
        (Conv2d(8, 4, 1), maps(2, 8, 2, 2, torch.float32)[:0]),
    ],
)
def test_torchs_own_way_is_taken_elsewhere(conv: Conv2d, x: Tensor):
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        out = conv(x)
        assert not multiplied(out)
        assert torch.equal(out, nn.Conv2d.forward(conv, x))


def test_maps_that_are_too_small_are_refused_in_torchs_words():
    with pytest.raises(RuntimeError, match=r"Kernel size can't be greater than actual input size"):
        Conv2d(8, 4, 3)(maps(2, 8, 2, 2, torch.float32))


def test_a_network_learns_the_same_and_counts_the_same(monkeypatch: pytest.MonkeyPatch):
    def learn(network: nn.Module) -> tuple[dict[str, Any], int]:
        with FlopCounterMode(display=False) as counter:
            network(maps(4, 3, 32, 32)).square().sum().backward()
        return {name: parameter.grad for name, parameter in network.named_parameters()}, counter.get_total_flops()

    torch.manual_seed(0)
    network = build_model("resnet18-cifar", 10).double().to(memory_format=torch.channels_last)
    other = copy.deepcopy(network)
    ours, our_count = learn(network)
    monkeypatch.setattr(Conv2d, "forward", nn.Conv2d.forward)
    theirs, their_count = learn(other)
    assert our_count == their_count
    for name, known in theirs.items():
        assert (ours[name] - known).abs().max() <= 1e-9 * known.abs().max(), name


def test_normalisation_still_folds_into_it():
    network = build_model("resnet20-cifar", 10).eval()
    assert any(conv.bias is not None for conv in fuse_norms(network).modules() if isinstance(conv, Conv2d))


def test_it_is_exported_as_torchs():
    conv, x = Conv2d(8, 4, 1), maps(2, 8, 2, 2, torch.float32)
    program = torch.export.export(conv, (x,))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.conv2d.default
    ]
