"""A dense block that is exact, linear in memory, and faster than the obvious one.

The mathematics is that of the layers of densenet.py, whose parameters this reads; docs/dense-block.md derives it. All
maps of the block lie in one buffer: a layer reads a prefix of it and writes its own maps behind. Mean and variance of
a map are computed once, when it is made, for all layers that normalise it. What is normalised is computed again on
the way back, and what batch statistics contribute to a map's gradient is two numbers a channel, added up over its
readers and subtracted once (the three observations of docs/dense-block.md).

Shapes: N images, C channels, H W pixels, P = N * H * W, k growth rate, K channels of a bottleneck. Maps are matrices
[P, C], which is what channels-last memory holds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout

from candid.models.dense_pieces import COMPILED, Pieces, choose_pieces, describe_pieces
from candid.models.fusing import TYPES, FoldedNorm, fold, is_watched, type_of_maps, uses_batch, vector_type

Memory = Literal["auto", "plain", "shared", "recompute"]
"""What a block keeps for the way back: plain what its layers keep; shared the buffer and the bottlenecks' products;
recompute the buffer alone. auto is shared where that is known to be faster: on CPUs with a compiler."""

CONVOLUTION = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
"""Stride, padding, dilation, transposed, output padding, groups of every 3x3 convolution in a block."""


def choose_memory(memory: Memory, module: nn.Module, x: Tensor) -> Memory:
    """How a module with dense layers processes x [N, C, H, W]; never "auto".

    Plain wherever the layers themselves have to be called: for hooks on them, for tracers, for tensors without values,
    and for types of numbers that the pieces do not know.
    """
    if memory == "plain" or x.device.type == "meta" or type_of_maps(x) not in TYPES:
        return "plain"
    if x.numel() == x.shape[1] or x.numel() == 0:  # a single value has no variance, of which torch's layers complain
        return "plain"
    if is_watched(other for other in module.modules() if other is not module):
        return "plain"
    return fastest_memory(x.device) if memory == "auto" else memory


def fastest_memory(device: torch.device) -> Memory:
    """What auto comes to on a device."""
    return "shared" if describe_pieces(device) == COMPILED else "plain"


def run_dense_block(layers: Iterable[nn.Module], x: Tensor, memory: Memory) -> Tensor:
    """The maps [N, C + len(layers) * k, H, W] of a block, of which x [N, C, H, W] are the first.

    `memory` is shared or recompute. There are no gradients of gradients.
    """
    stack: list[Any] = list(layers)
    modules = [module for layer in stack for module in _modules(layer)]
    if torch.is_grad_enabled() or any(isinstance(module, nn.BatchNorm2d) and uses_batch(module) for module in modules):
        parameters = [parameter for module in modules for parameter in module.parameters()]
        return _DenseBlock.apply(x, stack, memory == "shared", *parameters)  # pyright: ignore[reportReturnType]
    return _infer(stack, x)


@dataclass(frozen=True)
class _Pass:
    """One way through a block, forward or back."""

    pieces: Pieces
    images: tuple[int, int, int]
    """N, H, W."""
    dtype: torch.dtype
    """Of the maps, as autocast has it."""

    @classmethod
    def of(cls, x: Tensor, dtype: torch.dtype) -> "_Pass":
        number, _, height, width = x.shape
        return cls(choose_pieces(x.device), (number, height, width), dtype)

    @property
    def pixels(self) -> int:
        number, height, width = self.images
        return number * height * width

    def buffer(self, x: Tensor, channels: int) -> Tensor:
        """Room for maps [P, channels], with those of x [N, C, H, W] at the beginning."""
        maps = x.new_empty(self.pixels, channels, dtype=self.dtype)
        maps[:, : x.shape[1]] = self.rows(x)
        return maps

    def rows(self, maps: Tensor) -> Tensor:
        """[N, C, H, W] as [P, C], without a copy where the memory is channels last."""
        return maps.permute(0, 2, 3, 1).reshape(self.pixels, maps.shape[1])

    def planes(self, rows: Tensor) -> Tensor:
        """[P, C] as [N, C, H, W] in channels-last memory."""
        number, height, width = self.images
        return rows.view(number, height, width, rows.shape[1]).permute(0, 3, 1, 2)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight [K, C, 1, 1] of a 1x1 convolution as [K, C] in the maps' type."""
        return weight.to(self.dtype).reshape(weight.shape[:2])

    def convolve(self, rows: Tensor, weight: Tensor) -> Tensor:
        """The 3x3 convolution of [P, C] with [k, C, 3, 3]: [P, k]."""
        typed = weight.to(self.dtype)
        return self.rows(torch.ops.aten.convolution(self.planes(rows), typed, None, *CONVOLUTION))

    def convolve_back(self, gradient: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of `rows` [P, C] and of `weight` from that of the convolution's result [P, k]."""
        of_rows, of_weight, _ = torch.ops.aten.convolution_backward(
            self.planes(gradient), self.planes(rows), weight.to(self.dtype), None, *CONVOLUTION, [True, True, False]
        )
        return self.rows(of_rows), of_weight


class _Kept(NamedTuple):
    """The large tensors that a layer keeps for the way back, beside the block's buffer."""

    conv1: Tensor
    conv2: Tensor | None
    """Weights of the convolutions; a layer without bottleneck has one."""
    product: Tensor | None
    """The result of the bottleneck's conv1 [P, K], if it is kept."""
    product_mask: Tensor | None
    maps_mask: Tensor | None
    """Which values of the product and of the layer's own maps dropout has left, bool; None without dropout."""


class _DenseBlock(torch.autograd.Function):
    """The layers of a block as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Any], keeps_products: bool, *parameters: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        way = _Pass.of(x, type_of_maps(x))
        with torch.autocast(x.device.type, enabled=False):
            maps, norms, kept = _learn(way, layers, x, keeps_products)
        output = way.planes(maps)
        ctx.way, ctx.norms, ctx.in_channels = way, norms, x.shape[1]
        ctx.dropout = layers[0].dropout.p
        ctx.save_for_backward(output, *(tensor for layer in kept for tensor in layer))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        output, *flat = ctx.saved_tensors
        kept = [_Kept(*flat[first : first + len(_Kept._fields)]) for first in range(0, len(flat), len(_Kept._fields))]
        with torch.autocast(output.device.type, enabled=False):
            back = _WayBack(ctx.way, ctx.way.rows(output), ctx.way.rows(gradient), ctx.dropout)
            for norms, layer in zip(reversed(ctx.norms), reversed(kept), strict=True):
                back.through(norms, layer)
            of_x = ctx.way.planes(back.take(ctx.in_channels)) if ctx.needs_input_grad[0] else None
        return of_x, None, None, *back.of_parameters


def _learn(
    way: _Pass, layers: Sequence[Any], x: Tensor, keeps_products: bool
) -> tuple[Tensor, list[tuple[FoldedNorm, ...]], list[_Kept]]:
    """The way forward with batch statistics: all maps [P, C + len(layers) * k], and what the way back needs."""
    width, growth = x.shape[1], _growth(layers[0])
    maps = way.buffer(x, width + len(layers) * growth)
    mean, variance = (maps.new_empty(maps.shape[1], dtype=vector_type(way.dtype)) for _ in range(2))
    mean[:width], variance[:width] = way.pieces.moments(maps[:, :width])
    all_norms: list[tuple[FoldedNorm, ...]] = []
    all_kept: list[_Kept] = []
    for layer in layers:
        p = layer.dropout.p if layer.dropout.training else 0.0
        norm1, read = fold(layer.norm1, mean[:width], variance[:width], way.pixels), maps[:, :width]
        if _has_bottleneck(layer):
            product = way.pieces.norm_product(read, norm1.scale, norm1.shift, way.matrix(layer.conv1.weight), None)
            product_mask = _drop(way, product, p)
            norm2 = fold(layer.norm2, *way.pieces.moments(product), way.pixels)
            norms, last = (norm1, norm2), layer.conv2
            normal = way.pieces.norm_relu(product, norm2.scale, norm2.shift)
        else:
            norms, last, product, product_mask = (norm1,), layer.conv1, None, None
            normal = way.pieces.norm_relu(read, norm1.scale, norm1.shift)
        new = way.convolve(normal, last.weight)
        maps_mask = _drop(way, new, p)
        place = slice(width, width + growth)
        mean[place], variance[place] = way.pieces.append(new, maps[:, place])
        conv2 = layer.conv2.weight if _has_bottleneck(layer) else None
        all_kept.append(_Kept(layer.conv1.weight, conv2, product if keeps_products else None, product_mask, maps_mask))
        all_norms.append(norms)
        width += growth
    return maps, all_norms, all_kept


class _WayBack:
    """The gradients of a block, from its last layer to its first."""

    def __init__(self, way: _Pass, maps: Tensor, gradient: Tensor, p: float) -> None:
        """`gradient` [P, C] is that of all maps [P, C]; `p` the probability with which dropout dropped."""
        self.way, self.maps, self.p = way, maps, p
        self.gradients = gradient.clone(memory_format=torch.contiguous_format)  # grows by what the layers read
        self.width = maps.shape[1]
        self.mean, self.constant, self.factor = (
            maps.new_zeros(self.width, dtype=vector_type(maps.dtype)) for _ in range(3)
        )
        self.of_parameters: list[Tensor] = []

    def take(self, num_channels: int) -> Tensor:
        """The gradient [P, num_channels] of the last maps, which all their readers have added to by now."""
        place = slice(self.width - num_channels, self.width)
        self.width -= num_channels
        return self.way.pieces.correct(
            self.gradients[:, place], self.maps[:, place], self.mean[place], self.constant[place], self.factor[place]
        )

    def through(self, norms: tuple[FoldedNorm, ...], kept: _Kept) -> None:
        """Go back through the last layer that is left."""
        new = self.take(len(kept.conv1 if kept.conv2 is None else kept.conv2))
        if kept.maps_mask is not None:
            new *= self._kept_values(kept.maps_mask)
        read, total = self.maps[:, : self.width], self.gradients[:, : self.width]
        if kept.conv2 is None:
            of_layer = self._through_plain(new, norms[0], kept, read, total)
        else:
            of_layer = self._through_bottleneck(new, norms[0], norms[1], kept, read, total)
        self.of_parameters = [*of_layer, *self.of_parameters]

    def _through_plain(self, new: Tensor, norm: FoldedNorm, kept: _Kept, read: Tensor, total: Tensor) -> list[Tensor]:
        normal = self.way.pieces.norm_relu(read, norm.scale, norm.shift)
        of_normal, of_conv = self.way.convolve_back(new, normal, kept.conv1)
        sums = self.way.pieces.norm_backward(of_normal, read, norm.scale, norm.shift, norm.mean, total)
        self._note(norm, *sums)
        return [*norm.gradients(*sums), of_conv]

    def _through_bottleneck(
        self, new: Tensor, norm1: FoldedNorm, norm2: FoldedNorm, kept: _Kept, read: Tensor, total: Tensor
    ) -> list[Tensor]:
        pieces, weight1 = self.way.pieces, self.way.matrix(kept.conv1)
        mask = None if kept.product_mask is None else self._kept_values(kept.product_mask)
        product = kept.product
        if product is None:
            product = pieces.norm_product(read, norm1.scale, norm1.shift, weight1, None)
            product = product if mask is None else product * mask
        normal = pieces.norm_relu(product, norm2.scale, norm2.shift)
        of_normal, of_conv2 = self.way.convolve_back(new, normal, _present(kept.conv2))
        del normal
        sums2 = pieces.norm_sums(of_normal, product, norm2.scale, norm2.shift, norm2.mean)
        of_conv1, *sums1 = pieces.norm_product_backward(
            of_normal,
            product,
            norm2.scale,
            norm2.shift,
            norm2.mean,
            *norm2.corrections(*sums2, self.way.pixels),
            mask,
            read,
            norm1.scale,
            norm1.shift,
            norm1.mean,
            weight1,
            total,
        )
        self._note(norm1, *sums1)
        return [
            *norm1.gradients(*sums1),
            of_conv1.view_as(kept.conv1),
            *norm2.gradients(*sums2),
            of_conv2,
        ]

    def _note(self, norm: FoldedNorm, sum_d: Tensor, sum_dx: Tensor) -> None:
        """Remember what the statistics that a layer read take off the maps' gradients."""
        if norm.of_batch:
            constant, factor = norm.corrections(sum_d, sum_dx, self.way.pixels)
            self.constant[: self.width] += constant
            self.factor[: self.width] += factor
            self.mean[: self.width] = norm.mean

    def _kept_values(self, mask: Tensor) -> Tensor:
        """What dropout multiplied by, in the maps' type."""
        return mask.to(self.maps.dtype).div_(1 - self.p)


def _infer(layers: Sequence[Any], x: Tensor) -> Tensor:
    """All maps of a block whose statistics are fixed, for nobody's gradient: the second norm folds into the product."""
    way, width, growth = _Pass.of(x, type_of_maps(x)), x.shape[1], _growth(layers[0])
    with torch.autocast(x.device.type, enabled=False):
        maps = way.buffer(x, width + len(layers) * growth)
        for layer in layers:
            norm1, read = _fold_running(layer.norm1, way), maps[:, :width]
            if _has_bottleneck(layer):
                norm2, last = _fold_running(layer.norm2, way), layer.conv2
                weight = layer.conv1.weight.flatten(1).to(norm2.scale.dtype) * norm2.scale[:, None]
                normal = way.pieces.norm_product(read, norm1.scale, norm1.shift, weight.to(way.dtype), norm2.shift)
            else:
                normal, last = way.pieces.norm_relu(read, norm1.scale, norm1.shift), layer.conv1
            maps[:, width : width + growth] = way.convolve(normal, last.weight)
            width += growth
    return way.planes(maps)


def _fold_running(norm: nn.BatchNorm2d, way: _Pass) -> FoldedNorm:
    mean, variance = (_present(vector).to(vector_type(way.dtype)) for vector in (norm.running_mean, norm.running_var))
    return fold(norm, mean, variance, way.pixels)


def _drop(way: _Pass, rows: Tensor, p: float) -> Tensor | None:
    """Drop values of [P, C] in place, the same that nn.Dropout would have drawn; which are left, bool."""
    if p == 0:
        return None
    factors = way.rows(dropout(torch.ones_like(way.planes(rows)), p))
    rows *= factors
    return factors != 0


def _modules(layer: Any) -> list[nn.Module]:
    """The modules of a layer that have parameters, in the order of the data."""
    return [layer.norm1, layer.conv1, *([layer.norm2, layer.conv2] if _has_bottleneck(layer) else [])]


def _has_bottleneck(layer: nn.Module) -> bool:
    return hasattr(layer, "conv2")


def _growth(layer: Any) -> int:
    return (layer.conv2 if _has_bottleneck(layer) else layer.conv1).out_channels


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("A normalisation has no running statistics; expected some in evaluation. Train it first.")
    return tensor
