"""Convolutional highway network (Srivastava, Greff, Schmidhuber 2015, arXiv:1505.00387 and 1507.06228).

`highway19`: the network of section 3.3.2 of the second paper and its table for CIFAR (92.40 %, mean 92.31 %).
"Highway B" of the table before (92.28 %) has another, unpublished fully connected layer instead of the 1x1
convolution and average. The papers give equation 3, ReLU as H, plain layers where the width changes, negative
gate biases and 2.3 M parameters; widths, pooling, dropout, the bias of -2 and the initialisation (He et al. 2015,
arXiv:1502.01852, fan in) are those of the authors' Caffe files (github.com/flukeskywalker/highway-networks).
Departures: a logit for each class, where their head has 100 on CIFAR-10 too; He also in the first convolution,
which in theirs has a standard deviation of 1 (0.05 stands under a key that Caffe does not read); pooling rounds
down, which changes nothing at 32 px; the average spans the whole map, so that any size works.
Checked against a functional form of those files in tests/models/test_highway.py.

Shapes: N images, C channels, H W pixels.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from candid.models.convolution import Conv2d


@dataclass(frozen=True)
class HighwayConfig:
    """One row of `VARIANTS`."""

    widths: tuple[int, ...] = (32, 80, 128)  # channels of each stage
    layers_per_stage: tuple[int, ...] = (5, 6, 6)  # the first of a stage is plain
    last_width: int = 100  # channels of the 1x1 convolution before the average
    gate_bias: float = -2.0  # b_T in the paper, at the start: gates begin nearly closed
    image_size: int = 32  # px
    dropout: float = 0.2  # on the image, after each pooling and before the head

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel; each pooling rounds down."""
        return 2 ** (len(self.widths) - 1)


class HighwayLayer(nn.Module):
    """Equation 3: a gate T in [0, 1] mixes the block state H, where it is open, with the input, where it is closed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.state = Conv2d(channels, channels, kernel_size=3, padding=1)  # W_H, b_H
        self.gate = Conv2d(channels, channels, kernel_size=3, padding=1)  # W_T, b_T

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        gate = self.gate(x).sigmoid()  # [N, C, H, W]
        return self.state(x).relu() * gate + x * (1 - gate)


class Stage(nn.Module):
    """A plain layer that changes the width, then highway layers that keep it."""

    def __init__(self, in_channels: int, width: int, num_layers: int, dropout: float, pooled: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.conv = Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.layers = nn.Sequential(*(HighwayLayer(width) for _ in range(num_layers - 1)))

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.dropout(self.pool(x))  # [N, C, H / 2, W / 2]; in the first stage H, W
        return self.layers(self.conv(x).relu())  # [N, width, H / 2, W / 2]


class Highway(nn.Module):
    """Logits [N, num_classes] from stages, a 1x1 convolution, a global average and a linear head."""

    def __init__(self, config: HighwayConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = in_channels
        self.stages = nn.Sequential()
        for width, num_layers in zip(config.widths, config.layers_per_stage, strict=True):
            self.stages.append(Stage(channels, width, num_layers, config.dropout, pooled=len(self.stages) > 0))
            channels = width
        self.conv = Conv2d(channels, config.last_width, kernel_size=1)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.last_width, num_classes)
        for name, value in self.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(value, config.gate_bias if name.endswith("gate.bias") else 0.0)
            else:
                nn.init.kaiming_normal_(value, nonlinearity="relu")
        nn.init.normal_(self.head.weight, std=0.05)

    def forward(self, x: Tensor) -> Tensor:  # x [N, in_channels, H, W]
        x = self.stages(x)  # [N, widths[-1], H / 4, W / 4]
        x = self.conv(x).relu().mean(dim=(2, 3))  # [N, last_width]
        return self.head(self.dropout(x))  # [N, num_classes]


VARIANTS = {
    "highway19": HighwayConfig(),
}
