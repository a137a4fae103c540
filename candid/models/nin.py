"""NiN (Lin, Chen, Yan 2014, "Network in Network", arXiv:1312.4400).

Blocks: section 3.1, a convolution and two 1x1 convolutions with a ReLU after each, also the last (equation 2).
`nin`: section 4.2; the paper prints no widths, these and the initialisation (Gaussian of 0.05, biases 0) are
those of the authors' published configuration, whose poolings round up: 32, 16 and 8 px.
`nin-notes`: strides and widths of the authors' ImageNet network, for 10 classes; its initialisation, ours, is He
et al. 2015, fan in. As in `nin`, only the last layer has one map for each class: for other numbers of classes than
10, the two layers before it keep 10 maps.
Departures: none in `nin`.
Checked against functional forms of the paper and of the notes in tests/models/test_nin.py.

Shapes: N images, C channels, H W pixels, K classes.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from candid.models.convolution import Conv2d


class Block(NamedTuple):
    """One row of blocks: channels of its layers, and side, stride and padding of the first."""

    widths: tuple[int, ...]
    side: int
    stride: int
    padding: int


CIFAR_BLOCKS = (
    Block((192, 160, 96), 5, 1, 2),
    Block((192, 192, 192), 5, 1, 2),
    Block((192, 192), 3, 1, 1),  # and the head
)
NOTES_BLOCKS = (
    Block((96, 96, 96), 11, 4, 0),
    Block((256, 256, 256), 5, 1, 2),
    Block((384, 384, 384), 3, 1, 1),
    Block((10, 10), 3, 1, 1),  # and the head
)


@dataclass(frozen=True)
class NiNConfig:
    """One row of `VARIANTS`."""

    blocks: tuple[Block, ...] = CIFAR_BLOCKS
    image_size: int = 32  # px
    pooling_rounds_up: bool = True
    last_relu: bool = True  # after the head
    weight_std: float | None = 0.05  # None is that of He et al. 2015
    dropout: float = 0.5
    dropout_after_every_pooling: bool = True  # else after the last only

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel."""
        side = 1
        for block in reversed(self.blocks[:-1]):
            side = 2 * side if self.pooling_rounds_up else 2 * side + 1
            side = (side - 1) * block.stride + block.side - 2 * block.padding
        return side


class MLPConv(nn.Module):
    """A convolution and 1x1 convolutions, a ReLU after each: a small perceptron that slides over the image."""

    def __init__(self, block: Block, in_channels: int, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling
        self.conv = Conv2d(in_channels, block.widths[0], block.side, block.stride, block.padding)
        self.perceptron = nn.Sequential(nn.ReLU())
        for before, width in pairwise(block.widths):
            self.perceptron.extend([Conv2d(before, width, kernel_size=1), nn.ReLU()])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # x [N, C, H, W]
        hidden = self.conv(self.pooling(x))  # [N, widths[0], H / 2, W / 2]; without pooling H / stride, W / stride
        return hidden, self.perceptron(hidden)  # [N, widths[-1], H / 2, W / 2]; DSN reads the first


class NiNLayers(nn.Module):
    """The layers of NiN and of DSN."""

    def __init__(self, config: NiNConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for number, block in enumerate(config.blocks, start=1):
            pool = nn.MaxPool2d(3, stride=2, ceil_mode=config.pooling_rounds_up)
            drops = config.dropout_after_every_pooling or number == len(config.blocks)
            pooling = nn.Sequential(pool, nn.Dropout(config.dropout if drops else 0.0))
            self.blocks.append(MLPConv(block, in_channels, pooling if number > 1 else nn.Identity()))
            in_channels = block.widths[-1]
        self.head = Conv2d(in_channels, num_classes, kernel_size=1)
        self.last_activation = nn.ReLU() if config.last_relu else nn.Identity()
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)  # a bias
            elif config.weight_std is None:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.normal_(parameter, std=config.weight_std)

    def classify(self, x: Tensor) -> Tensor:  # x [N, C, H, W] of the last block
        """The mean of each class's map."""
        return self.last_activation(self.head(x)).mean(dim=(2, 3))  # [N, K, H, W], then [N, K]


class NiN(NiNLayers):
    """Logits [N, num_classes]: blocks, poolings between them, and the average of one map for each class."""

    def forward(self, x: Tensor) -> Tensor:  # x [N, in_channels, H, W]
        for block in self.blocks:
            _, x = block(x)  # `nin`: [N, 96, H, W], then [N, 192, H / 2, W / 2], then [N, 192, H / 4, W / 4]
        return self.classify(x)  # [N, K]


VARIANTS = {
    "nin": NiNConfig(),
    "nin-notes": NiNConfig(
        NOTES_BLOCKS, 224, pooling_rounds_up=False, weight_std=None, dropout_after_every_pooling=False
    ),
}
