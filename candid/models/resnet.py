"""ResNet (He, Zhang, Ren, Sun 2016, arXiv:1512.03385), and what other papers built of its blocks.

ResNet: Table 1 with projections (option B); section 4.2 with free shortcuts (option A): `-cifar` with 6n + 2 layers.
ResNeXt (Xie et al. 2017, arXiv:1611.05431): Table 1, section 5.3. Wide ResNet for ImageNet (Zagoruyko and Komodakis
2016, arXiv:1605.07146): Table 8. Stochastic depth (Huang et al. 2016, arXiv:1603.09382): section 4; its 1202 layers
have the 19.4 M parameters of `resnet1202-cifar`, not the 10.2 M that DenseNet's Table 2 prints. Initialisation: He
et al. 2015 (arXiv:1502.01852), fan out. Departures: in a bottleneck the 3x3 convolution has the stride, not the first
1x1, as in torchvision ("ResNet v1.5"). `resnet18-cifar`, 34 and 50 are Table 1 with our small stem: one 3x3
convolution, no pooling; `resnet18-notes` is for 96 px; `resnext101-32x8d` and `wide-resnet101-2` are torchvision's.
A branch that stochastic depth skips has no gradients, so optimisers leave it alone; in the authors' code momentum and
weight decay still move it. Checked against torchvision, timm and functional forms of the papers in tests/models/.
Shapes: N images, C channels, H W pixels, D channels out, E inner channels of a bottleneck, s stride.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from candid.models.blocks import AnySize, draw_he_fan_out
from candid.models.convolution import Conv2d
from candid.models.fused_layers import Layers, normalise

Dilations = tuple[int, int]  # of a block's 3x3 convolutions: the one that has the stride, and any behind it


@dataclass(frozen=True)
class ResNetConfig(AnySize):
    """One row of `VARIANTS`; the last three fields are options that no paper of these networks uses."""

    blocks_per_stage: tuple[int, ...] = (2, 2, 2, 2)
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["imagenet", "small"] = "imagenet"
    image_size: int = 224  # px
    widths: tuple[int, ...] = (64, 128, 256, 512)
    shortcut: Literal["projection", "padding", "average"] = "projection"
    groups: int = 1  # C in ResNeXt, cardinality: of the 3x3 convolution in a bottleneck
    width_per_group: int = 64  # d in ResNeXt: inner channels of a bottleneck for every 64 of the stage's width
    last_survival: float = 1.0  # p_L in stochastic depth: how likely the last block keeps its residual branch
    zero_init_last_norm: bool = False  # every block begins as its shortcut (Goyal et al. 2017, arXiv:1706.02677)
    dilated_stages: tuple[int, ...] = ()  # stages, counted from 0, that dilate instead of striding
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d  # makes the layer for so many channels


class PaddingShortcut(nn.Module):
    """Option A: every `stride`-th pixel, or the mean of each square, and zeros for new channels behind the old ones."""

    def __init__(self, num_new_channels: int, stride: int, averages: bool = False) -> None:
        super().__init__()
        self.num_new_channels = num_new_channels
        self.stride = stride
        self.averages = averages

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        s = self.stride
        x = avg_pool2d(x, s, ceil_mode=True) if self.averages else x[:, :, ::s, ::s]  # [N, C, H / s, W / s]
        return pad(x, (0, 0, 0, 0, 0, self.num_new_channels))  # [N, D, H / s, W / s]


def make_shortcut(config: ResNetConfig, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity wherever shapes allow it; else what `config.shortcut` says."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if config.shortcut != "projection":
        return PaddingShortcut(out_channels - in_channels, stride, averages=config.shortcut == "average")
    projection = Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
    return Layers(projection, config.norm(out_channels))


class Block(nn.Module, ABC):
    """A shortcut and a residual branch, which training leaves out with the probability 1 - `survival`."""

    expansion: int  # D of the block for each channel of the stage's width
    last_norm: str  # name of the one that ends the residual branch
    shortcut: nn.Module
    relu: nn.ReLU
    survival = 1.0  # p_l in stochastic depth

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """The residual branch: [N, C, H, W] to [N, D, H / s, W / s]."""

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        if self.training and self.survival < 1 and torch.rand((), device="cpu") >= self.survival:
            return self.shortcut(x).relu()  # [N, D, H / s, W / s], one draw for all images of the batch
        residual = self.residual(x)  # [N, D, H / s, W / s]
        if not self.training and self.survival < 1:
            residual = residual * self.survival
        return self.relu(residual + self.shortcut(x))


class BasicBlock(Block):
    """Figure 5, left: two 3x3 convolutions of `width` channels."""

    expansion, last_norm = 1, "norm2"

    def __init__(self, config: ResNetConfig, in_channels: int, width: int, stride: int, dilations: Dilations) -> None:
        super().__init__()
        first, second = dilations
        self.conv1 = Conv2d(in_channels, width, 3, stride, padding=first, dilation=first, bias=False)
        self.norm1 = config.norm(width)
        self.conv2 = Conv2d(width, width, 3, padding=second, dilation=second, bias=False)
        self.norm2 = config.norm(width)
        self.shortcut = make_shortcut(config, in_channels, width, stride)
        self.relu = nn.ReLU(inplace=True)

    def residual(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = normalise(self.conv1(x), self.norm1, self.relu)  # [N, D, H / s, W / s]
        return normalise(self.conv2(x), self.norm2, None)


class Bottleneck(Block):
    """Figure 5, right: a 1x1 convolution to the inner channels, a 3x3, and a 1x1 to four times `width`."""

    expansion, last_norm = 4, "norm3"

    def __init__(self, config: ResNetConfig, in_channels: int, width: int, stride: int, dilations: Dilations) -> None:
        super().__init__()
        out_channels, d = width * self.expansion, dilations[0]
        inner = width * config.width_per_group // 64 * config.groups
        self.conv1 = Conv2d(in_channels, inner, kernel_size=1, bias=False)
        self.norm1 = config.norm(inner)
        self.conv2 = Conv2d(inner, inner, 3, stride, padding=d, dilation=d, groups=config.groups, bias=False)
        self.norm2 = config.norm(inner)
        self.conv3 = Conv2d(inner, out_channels, kernel_size=1, bias=False)
        self.norm3 = config.norm(out_channels)
        self.shortcut = make_shortcut(config, in_channels, out_channels, stride)
        self.relu = nn.ReLU(inplace=True)

    def residual(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = normalise(self.conv1(x), self.norm1, self.relu)  # [N, E, H, W]
        x = normalise(self.conv2(x), self.norm2, self.relu)  # [N, E, H / s, W / s]
        return normalise(self.conv3(x), self.norm3, None)  # [N, D, H / s, W / s]


class ResNet(nn.Module):
    """Logits [N, num_classes] from a stem, stages of residual blocks, a global average and a linear head."""

    def __init__(self, config: ResNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels, dilation = config.widths[0], 1
        side, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        self.stem = Layers(
            Conv2d(in_channels, channels, side, stride, side // 2, bias=False),
            config.norm(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1) if config.stem == "imagenet" else nn.Identity(),
        )
        block = Bottleneck if config.block == "bottleneck" else BasicBlock
        self.stages = nn.Sequential()
        for index, (width, num_blocks) in enumerate(zip(config.widths, config.blocks_per_stage, strict=True)):
            stage, stride, before = nn.Sequential(), 2 if index > 0 else 1, dilation
            if index in config.dilated_stages:
                stride, dilation = 1, dilation * stride
            for _ in range(num_blocks):
                stage.append(block(config, channels, width, stride, (before, dilation)))
                channels, stride, before = width * block.expansion, 1, dilation
            self.stages.append(stage)
        self.head = nn.Linear(channels, num_classes)
        draw_he_fan_out(self)
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        for number, one in enumerate(blocks, start=1):
            one.survival = 1 - number / len(blocks) * (1 - config.last_survival)
            if config.zero_init_last_norm:
                nn.init.zeros_(one.get_parameter(f"{one.last_norm}.weight"))

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.stem(x)  # [N, widths[0], H / 4, W / 4]; with the small stem H, W
        x = self.stages(x)  # [N, D, H / 32, W / 32]; `resnet20-cifar` and its like H / 4, W / 4
        x = x.mean(dim=(2, 3))  # [N, D]
        return self.head(x)  # [N, num_classes]


def cifar(depth: int, shortcut: Literal["padding", "average"] = "padding", last_survival: float = 1) -> ResNetConfig:
    """Section 4.2: 6n + 2 layers, n blocks for each of three stages."""
    n = (depth - 2) // 6
    return ResNetConfig((n, n, n), "basic", "small", 32, (16, 32, 64), shortcut, last_survival=last_survival)


VARIANTS = {
    "resnet18": ResNetConfig((2, 2, 2, 2)),
    "resnet34": ResNetConfig((3, 4, 6, 3)),
    "resnet50": ResNetConfig((3, 4, 6, 3), "bottleneck"),
    "resnet101": ResNetConfig((3, 4, 23, 3), "bottleneck"),
    "resnet152": ResNetConfig((3, 8, 36, 3), "bottleneck"),
    "resnext50-32x4d": ResNetConfig((3, 4, 6, 3), "bottleneck", groups=32, width_per_group=4),
    "resnext101-32x8d": ResNetConfig((3, 4, 23, 3), "bottleneck", groups=32, width_per_group=8),
    "resnext101-64x4d": ResNetConfig((3, 4, 23, 3), "bottleneck", groups=64, width_per_group=4),
    "wide-resnet50-2": ResNetConfig((3, 4, 6, 3), "bottleneck", width_per_group=128),
    "wide-resnet101-2": ResNetConfig((3, 4, 23, 3), "bottleneck", width_per_group=128),
    "resnet18-notes": ResNetConfig((2, 2, 2, 2), image_size=96),
    "resnet18-cifar": ResNetConfig((2, 2, 2, 2), "basic", "small", 32),
    "resnet34-cifar": ResNetConfig((3, 4, 6, 3), "basic", "small", 32),
    "resnet50-cifar": ResNetConfig((3, 4, 6, 3), "bottleneck", "small", 32),
    "resnet20-cifar": cifar(20),
    "resnet32-cifar": cifar(32),
    "resnet44-cifar": cifar(44),
    "resnet56-cifar": cifar(56),
    "resnet110-cifar": cifar(110),
    "resnet1202-cifar": cifar(1202),
    "stochastic-depth-resnet110": cifar(110, "average", last_survival=0.5),
    "stochastic-depth-resnet1202": cifar(1202, "average", last_survival=0.5),
    "resnext29-8x64d": ResNetConfig((3, 3, 3), "bottleneck", "small", 32, (64, 128, 256), groups=8),
    "resnext29-16x64d": ResNetConfig((3, 3, 3), "bottleneck", "small", 32, (64, 128, 256), groups=16),
}
