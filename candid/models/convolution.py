"""Convolutions of small maps as products of matrices, which CPUs compute faster than torch's convolutions.

torch reads all filters again for each picture. Where maps have a few pixels, that is most of the work: a step of 3x3
filters from 512 to 512 channels takes a third of the time as a product, the gradient of 1x1 filters down to a tenth.
The sums are the same ones in another order.

Shapes: N images, C channels in, D channels out, H W pixels, k side of a filter. Windows are rows [N * H * W, k * k * C]
of what a filter sees, which is the order of channels-last memory.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from candid.models.fusing import TYPES, as_planes, as_rows, type_of_maps

SMALL_MAPS, SMALL_MAPS_IN_FULL_PRECISION = 64, 16
"""Pixels of a map up to which products are faster."""
CACHE_BYTES = 2 * 2**20
"""Of filters: more do not stay in the processor's second-level cache from picture to picture."""


class Conv2d(nn.Conv2d):
    """torch's, with the same parameters; on CPUs, where maps are small, as products."""

    def forward(self, input: Tensor) -> Tensor:  # input [N, C, H, W]
        if not self._can_multiply(input):
            return super().forward(input)
        maps = input.to(type_of_maps(input))
        weight, bias = self.weight.to(maps.dtype), None if self.bias is None else self.bias.to(maps.dtype)
        multiplies = self.kernel_size == (1, 1) or weight.numel() * weight.element_size() > CACHE_BYTES
        if not multiplies and maps.dtype != torch.bfloat16:  # of full precision, only many filters are slow
            return super().forward(input)
        return _Convolve.apply(maps, weight, bias, self.stride[0], int(self.padding[0]), multiplies)  # pyright: ignore[reportReturnType]

    def _can_multiply(self, x: Tensor) -> bool:
        """Whether a product can take the layer's place, and may be of use."""
        side, stride, padding = self.kernel_size[0], self.stride[0], self.padding[0]
        if x.device.type != "cpu" or x.dim() != 4 or x.numel() == 0 or type_of_maps(x) not in TYPES:
            return False
        if torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return False
        plain = (side, side), (stride, stride), (padding, padding), (1, 1), 1, "zeros"
        if plain != (self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode):
            return False
        _, height, width = _size(x, side, stride, int(padding))
        fits = x.is_contiguous(memory_format=torch.channels_last)
        return fits and min(height, width) > 0 and height * width <= self._most_pixels(type_of_maps(x))

    def _most_pixels(self, dtype: torch.dtype) -> int:
        """Of maps that are small enough. A window is copied once for all filters, so there have to be some."""
        if dtype != torch.bfloat16:
            return SMALL_MAPS_IN_FULL_PRECISION
        return SMALL_MAPS if self.kernel_size == (1, 1) else min(SMALL_MAPS, self.out_channels // 4)


class _Convolve(torch.autograd.Function):
    """The gradient of the filters is a product; the result and the gradient of the maps are if `multiplies`."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, multiplies: bool
    ) -> Tensor:
        ctx.stride, ctx.padding, ctx.multiplies = stride, padding, multiplies
        ctx.save_for_backward(x, weight)
        if not multiplies:
            return torch.conv2d(x, weight, bias, stride, padding)
        windows, filters = _windows(x, weight.shape[-1], stride, padding), weight.permute(0, 2, 3, 1).flatten(1)
        rows = windows @ filters.t() if bias is None else torch.addmm(bias, windows, filters.t())
        number, height, width = _size(x, weight.shape[-1], stride, padding)
        return as_planes(rows, (number, len(weight), height, width))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        of_rows, side = as_rows(gradient), weight.shape[-1]
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _gradient_of_maps(gradient, x, weight, ctx.stride, ctx.padding, ctx.multiplies)
        if ctx.needs_input_grad[1]:
            of_filters = of_rows.t() @ _windows(x, side, ctx.stride, ctx.padding)
            of_weight = as_planes(of_filters, weight.shape)
        if ctx.needs_input_grad[2]:
            of_bias = of_rows.sum(dim=0)
        return of_x, of_weight, of_bias, None, None, None


def _gradient_of_maps(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, multiplies: bool
) -> Tensor:
    """[N, C, H, W]; for a stride of one it is a convolution too, with the filters turned by half a turn."""
    if not multiplies or stride > 1:
        shape = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
        return torch.ops.aten.convolution_backward(gradient, x, weight, None, *shape, [True, False, False])[0]
    windows = _windows(gradient, weight.shape[-1], 1, weight.shape[-1] - 1 - padding)
    turned = weight.flip(2, 3).permute(2, 3, 0, 1).reshape(-1, weight.shape[1])  # [k * k * D, C]
    return as_planes(windows @ turned, x.shape)


def _windows(x: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """[N * H * W, k * k * C] of x [N, C, ...], where H W are the pixels that a convolution leaves."""
    padded = pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding)).contiguous()
    by_image, by_line, by_pixel, _ = padded.stride()
    channels = padded.shape[-1]
    size = (*_size(x, side, stride, padding), side, side * channels)  # pixels of a line lie one behind the other
    strides = (by_image, stride * by_line, stride * by_pixel, by_line, 1)
    return padded.as_strided(size, strides).reshape(-1, side * side * channels)


def _size(x: Tensor, side: int, stride: int, padding: int) -> tuple[int, int, int]:
    """N H W of what a convolution makes of x [N, C, ...]."""
    height, width = ((pixels + 2 * padding - side) // stride + 1 for pixels in x.shape[2:])
    return len(x), height, width
