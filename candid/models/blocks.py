"""What three or more families are made of."""

from torch import nn

from candid.models.convolution import Conv2d
from candid.models.fused_layers import DepthwiseConv2d


class AnySize:
    """A config of networks whose convolutions and poolings are all padded, so that a single pixel survives them."""

    @property
    def smallest_image_size(self) -> int:
        """Side in px."""
        return 1


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    depthwise: bool = False,
    activation: type[nn.Module] | None = None,
) -> list[nn.Module]:
    """A convolution that only its stride makes smaller, normalisation, and an activation unless that is None."""
    if depthwise:
        conv = DepthwiseConv2d(in_channels, kernel_size, stride)
    else:
        conv = Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    norm = nn.BatchNorm2d(out_channels)
    return [conv, norm] if activation is None else [conv, norm, activation(inplace=True)]


def draw_he_fan_out(network: nn.Module) -> None:
    """Draws the weights of all convolutions as He et al. 2015 (arXiv:1502.01852, equation 14): fan out, for ReLU."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
