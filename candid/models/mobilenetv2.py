"""MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov, Chen 2018, arXiv:1801.04381).

Layers: Table 2; blocks: Table 1 and figure 4d. `mobilenetv2-W` has W times the channels, except that the last
convolution keeps 1280 below 1 (section 4). From the authors' code, where the paper is silent: channels are
rounded to multiples of 8, dropout is 0.2, and all weights are normal with deviation 0.09, cut off at two of them.
Departures, as in torchvision and timm: padding is symmetric, where the authors' framework pads strided
convolutions only behind; normalisation adds 1e-5 to the variance, where the authors' code adds 1e-3.
`mobilenetv2-cifar` is our own, for images of 32 px: the stem and the stage of 24 channels have stride 1 instead
of 2, which leaves 4x4 maps.
Checked against torchvision and timm in tests/models/test_mobilenetv2.py.

Shapes: N images, C channels, H W pixels, D channels out, s stride, t expansion.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from candid.models.blocks import AnySize, conv_norm
from candid.models.fused_layers import Layers

STAGES = (  # Table 2: expansion t, channels c, blocks n, stride s of the first of them
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


@dataclass(frozen=True)
class MobileNetV2Config(AnySize):
    """One row of `VARIANTS`."""

    width: float = 1.0  # alpha, the width multiplier
    stem: Literal["imagenet", "small"] = "imagenet"
    image_size: int = 224  # px
    dropout: float = 0.2  # before the head


def make_divisible(channels: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `channels`, and the next one where that is less than 90 % of it."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * channels else nearest + divisor


class InvertedResidual(nn.Module):
    """Table 1: a 1x1 convolution to t times the channels, a depthwise 3x3, and a linear 1x1 to few channels."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        width = expansion * in_channels
        self.expand = Layers()
        if expansion > 1:
            self.expand.extend(conv_norm(in_channels, width, 1, activation=nn.ReLU6))
        self.filter = Layers(*conv_norm(width, width, 3, stride, depthwise=True, activation=nn.ReLU6))
        self.project = Layers(*conv_norm(width, out_channels, 1))
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        residual = self.expand(x)  # [N, t * C, H, W]
        residual = self.filter(residual)  # [N, t * C, H / s, W / s]
        residual = self.project(residual)  # [N, D, H / s, W / s]
        return x + residual if self.has_shortcut else residual


def truncated_normal_(weight: Tensor, std: float) -> None:
    """Fills with normal draws within two deviations, by the inverse of their distribution; torch's own is slower."""
    within = math.erf(math.sqrt(2))  # the share of a normal distribution within two deviations
    with torch.no_grad():
        weight.uniform_(-within, within).erfinv_().mul_(math.sqrt(2) * std)


class MobileNetV2(nn.Module):
    """Logits [N, num_classes] from a stem, stages of inverted residuals, a 1x1 convolution, an average and a head."""

    def __init__(self, config: MobileNetV2Config, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = make_divisible(32 * config.width, 8)
        stride = 2 if config.stem == "imagenet" else 1
        self.stem = Layers(*conv_norm(in_channels, channels, 3, stride, activation=nn.ReLU6))
        self.stages = nn.Sequential()
        for expansion, out_channels, num_blocks, stride in STAGES:
            stage, out_channels = nn.Sequential(), make_divisible(out_channels * config.width, 8)
            for index in range(num_blocks):
                keeps_size = index > 0 or (config.stem == "small" and len(self.stages) == 1)
                stage.append(InvertedResidual(channels, out_channels, expansion, 1 if keeps_size else stride))
                channels = out_channels
            self.stages.append(stage)
        features = make_divisible(1280 * max(1.0, config.width), 8)
        self.last = Layers(*conv_norm(channels, features, 1, activation=nn.ReLU6))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(features, num_classes)
        nn.init.zeros_(self.head.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                truncated_normal_(module.weight, std=0.09)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.stem(x)  # [N, 32 * width, H / 2, W / 2]; with the small stem H, W
        x = self.stages(x)  # [N, 320 * width, H / 32, W / 32]; with the small stem H / 8, W / 8
        x = self.last(x).mean(dim=(2, 3))  # [N, 1280], more if width > 1
        return self.head(self.dropout(x))  # [N, num_classes]


VARIANTS = {
    "mobilenetv2-0.35": MobileNetV2Config(0.35),
    "mobilenetv2-0.5": MobileNetV2Config(0.5),
    "mobilenetv2-0.75": MobileNetV2Config(0.75),
    "mobilenetv2-1.0": MobileNetV2Config(1.0),
    "mobilenetv2-1.3": MobileNetV2Config(1.3),
    "mobilenetv2-1.4": MobileNetV2Config(1.4),
    "mobilenetv2-cifar": MobileNetV2Config(1.0, "small", 32),
}
