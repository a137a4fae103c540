"""What layers that are computed together have in common: batch normalisation, and when layers have to be called.

Shapes: C channels; vectors [C], in float32 or, for maps in float64, in float64.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

TYPES = (torch.float32, torch.float64, torch.bfloat16)
"""Of maps, as far as the compiled pieces know them."""


class FoldedNorm(NamedTuple):
    """A batch normalisation as maps * scale + shift; vectors [C]."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    rstd: Tensor
    """1 / sqrt(variance + eps)."""
    of_batch: bool
    """Whether mean and variance are the batch's own, so that the maps' gradient flows through them too."""

    def gradients(self, sum_d: Tensor, sum_dx: Tensor) -> tuple[Tensor, Tensor]:
        """Of the normalisation's weight and bias, from sums over pixels of d and of d * (maps - mean)."""
        return sum_dx * self.rstd, sum_d

    def corrections(self, sum_d: Tensor, sum_dx: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """What batch statistics take off the maps' gradient: a constant, and a factor of (maps - mean).

        Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3, with d the gradient of the normalised maps.
        """
        if not self.of_batch:
            return torch.zeros_like(sum_d), torch.zeros_like(sum_d)
        return self.scale * sum_d / pixels, self.scale * self.rstd.square() * sum_dx / pixels


def fold(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, pixels: int) -> FoldedNorm:
    """A normalisation of maps with these statistics, which move its running ones; by those where it is frozen."""
    of_batch = uses_batch(norm)
    running_mean, running_var = norm.running_mean, norm.running_var
    if running_mean is not None and running_var is not None:
        if not of_batch:
            mean, variance = (vector.to(mean.dtype, copy=True) for vector in (running_mean, running_var))
        elif norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (pixels / (pixels - 1))).to(running_var.dtype), momentum)
    rstd = (variance + norm.eps).rsqrt()
    scale = norm.weight.to(rstd.dtype) * rstd
    return FoldedNorm(scale, norm.bias.to(rstd.dtype) - mean * scale, mean, rstd, of_batch)


def uses_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether it normalises by the statistics of the batch."""
    return norm.training or norm.running_mean is None


def type_of_maps(x: Tensor) -> torch.dtype:
    """The type of a convolution's result: that of autocast, which leaves double alone."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def vector_type(dtype: torch.dtype) -> torch.dtype:
    """The type of vectors that belong to maps of a type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def as_rows(x: Tensor) -> Tensor:
    """[N, C, H, W] as [P, C], P = N * H * W: a view, in channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_planes(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """[P, C] as maps of `shape` [N, C, H, W] in channels-last memory."""
    number, channels, height, width = shape
    return rows.view(number, height, width, channels).permute(0, 3, 1, 2)


def is_watched(modules: Iterable[nn.Module]) -> bool:
    """Whether someone waits for calls of modules: by a hook on one of them, or a tracer for all."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return True
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks  # pyright: ignore[reportPrivateUsage]
        for module in modules
    )
