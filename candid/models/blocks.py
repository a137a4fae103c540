"""What three or more families are made of: the mobile nets, for now."""

from torch import nn


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = None,
) -> list[nn.Module]:
    """A convolution that only its stride makes smaller, normalisation, and an activation unless that is None."""
    padding = kernel_size // 2
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    norm = nn.BatchNorm2d(out_channels)
    return [conv, norm] if activation is None else [conv, norm, activation(inplace=True)]
