"""DenseNet (Huang, Liu, van der Maaten, Weinberger 2017, arXiv:1608.06993).

ImageNet: Table 1, and 161 (k = 48) from an earlier version of it. CIFAR: section 3, `densenet-L-k` plain and
`densenet-bc-L-k` with bottlenecks and compression; stems of 16 and 2k channels give the counts of Table 2.
The wide `densenet-bc-40-k` are in the authors' repository (github.com/liuzhuang13/DenseNet), except k = 12.
Initialisation: He et al. 2015, fan out, linear bias 0, as in the authors' code.
Departures: our small stem, one 3x3 convolution to 2k, in `densenet121-cifar` and its like; `densenet-notes`
compresses without bottlenecks; `densenet-speed`, ours, is shallow and wide, begins with whitening and halves the side
before its first block. Checked against torchvision and a functional form of section 3 in tests/models/.
Shapes: N images, C channels, H W pixels, k growth rate, theta compression.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, cat, nn

from candid.models.blocks import draw_he_fan_out
from candid.models.convolution import Conv2d
from candid.models.dense_block import Memory, choose_memory, run_dense_block
from candid.models.fused_layers import HalvingPool, normalise
from candid.models.whitening import WhiteningConvolution


@dataclass(frozen=True)
class DenseNetConfig:
    """One row of `VARIANTS`."""

    growth_rate: int = 32  # k in the paper
    layers_per_block: tuple[int, ...] = (6, 12, 24, 16)
    stem_channels: int = 64
    stem: Literal["imagenet", "small", "whitening"] = "imagenet"
    image_size: int = 224  # px
    bottleneck: bool = True  # a 1x1 convolution to 4k maps before each 3x3
    compression: float = 0.5  # theta in the paper: the share of maps that a transition keeps
    dropout: float = 0.0  # after each convolution except the stem; the paper has 0.2 without augmentation
    memory: Memory = "auto"  # what is kept for the way back; the mathematics is the same

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel; transitions round down, the padded stem rounds up."""
        last_halvings = 2 ** (len(self.layers_per_block) - 1)
        match self.stem:
            case "imagenet":
                return 4 * last_halvings - 3
            case "small":
                return last_halvings
            case "whitening":
                return 2 * last_halvings + 1


