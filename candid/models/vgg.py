"""VGG (Simonyan and Zisserman 2015, arXiv:1409.1556).

Layers: Table 1, columns A, B, D and E; `-bn` adds Ioffe and Szegedy 2015 (arXiv:1502.03167) after each
convolution. `vgg11-notes` is A for grey images, `vgg11-notes-small` the same with an eighth of all widths, also
the linear ones. `vgg16-bn-cifar` is the form of the repository kuangliu/pytorch-cifar: the convolutions of D and
one linear layer, without dropout; a `dropout` of yours comes before that layer.
Initialisation: linear layers as in section 3.1, N(0, 0.01); convolutions He et al. 2015 (arXiv:1502.01852),
fan out, as in torchvision, whose published weights began so without the paper's pre-training of A.
Departure: features are averaged to 7x7, as in torchvision, which at 224 px changes nothing and lets other
sizes in; `vgg16-bn-cifar` averages to 1x1. Checked against torchvision in tests/models/test_vgg.py.

Shapes: N images, C channels, H W pixels, s `average_side`.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from candid.models.blocks import draw_he_fan_out
from candid.models.convolution import Conv2d


@dataclass(frozen=True)
class VGGConfig:
    """One row of `VARIANTS`."""

    convolutions_per_stage: tuple[int, ...] = (1, 1, 2, 2, 2)
    batch_norm: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # maps of each stage
    linear_widths: tuple[int, ...] = (4096, 4096)
    average_side: int = 7  # px
    image_size: int = 224  # px
    dropout: float = 0.5  # on what each hidden linear layer gives

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel: each stage halves it."""
        return 2 ** len(self.widths)


class VGG(nn.Module):
    """Logits [N, num_classes] from stages of 3x3 convolutions that end in a pooling, and linear layers."""

    def __init__(self, config: VGGConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = in_channels
        self.features = nn.Sequential()
        for width, num_convolutions in zip(config.widths, config.convolutions_per_stage, strict=True):
            for _ in range(num_convolutions):
                self.features.append(Conv2d(channels, width, kernel_size=3, padding=1))
                if config.batch_norm:
                    self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU(inplace=True))
                channels = width
            self.features.append(nn.MaxPool2d(2))
        self.average = nn.AdaptiveAvgPool2d(config.average_side)
        channels *= config.average_side**2
        self.classifier = nn.Sequential()
        for width in config.linear_widths:
            self.classifier.extend([nn.Linear(channels, width), nn.ReLU(inplace=True), nn.Dropout(config.dropout)])
            channels = width
        if not config.linear_widths:
            self.classifier.append(nn.Dropout(config.dropout))
        self.head = nn.Linear(channels, num_classes)
        draw_he_fan_out(self)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:  # x [N, in_channels, H, W]
        x = self.features(x)  # [N, widths[0], H / 2, W / 2], ..., [N, widths[-1], H / 32, W / 32]
        x = self.average(x).flatten(1)  # [N, widths[-1] * s * s]
        return self.head(self.classifier(x))  # [N, linear_widths[-1]], then [N, num_classes]


A, B, D, E = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)  # columns of Table 1

VARIANTS = {
    "vgg11": VGGConfig(A),
    "vgg13": VGGConfig(B),
    "vgg16": VGGConfig(D),
    "vgg19": VGGConfig(E),
    "vgg11-bn": VGGConfig(A, batch_norm=True),
    "vgg13-bn": VGGConfig(B, batch_norm=True),
    "vgg16-bn": VGGConfig(D, batch_norm=True),
    "vgg19-bn": VGGConfig(E, batch_norm=True),
    "vgg11-notes": VGGConfig(A),
    "vgg11-notes-small": VGGConfig(A, widths=(8, 16, 32, 64, 64), linear_widths=(512, 512)),
    "vgg16-bn-cifar": VGGConfig(D, batch_norm=True, linear_widths=(), average_side=1, image_size=32, dropout=0.0),
}
