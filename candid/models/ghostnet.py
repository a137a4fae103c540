"""GhostNet (Han, Wang, Tian, Guo, Xu, Xu 2020, arXiv:1911.11907).

Layers: Table 1, with its ghost modules of s = 2, d = 3; bottlenecks: figure 3. `ghostnet-W` has W times the channels.
From the authors' PyTorch code (timm's is the same network), where the paper is silent: depthwise kernels of 5 px in
some rows, channels rounded to multiples of 4, squeeze-and-excite to a quarter with a hard sigmoid, a depthwise and a
1x1 convolution in shortcuts that change the channels, dropout 0.2. Initialisation: He et al. 2015, fan out, as in
the first release of that code; the last one, and timm, leave torch's default.
Departures, also the authors': the 1x1 convolution to 1280 is not widened by W, and has a bias instead of normalisation.
`-cifar` is our own, for images of 32 px: the stem and the bottleneck of 48 and 24 channels have stride 1 instead of
2 (so no depthwise convolution between its ghost modules), which leaves 4x4 maps.
Checked against timm in tests/models/test_ghostnet.py.

Shapes: N images, C channels, H W pixels, E expanded channels, D channels out, s stride.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, cat, nn

from candid.models.blocks import AnySize, conv_norm, draw_he_fan_out
from candid.models.convolution import Conv2d
from candid.models.fused_layers import Layers
from candid.models.mobilenetv2 import make_divisible

BOTTLENECKS = (  # Table 1: kernel of depthwise convolutions in px, #exp, #out, SE, stride
    (3, 16, 16, False, 1),
    (3, 48, 24, False, 2),
    (3, 72, 24, False, 1),
    (5, 72, 40, True, 2),
    (5, 120, 40, True, 1),
    (3, 240, 80, False, 2),
    (3, 200, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 184, 80, False, 1),
    (3, 480, 112, True, 1),
    (3, 672, 112, True, 1),
    (5, 672, 160, True, 2),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
    (5, 960, 160, False, 1),
    (5, 960, 160, True, 1),
)


@dataclass(frozen=True)
class GhostNetConfig(AnySize):
    """One row of `VARIANTS`."""

    width: float = 1.0  # alpha, the width multiplier
    stem: Literal["imagenet", "small"] = "imagenet"
    image_size: int = 224  # px
    dropout: float = 0.2  # before the head


class GhostModule(nn.Module):
    """Figure 2b: half the maps by a 1x1 convolution, the other half by a depthwise 3x3 from the first."""

    def __init__(self, in_channels: int, out_channels: int, activation: type[nn.Module] | None) -> None:
        super().__init__()
        half = out_channels // 2  # channels are multiples of 4
        self.primary = Layers(*conv_norm(in_channels, half, 1, activation=activation))
        self.cheap = Layers(*conv_norm(half, half, 3, depthwise=True, activation=activation))

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        intrinsic = self.primary(x)  # [N, D / 2, H, W]
        return cat((intrinsic, self.cheap(intrinsic)), dim=1)  # [N, D, H, W]


class SqueezeExcite(nn.Module):
    """Every channel times a factor in [0, 1] that depends on the averages of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = make_divisible(channels / 4, 4)
        self.reduce = Conv2d(channels, squeezed, kernel_size=1)
        self.expand = Conv2d(squeezed, channels, kernel_size=1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        averages = x.mean(dim=(2, 3), keepdim=True)  # [N, C, 1, 1]
        factors = self.gate(self.expand(self.reduce(averages).relu()))  # [N, C, 1, 1]
        return x * factors  # [N, C, H, W]


class GhostBottleneck(nn.Module):
    """Figure 3: a ghost module that expands and a linear one that shrinks, added to a shortcut."""

    def __init__(
        self, in_channels: int, expanded: int, out_channels: int, kernel_size: int, has_se: bool, stride: int
    ) -> None:
        super().__init__()
        self.ghost1 = GhostModule(in_channels, expanded, nn.ReLU)
        self.downsample = Layers()
        if stride > 1:
            self.downsample.extend(conv_norm(expanded, expanded, kernel_size, stride, depthwise=True))
        self.se = SqueezeExcite(expanded) if has_se else nn.Identity()
        self.ghost2 = GhostModule(expanded, out_channels, activation=None)
        self.shortcut = Layers()
        if stride > 1 or in_channels != out_channels:
            self.shortcut.extend(conv_norm(in_channels, in_channels, kernel_size, stride, depthwise=True))
            self.shortcut.extend(conv_norm(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        residual = self.se(self.downsample(self.ghost1(x)))  # [N, E, H / s, W / s]
        return self.ghost2(residual) + self.shortcut(x)  # [N, D, H / s, W / s]


class GhostNet(nn.Module):
    """Logits [N, num_classes] from a stem, ghost bottlenecks, a 1x1 convolution, an average, another and a head."""

    def __init__(self, config: GhostNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = make_divisible(16 * config.width, 4)
        stride = 2 if config.stem == "imagenet" else 1
        self.stem = Layers(*conv_norm(in_channels, channels, 3, stride, activation=nn.ReLU))
        self.bottlenecks = nn.Sequential()
        for kernel_size, expanded, out_channels, has_se, stride in BOTTLENECKS:
            expanded, out_channels = (make_divisible(c * config.width, 4) for c in (expanded, out_channels))
            stride = 1 if config.stem == "small" and len(self.bottlenecks) == 1 else stride
            self.bottlenecks.append(GhostBottleneck(channels, expanded, out_channels, kernel_size, has_se, stride))
            channels = out_channels
        width = make_divisible(960 * config.width, 4)
        self.last = Layers(*conv_norm(channels, width, 1, activation=nn.ReLU))
        self.hidden = Conv2d(width, 1280, kernel_size=1)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(1280, num_classes)
        draw_he_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.stem(x)  # [N, 16 * width, H / 2, W / 2]; with the small stem H, W
        x = self.bottlenecks(x)  # [N, 160 * width, H / 32, W / 32]; with the small stem H / 8, W / 8
        x = self.last(x).mean(dim=(2, 3), keepdim=True)  # [N, 960 * width, 1, 1]
        x = self.hidden(x).relu().flatten(1)  # [N, 1280]
        return self.head(self.dropout(x))  # [N, num_classes]


VARIANTS = {
    "ghostnet-0.5": GhostNetConfig(0.5),
    "ghostnet-1.0": GhostNetConfig(1.0),
    "ghostnet-1.3": GhostNetConfig(1.3),
    "ghostnet-1.0-cifar": GhostNetConfig(1.0, "small", 32),
}
