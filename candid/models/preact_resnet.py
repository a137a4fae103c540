"""Pre-activation ResNet (He et al. 2016, arXiv:1603.05027), Wide ResNet (Zagoruyko, Komodakis 2016, arXiv:1605.07146).

Blocks: figure 4 (e), for CIFAR: 54 basic blocks with free shortcuts in `preact-resnet110`, 18 and 111 bottlenecks a
stage in 164 and 1001 (its 10.2 M in the paper are without the normalisations, with which it has 10.3 M). From the
authors' code: the first 1x1 convolution has the stride, and where the shape changes, and in the first block, the first
activation feeds the shortcut too. `wrn-L-k`: Table 1 with N = (L - 4) / 6. Dropout between the convolutions (section
2.4) is off, as in most of the paper's networks; 0.3 on CIFAR and 0.4 on SVHN where it is on.
Initialisation: He et al. 2015 (arXiv:1502.01852), fan out, linear bias 0, as in the code of both papers.
`preact-resnet18-cifar` is in neither paper: what is known as PreActResNet18, with ImageNet's widths and without
activations at both ends (before the first shortcut and before the classifier), which the paper wants.
Checked against timm's blocks and a functional form of the authors' code in tests/models/test_preact_resnet.py.
Shapes: N images, C channels, H W pixels, D channels out, E inner channels of a bottleneck, s stride.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from candid.models.blocks import AnySize, draw_he_fan_out
from candid.models.convolution import Conv2d
from candid.models.fused_layers import Layers, normalise
from candid.models.resnet import PaddingShortcut


@dataclass(frozen=True)
class PreActResNetConfig(AnySize):
    """One row of `VARIANTS`."""

    blocks_per_stage: tuple[int, ...] = (18, 18, 18)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    widths: tuple[int, ...] = (16, 32, 64)
    stem_channels: int = 16
    shortcut: Literal["projection", "padding"] = "projection"
    activates_ends: bool = True  # BN and ReLU before the first block splits, and before the average
    image_size: int = 32  # px


@dataclass(frozen=True)
class WideResNetConfig(PreActResNetConfig):
    """One row of `VARIANTS` that has a place for dropout: between the convolutions of each block."""

    dropout: float = 0.0


class Block(nn.Module, ABC):
    """A shortcut plus a residual branch that begins with BN and ReLU and ends with a convolution."""

    expansion: int  # D of the block for each channel of the stage's width

    def __init__(self, config: PreActResNetConfig, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif config.shortcut == "padding":
            self.shortcut = PaddingShortcut(out_channels - in_channels, stride)
        else:
            self.shortcut = Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
        self.activates_shortcut = not isinstance(self.shortcut, nn.Identity)

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """The residual branch behind the first activation: [N, C, H, W] to [N, D, H / s, W / s]."""

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        activated = normalise(x, self.norm1, self.relu)
        shortcut = self.shortcut(activated if self.activates_shortcut else x)  # [N, D, H / s, W / s]
        return self.residual(activated) + shortcut


class BasicBlock(Block):
    """Two 3x3 convolutions of `width` channels."""

    expansion = 1

    def __init__(self, config: PreActResNetConfig, in_channels: int, width: int, stride: int) -> None:
        super().__init__(config, in_channels, width, stride)
        self.conv1 = Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(config.dropout) if isinstance(config, WideResNetConfig) else nn.Identity()
        self.conv2 = Conv2d(width, width, kernel_size=3, padding=1, bias=False)

    def residual(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.conv1(x)  # [N, D, H / s, W / s]
        return self.conv2(self.dropout(normalise(x, self.norm2, self.relu)))


class Bottleneck(Block):
    """A 1x1 convolution to `width` channels, a 3x3, and a 1x1 to four times as many."""

    expansion = 4

    def __init__(self, config: PreActResNetConfig, in_channels: int, width: int, stride: int) -> None:
        super().__init__(config, in_channels, width * self.expansion, stride)
        self.conv1 = Conv2d(in_channels, width, kernel_size=1, stride=stride, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = Conv2d(width, width * self.expansion, kernel_size=1, bias=False)

    def residual(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.conv1(x)  # [N, E, H / s, W / s]
        x = self.conv2(normalise(x, self.norm2, self.relu))
        return self.conv3(normalise(x, self.norm3, self.relu))  # [N, D, H / s, W / s]


class PreActResNet(nn.Module):
    """Logits [N, num_classes] from a convolution, stages of blocks, an activation, a global average and a head."""

    def __init__(self, config: PreActResNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = config.stem_channels
        self.stem = Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        block = Bottleneck if config.block == "bottleneck" else BasicBlock
        self.stages = nn.Sequential()
        for width, num_blocks in zip(config.widths, config.blocks_per_stage, strict=True):
            stage = nn.Sequential()
            stride = 2 if len(self.stages) > 0 else 1
            for _ in range(num_blocks):
                stage.append(block(config, channels, width, stride))
                channels, stride = width * block.expansion, 1
            self.stages.append(stage)
        first = next(module for module in self.modules() if isinstance(module, Block))
        first.activates_shortcut |= config.activates_ends
        self.last = Layers(nn.BatchNorm2d(channels), nn.ReLU()) if config.activates_ends else nn.Identity()
        self.head = nn.Linear(channels, num_classes)
        nn.init.zeros_(self.head.bias)
        draw_he_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.stages(self.stem(x))  # [N, D, H / 4, W / 4]; `preact-resnet18-cifar` H / 8, W / 8
        x = self.last(x).mean(dim=(2, 3))  # [N, D]
        return self.head(x)  # [N, num_classes]


def wide(depth: int, k: int) -> WideResNetConfig:
    """Table 1: 6n + 4 layers, n blocks for each of three stages, `k` times as wide as ResNet."""
    n = (depth - 4) // 6
    return WideResNetConfig((n, n, n), "basic", (16 * k, 32 * k, 64 * k))


VARIANTS = {
    "preact-resnet110": PreActResNetConfig((18, 18, 18), "basic", shortcut="padding"),
    "preact-resnet164": PreActResNetConfig((18, 18, 18)),
    "preact-resnet1001": PreActResNetConfig((111, 111, 111)),
    "preact-resnet18-cifar": PreActResNetConfig((2, 2, 2, 2), "basic", (64, 128, 256, 512), 64, activates_ends=False),
    "wrn-16-4": wide(16, 4),
    "wrn-16-8": wide(16, 8),
    "wrn-28-10": wide(28, 10),
    "wrn-40-4": wide(40, 4),
}
