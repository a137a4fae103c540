"""Layers that CPUs train faster together, or on a way of their own; they compute what torch's layers compute.

Batch normalisation and the activation behind it go through the maps once for the statistics and once for the result,
and twice on the way back. Maxima of 2x2 pixels are found again on the way back, where torch keeps eight bytes for each.
For strided depthwise convolutions in bf16, torch has no fast way back. All of them are C++ (layer_pieces.cpp), for maps
in channels-last memory; anywhere else the layers themselves are called.

Shapes: N images, C channels, H W pixels, P = N * H * W; vectors [C] as in fusing.py.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import max_pool2d
from torch.utils.flop_counter import register_flop_formula

from candid.models.compiling import load_pieces
from candid.models.fusing import TYPES, as_planes, as_rows, fold, is_watched, type_of_maps, uses_batch, vector_type

ACTIVATIONS: dict[type, str] = {type(None): "none", nn.ReLU: "relu", nn.ReLU6: "relu6", nn.GELU: "gelu"}
"""What the pieces call the activations that they know."""


class Layers(nn.Sequential):
    """Layers one behind the other; a normalisation and an activation behind it are computed together."""

    def forward(self, input: Tensor) -> Tensor:
        layers, x = list(self), input
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.BatchNorm2d):
                x = normalise(x, layer, layers.pop(0) if layers and _name(layers[0]) else None)
            else:
                x = layer(x)
        return x


def normalise(x: Tensor, norm: nn.Module, activation: nn.Module | None) -> Tensor:
    """activation(norm(x)) for x [N, C, H, W]."""
    modules = [norm] if activation is None else [norm, activation]
    name = _name(activation)
    if type(norm) is nn.BatchNorm2d and norm.affine and uses_batch(norm) and name and _fits(x, modules):
        return _Normalise.apply(x, norm.weight, norm.bias, norm, name)  # pyright: ignore[reportReturnType]
    return norm(x) if activation is None else activation(norm(x))


def shift(x: Tensor, bias: Tensor, activation: nn.Module) -> Tensor:
    """activation(x + bias) for x [N, C, H, W] and bias [C]."""
    name = _name(activation)
    if name and bias.dtype == vector_type(x.dtype) and _fits(x, [activation]):
        return _Shift.apply(x, bias, name)  # pyright: ignore[reportReturnType]
    return activation(x + bias.to(x.dtype).view(-1, 1, 1))


class HalvingPool(nn.MaxPool2d):
    """The maxima of 2x2 pixels; a last line or column that is left over does not count."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, input: Tensor) -> Tensor:  # input [N, C, H, W]
        if _fits(input, []) and min(input.shape[2:]) > 1:
            return _Pool.apply(input)  # pyright: ignore[reportReturnType]
        return max_pool2d(input, 2)  # [N, C, H / 2, W / 2], rounded down


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
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, activation: str) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = as_rows(x)
        mean, variance = torch.ops.candid_layers.moments(rows)
        ctx.folded = fold(norm, mean, variance, len(rows))
        ctx.activation = activation
        ctx.save_for_backward(x)
        out = torch.ops.candid_layers.norm(rows, ctx.folded.scale, ctx.folded.shift, activation)
        return as_planes(out, x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,), folded = ctx.saved_tensors, ctx.folded
        rows, of_rows = as_rows(x), as_rows(gradient.contiguous(memory_format=torch.channels_last))
        arguments = (of_rows, rows, folded.scale, folded.shift, folded.mean)
        sums = torch.ops.candid_layers.norm_sums(*arguments, ctx.activation)
        corrections = folded.corrections(*sums, len(rows))
        of_x = torch.ops.candid_layers.norm_backward(*arguments, *corrections, ctx.activation)
        return as_planes(of_x, x.shape), *folded.gradients(*sums), None, None


class _Shift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, activation: str) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.activation = activation
        ctx.save_for_backward(x, bias)
        return as_planes(torch.ops.candid_layers.norm(as_rows(x), torch.ones_like(bias), bias, activation), x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x, bias), of_x = ctx.saved_tensors, None
        scale, zeros = torch.ones_like(bias), torch.zeros_like(bias)
        rows, of_rows = as_rows(x), as_rows(gradient.contiguous(memory_format=torch.channels_last))
        arguments = (of_rows, rows, scale, bias, zeros)
        of_bias, _ = torch.ops.candid_layers.norm_sums(*arguments, ctx.activation)
        if ctx.needs_input_grad[0]:
            of_x = torch.ops.candid_layers.norm_backward(*arguments, zeros, zeros, ctx.activation)
            of_x = as_planes(of_x, x.shape)
        return of_x, of_bias, None


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return torch.ops.candid_layers.pool(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return torch.ops.candid_layers.pool_backward(gradient, *ctx.saved_tensors)


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


def _name(activation: nn.Module | None) -> str | None:
    """What the pieces call an activation; None where they do not know it."""
    if isinstance(activation, nn.GELU) and activation.approximate != "none":
        return None
    return ACTIVATIONS.get(type(activation))


def _fits(x: Tensor, modules: list[nn.Module]) -> bool:
    """Whether the pieces can take the place of modules, and be of use: they are for training."""
    if x.device.type != "cpu" or x.dim() != 4 or not torch.is_grad_enabled() or type_of_maps(x) not in TYPES:
        return False
    if x.numel() <= x.shape[1] or not x.is_contiguous(memory_format=torch.channels_last):
        return False  # of a single value, or of none, torch's layers complain
    return not is_watched(modules) and _load() is None


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
        dtype = vector_type(maps.dtype)
        return maps.new_empty(maps.shape[1], dtype=dtype), maps.new_empty(maps.shape[1], dtype=dtype)

    def like(maps: Tensor, *_: object) -> Tensor:
        return torch.empty_like(maps)

    def both(gradient: Tensor, maps: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        return torch.empty_like(maps), torch.empty_like(weight)

    def pooled(maps: Tensor) -> Tensor:
        number, channels, height, width = maps.shape
        return maps.new_empty(number, height // 2, width // 2, channels).permute(0, 3, 1, 2)

    def unpooled(gradient: Tensor, maps: Tensor) -> Tensor:
        return torch.empty_like(maps)

    shapes: dict[str, Callable[..., object]] = {
        "moments": vectors,
        "norm": like,
        "norm_sums": vectors,
        "norm_backward": like,
        "pool": pooled,
        "pool_backward": unpooled,
        "depthwise_backward": both,
    }
    for name, shape in shapes.items():
        torch.library.register_fake(f"candid_layers::{name}", shape)

    @register_flop_formula(torch.ops.candid_layers.depthwise_backward)
    def _(gradient: torch.Size, maps: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 4 * math.prod(gradient) * math.prod(weight[1:])
