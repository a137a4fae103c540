"""The networks of the usual script: torchvision's and timm's with stems for 32x32 pictures, in plain operations.

None of it is candid's code, so that what makes candid's networks faster does not make these so. Tests compare their
parameters with those of candid's networks of the same names.
"""

from collections.abc import Callable

import timm
import timm.models.densenet
import torchvision
from torch import Tensor, nn
from torchvision.models import DenseNet, MobileNetV2, ShuffleNetV2


def resnet18() -> nn.Module:
    """torchvision's, with a 3x3 convolution of stride 1 as its stem."""
    return with_small_resnet_stem(torchvision.models.resnet18(num_classes=10))


def with_small_resnet_stem(network: nn.Module) -> nn.Module:
    """torchvision's or timm's ResNet with a 3x3 convolution of stride 1 as its stem."""
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return network


def densenet() -> nn.Module:
    """torchvision's, in the size that is known as densenet_cifar."""
    return small_densenet(12, (6, 12, 24, 16))


def small_densenet(growth_rate: int, layers_per_block: tuple[int, ...], *, efficient: bool = False) -> nn.Module:
    """torchvision's DenseNet with a 3x3 convolution of stride 1 to 2k maps as its stem."""
    channels = 2 * growth_rate
    network = DenseNet(
        growth_rate, layers_per_block, num_init_features=channels, num_classes=10, memory_efficient=efficient
    )
    return with_small_densenet_stem(network, channels)


def with_small_densenet_stem(network: DenseNet | timm.models.densenet.DenseNet, channels: int) -> nn.Module:
    """torchvision's or timm's DenseNet with a 3x3 convolution of stride 1 as its stem."""
    network.features.conv0 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
    for name in {"norm0", "relu0", "pool0"} & {name for name, _ in network.features.named_children()}:
        setattr(network.features, name, nn.Identity())
    return network


def mobilenetv2() -> nn.Module:
    """torchvision's, with stride 1 in the stem and the stage of 24 channels."""
    stages = [[1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    network = MobileNetV2(num_classes=10, inverted_residual_setting=stages)
    network.features[0][0] = nn.Conv2d(3, 32, 3, padding=1, bias=False)
    return network


def shufflenetv2() -> nn.Module:
    """torchvision's, with a 3x3 convolution of stride 1 as its stem."""
    network = ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes=10)
    network.conv1[0], network.maxpool = nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.Identity()
    return network


def ghostnet() -> nn.Module:
    """timm's as it is for 224 px, which leaves a single pixel of 32 px."""
    return timm.create_model("ghostnet_100", num_classes=10)


class WideBlock(nn.Module):
    """Pre-activation: BN, ReLU, 3x3 convolution, twice, beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        changes = in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps of `out_channels` channels."""
        activated = self.bn1(x).relu()
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.conv2(self.bn2(self.conv1(activated)).relu())


def wide_resnet() -> nn.Module:
    """WRN-16-4, as neither torchvision nor timm has it."""
    widths = [16, 64, 128, 256]
    blocks = [
        WideBlock(before if index == 0 else width, width, stride if index == 0 else 1)
        for before, width, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        for index in range(2)
    ]
    ends = [nn.BatchNorm2d(256), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), *blocks, *ends)


USUAL: dict[str, Callable[[], nn.Module]] = {
    "resnet18-cifar": resnet18,
    "densenet-cifar": densenet,
    "mobilenetv2-cifar": mobilenetv2,
    "wrn-16-4": wide_resnet,
    "shufflenetv2-1.0-cifar": shufflenetv2,
    "ghostnet-1.0": ghostnet,
}
"""By candid's name for the same network."""
