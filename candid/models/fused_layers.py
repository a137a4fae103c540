"""Layers that CPUs train faster together, or on a way of their own; they compute what torch's layers compute.

Batch normalisation and the activation behind it go through the maps once for the statistics and once for the result,
and twice on the way back. For strided depthwise convolutions in bf16, torch has no fast way back. Both are C++
(layer_pieces.cpp), for maps in channels-last memory; anywhere else the layers themselves are called.

Shapes: N images, C channels, H W pixels, P = N * H * W; vectors [C] as in fusing.py.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from candid.models.compiling import load_pieces
from candid.models.fusing import TYPES, fold, is_watched, type_of_maps, uses_batch

BOUNDS: dict[type, tuple[float, float]] = {
    nn.ReLU: (0.0, math.inf),
    nn.ReLU6: (0.0, 6.0),
    type(None): (-math.inf, math.inf),
}
"""Between which values an activation leaves what it is given."""


class Layers(nn.Sequential):
    """Layers one behind the other; a normalisation and an activation behind it are computed together."""

    def forward(self, input: Tensor) -> Tensor:
        layers, x = list(self), input
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.BatchNorm2d):
                x = normalise(x, layer, layers.pop(0) if layers and type(layers[0]) in BOUNDS else None)
            else:
                x = layer(x)
        return x


def normalise(x: Tensor, norm: nn.Module, activation: nn.Module | None) -> Tensor:
    """activation(norm(x)) for x [N, C, H, W]."""
    modules = [norm] if activation is None else [norm, activation]
    if type(norm) is nn.BatchNorm2d and norm.affine and uses_batch(norm) and _fits(x, modules):
        low, high = BOUNDS[type(activation)]
        return _Normalise.apply(x, norm.weight, norm.bias, norm, low, high)  # pyright: ignore[reportReturnType]
    return norm(x) if activation is None else activation(norm(x))


class DepthwiseConv2d(nn.Conv2d):
    """A convolution of every channel by itself, padded to keep the size; no bias until evaluation folds one in."""

    def __init__(self, channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # input [N, C, H, W]
        if self.bias is None and self.kernel_size[0] in (3, 5) and _fits(input, []):
            typed = input.to(type_of_maps(input))
            return _Depthwise.apply(typed, self.weight, self.stride[0])  # pyright: ignore[reportReturnType]
        return super().forward(input)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, low: float, high: float
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = _rows(x)
        mean, variance = torch.ops.candid_layers.moments(rows)
        ctx.folded = fold(norm, mean, variance, len(rows))
        ctx.low, ctx.high = low, high
        ctx.save_for_backward(x)
        out = torch.ops.candid_layers.norm(rows, ctx.folded.scale, ctx.folded.shift, low, high)
        return _planes(out, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,), folded = ctx.saved_tensors, ctx.folded
        rows, of_rows = _rows(x), _rows(gradient.contiguous(memory_format=torch.channels_last))
        arguments = (of_rows, rows, folded.scale, folded.shift, folded.mean)
        sums = torch.ops.candid_layers.norm_sums(*arguments, ctx.low, ctx.high)
        corrections = folded.corrections(*sums, len(rows))
        of_x = torch.ops.candid_layers.norm_backward(*arguments, *corrections, ctx.low, ctx.high)
        return _planes(of_x, x.shape), *folded.gradients(*sums), None, None, None


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.stride = stride
        ctx.save_for_backward(x, weight)
        padding, channels = weight.shape[-1] // 2, len(weight)
        with torch.autocast(x.device.type, enabled=False):
            return torch.conv2d(x, weight.to(x.dtype), None, stride, padding, groups=channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return *torch.ops.candid_layers.depthwise_backward(gradient, x, weight, ctx.stride), None


def _fits(x: Tensor, modules: list[nn.Module]) -> bool:
    """Whether the pieces can take the place of modules, and be of use: they are for training."""
    if x.device.type != "cpu" or x.dim() != 4 or not torch.is_grad_enabled() or type_of_maps(x) not in TYPES:
        return False
    if x.numel() <= x.shape[1] or not x.is_contiguous(memory_format=torch.channels_last):
        return False  # of a single value, or of none, torch's layers complain
    return not is_watched(modules) and _load() is None


def _rows(x: Tensor) -> Tensor:
    """[N, C, H, W] as [P, C]: a view, in channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _planes(rows: Tensor, shape: torch.Size) -> Tensor:
    """[P, C] as [N, C, H, W]."""
    number, channels, height, width = shape
    return rows.view(number, height, width, channels).permute(0, 3, 1, 2)


@cache
def _load() -> str | None:
    """Load the compiled pieces, once a process; what is wrong, or None."""
    problem = load_pieces("layer_pieces.cpp")
    if problem is None:
        _register_shapes()
    return problem


def _register_shapes() -> None:
    """Tell torch what the compiled pieces give and do, for those who only count."""

    def vectors(maps: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
        return maps.new_empty(maps.shape[1], dtype=dtype), maps.new_empty(maps.shape[1], dtype=dtype)

    def like(maps: Tensor, *_: object) -> Tensor:
        return torch.empty_like(maps)

    def both(gradient: Tensor, maps: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        return torch.empty_like(maps), torch.empty_like(weight)

    shapes: dict[str, Callable[..., object]] = {
        "moments": vectors,
        "norm": like,
        "norm_sums": vectors,
        "norm_backward": like,
        "depthwise_backward": both,
    }
    for name, shape in shapes.items():
        torch.library.register_fake(f"candid_layers::{name}", shape)

    @register_flop_formula(torch.ops.candid_layers.depthwise_backward)
    def _(gradient: torch.Size, maps: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 4 * math.prod(gradient) * math.prod(weight[1:])