class PlainLayer(nn.Module):
    """k new maps from all maps before: BN, ReLU, 3x3 convolution."""

    def __init__(self, config: DenseNetConfig, in_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = Conv2d(in_channels, config.growth_rate, kernel_size=3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        return self.dropout(self.conv1(self.relu(self.norm1(x))))  # [N, k, H, W]


class BottleneckLayer(nn.Module):
    """k new maps from all maps before: BN, ReLU, 1x1 convolution to 4k, BN, ReLU, 3x3 convolution."""

    def __init__(self, config: DenseNetConfig, in_channels: int) -> None:
        super().__init__()
        k = config.growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = Conv2d(in_channels, 4 * k, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * k)
        self.conv2 = Conv2d(4 * k, k, kernel_size=3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.dropout(self.conv1(self.relu(self.norm1(x))))  # [N, 4k, H, W]
        return self.dropout(self.conv2(self.relu(self.norm2(x))))  # [N, k, H, W]


class DenseBlock(nn.Module):
    """Layers that each read the block's input and the maps of all layers before them."""

    def __init__(self, config: DenseNetConfig, num_layers: int, in_channels: int) -> None:
        super().__init__()
        layer = BottleneckLayer if config.bottleneck else PlainLayer
        widths = (in_channels + index * config.growth_rate for index in range(num_layers))
        self.layers = nn.ModuleList(layer(config, width) for width in widths)
        self.memory: Memory = config.memory

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        memory = choose_memory(self.memory, self, x)
        if memory != "plain":
            return run_dense_block(self.layers, x, memory)
        for layer in self.layers:
            x = cat((x, layer(x)), dim=1)  # k channels more each time
        return x  # [N, C + len(layers) * k, H, W]


class Transition(nn.Module):
    """Between two blocks: BN, ReLU, 1x1 convolution, 2x2 average."""

    def __init__(self, config: DenseNetConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(config.dropout)
        self.pool = nn.AvgPool2d(2)
        self.memory: Memory = config.memory

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        drops = self.dropout.training and self.dropout.p > 0
        if not drops and choose_memory(self.memory, self, x) != "plain":
            return self.conv(
                self.pool(normalise(x, self.norm, self.relu))
            )  # averages go through a 1x1 convolution unchanged
        return self.pool(self.dropout(self.conv(self.relu(self.norm(x)))))  # [N, theta * C, H / 2, W / 2]


def build_stem(config: DenseNetConfig, in_channels: int) -> nn.Sequential:
    """[N, in_channels, H, W] to [N, stem_channels, H / s, W / s]; s is 4 for ImageNet, 1 small, 2 behind whitening."""
    channels = config.stem_channels
    match config.stem:
        case "imagenet":
            conv = Conv2d(in_channels, channels, kernel_size=7, stride=2, padding=3, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))
        case "small":
            return nn.Sequential(Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False))
        case "whitening":
            white = WhiteningConvolution(in_channels)
            conv = Conv2d(white.out_channels, channels, kernel_size=3, padding=1, bias=False)
            return nn.Sequential(white, nn.ReLU(), conv, HalvingPool())


class DenseNet(nn.Module):
    """Logits [N, num_classes] from a stem, dense blocks, transitions, a global average and a linear head."""

    def __init__(self, config: DenseNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = config.stem_channels
        self.stem = build_stem(config, in_channels)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for num_layers in config.layers_per_block:
            if len(self.blocks) > 0:
                kept = int(config.compression * channels)
                self.transitions.append(Transition(config, channels, kept))
                channels = kept
            self.blocks.append(DenseBlock(config, num_layers, channels))
            channels += num_layers * config.growth_rate
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        nn.init.zeros_(self.head.bias)
        draw_he_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.blocks[0](self.stem(x))  # [N, C, H / s, W / s]
        for transition, block in zip(self.transitions, self.blocks[1:], strict=True):
            x = block(transition(x))  # [N, theta * C + num_layers * k, H / 2, W / 2] each time
        return self.head(self.norm(x).relu().mean(dim=(2, 3)))  # [N, C], then [N, num_classes]


VARIANTS = {
    "densenet121": DenseNetConfig(32, (6, 12, 24, 16)),
    "densenet169": DenseNetConfig(32, (6, 12, 32, 32)),
    "densenet201": DenseNetConfig(32, (6, 12, 48, 32)),
    "densenet264": DenseNetConfig(32, (6, 12, 64, 48)),
    "densenet161": DenseNetConfig(48, (6, 12, 36, 24), 96),
    "densenet121-cifar": DenseNetConfig(32, (6, 12, 24, 16), 64, "small", 32),
    "densenet169-cifar": DenseNetConfig(32, (6, 12, 32, 32), 64, "small", 32),
    "densenet201-cifar": DenseNetConfig(32, (6, 12, 48, 32), 64, "small", 32),
    "densenet161-cifar": DenseNetConfig(48, (6, 12, 36, 24), 96, "small", 32),
    "densenet-cifar": DenseNetConfig(12, (6, 12, 24, 16), 24, "small", 32),
    "densenet-40-12": DenseNetConfig(12, (12, 12, 12), 16, "small", 32, bottleneck=False, compression=1.0),
    "densenet-100-12": DenseNetConfig(12, (32, 32, 32), 16, "small", 32, bottleneck=False, compression=1.0),
    "densenet-100-24": DenseNetConfig(24, (32, 32, 32), 16, "small", 32, bottleneck=False, compression=1.0),
    "densenet-bc-100-12": DenseNetConfig(12, (16, 16, 16), 24, "small", 32),
    "densenet-bc-250-24": DenseNetConfig(24, (41, 41, 41), 48, "small", 32),
    "densenet-bc-190-40": DenseNetConfig(40, (31, 31, 31), 80, "small", 32),
    "densenet-bc-40-12": DenseNetConfig(12, (6, 6, 6), 24, "small", 32),
    "densenet-bc-40-36": DenseNetConfig(36, (6, 6, 6), 72, "small", 32),
    "densenet-bc-40-48": DenseNetConfig(48, (6, 6, 6), 96, "small", 32),
    "densenet-bc-40-60": DenseNetConfig(60, (6, 6, 6), 120, "small", 32),
    "densenet-speed": DenseNetConfig(64, (2, 4, 4), 64, "whitening", 32, bottleneck=False),
    "densenet-notes": DenseNetConfig(32, (4, 4, 4, 4), 64, "imagenet", 96, bottleneck=False),
}
