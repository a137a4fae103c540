"""ResNet (He, Zhang, Ren, Sun 2016, arXiv:1512.03385).

ImageNet networks: Table 1, with projections where the shape changes (option B). `-cifar` with a depth of
6n + 2: section 4.2, with shortcuts free of parameters (option A). Initialisation: He et al. 2015
(arXiv:1502.01852), fan out. `resnet18-notes` is resnet18 for images of 96 px.
Departures: in a bottleneck the 3x3 convolution has the stride, not the first 1x1, as in torchvision
("ResNet v1.5"). `resnet18-cifar`, 34 and 50 are Table 1 with our small stem: one 3x3 convolution, no pooling.
Checked against torchvision and a functional form of section 4.2 in tests/models/test_resnet.py.

Shapes: N images, C channels, H W pixels, D channels out, s stride.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import pad


@dataclass(frozen=True)
class ResNetConfig:
    """One row of `VARIANTS`."""

    blocks_per_stage: tuple[int, ...] = (2, 2, 2, 2)
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["imagenet", "small"] = "imagenet"
    image_size: int = 224  # px
    widths: tuple[int, ...] = (64, 128, 256, 512)
    shortcut: Literal["projection", "padding"] = "projection"

    @property
    def smallest_image_size(self) -> int:
        """Side in px; every convolution and pooling is padded, so a single pixel survives them all."""
        return 1


class PaddingShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and zeros for channels that are new (behind the old ones)."""

    def __init__(self, num_new_channels: int, stride: int) -> None:
        super().__init__()
        self.num_new_channels = num_new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = x[:, :, :: self.stride, :: self.stride]  # [N, C, H / s, W / s]
        return pad(x, (0, 0, 0, 0, 0, self.num_new_channels))  # [N, D, H / s, W / s]


def make_shortcut(config: ResNetConfig, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity wherever shapes allow it; else what `config.shortcut` says."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if config.shortcut == "padding":
        return PaddingShortcut(out_channels - in_channels, stride)
    projection = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Figure 5, left: two 3x3 convolutions of `width` channels."""

    expansion = 1

    def __init__(self, config: ResNetConfig, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = make_shortcut(config, in_channels, width, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        residual = self.relu(self.norm1(self.conv1(x)))  # [N, D, H / s, W / s]
        residual = self.norm2(self.conv2(residual))
        return self.relu(residual + self.shortcut(x))  # [N, D, H / s, W / s]


class Bottleneck(nn.Module):
    """Figure 5, right: a 1x1 convolution to `width` channels, a 3x3, and a 1x1 to four times as many."""

    expansion = 4

    def __init__(self, config: ResNetConfig, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, kernel_size=1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = make_shortcut(config, in_channels, out_channels, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        residual = self.relu(self.norm1(self.conv1(x)))  # [N, D / 4, H, W]
        residual = self.relu(self.norm2(self.conv2(residual)))  # [N, D / 4, H / s, W / s]
        residual = self.norm3(self.conv3(residual))  # [N, D, H / s, W / s]
        return self.relu(residual + self.shortcut(x))


class ResNet(nn.Module):
    """Logits [N, num_classes] from a stem, stages of residual blocks, a global average and a linear head."""

    def __init__(self, config: ResNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = config.widths[0]
        side, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, side, stride, side // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1) if config.stem == "imagenet" else nn.Identity(),
        )
        block = Bottleneck if config.block == "bottleneck" else BasicBlock
        self.stages = nn.Sequential()
        for width, num_blocks in zip(config.widths, config.blocks_per_stage, strict=True):
            stage = nn.Sequential()
            for index in range(num_blocks):
                stride = 2 if index == 0 and len(self.stages) > 0 else 1
                stage.append(block(config, channels, width, stride))
                channels = width * block.expansion
            self.stages.append(stage)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.stem(x)  # [N, widths[0], H / 4, W / 4]; with the small stem H, W
        x = self.stages(x)  # [N, D, H / 32, W / 32]; `resnet20-cifar` and its like H / 4, W / 4
        x = x.mean(dim=(2, 3))  # [N, D]
        return self.head(x)  # [N, num_classes]


def cifar(depth: int) -> ResNetConfig:
    """Section 4.2: 6n + 2 layers, n blocks for each of three stages."""
    n = (depth - 2) // 6
    return ResNetConfig((n, n, n), "basic", "small", 32, widths=(16, 32, 64), shortcut="padding")


VARIANTS = {
    "resnet18": ResNetConfig((2, 2, 2, 2)),
    "resnet34": ResNetConfig((3, 4, 6, 3)),
    "resnet50": ResNetConfig((3, 4, 6, 3), "bottleneck"),
    "resnet101": ResNetConfig((3, 4, 23, 3), "bottleneck"),
    "resnet152": ResNetConfig((3, 8, 36, 3), "bottleneck"),
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
}
