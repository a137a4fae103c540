"""The network of airbench (Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498).

Section 3.1: a whitening 2x2 convolution (section 3.2), three blocks of two 3x3 convolutions that each halve the side,
GELU, a maximum over what is left. Convolutions begin as the identity as far as their input goes (section 3.3).
Departures: the normalisation has gains, a maximum over any size left replaces the last 3x3 pooling (the same at
32 px), the head has a bias and begins small in place of the fixed factor 1/9 behind it.
Checked against a functional form of the paper in tests/models/test_airbench.py.
Shapes: N images, C channels, H W pixels, D channels out.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from candid.models.convolution import Conv2d
from candid.models.fused_layers import HalvingPool, normalise
from candid.models.whitening import WhiteningConvolution


@dataclass(frozen=True)
class AirbenchConfig:
    """One row of `VARIANTS`."""

    widths: tuple[int, ...] = (64, 256, 256)
    image_size: int = 32  # px

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel, after the first convolution and the halvings."""
        return 2 ** len(self.widths) + 1


def conv_identity(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 3x3 convolution whose first outputs begin as its inputs."""
    conv = Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:in_channels])
    return conv


class Block(nn.Module):
    """Convolution, 2x2 maximum, normalisation, GELU; the same again without the maximum."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv_identity(in_channels, out_channels)
        self.pool = HalvingPool()
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv_identity(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = normalise(self.pool(self.conv1(x)), self.norm1, self.activation)  # [N, D, H / 2, W / 2]
        return normalise(self.conv2(x), self.norm2, self.activation)


class Airbench(nn.Module):
    """Logits [N, num_classes] from a whitening convolution, blocks, a global maximum and a linear head."""

    def __init__(self, config: AirbenchConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = WhiteningConvolution(in_channels)
        self.activation = nn.GELU()
        self.blocks = nn.Sequential()
        channels = self.stem.out_channels
        for width in config.widths:
            self.blocks.append(Block(channels, width))
            channels = width
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.blocks(self.stem(x, self.activation))  # [N, D, H / 8, W / 8], rounded down
        return self.head(x.amax(dim=(2, 3)))  # [N, D], then [N, num_classes]


VARIANTS = {
    "airbench94": AirbenchConfig(),
}
