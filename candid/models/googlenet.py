"""GoogLeNet (Szegedy et al. 2015, "Going Deeper with Convolutions", arXiv:1409.4842).

`googlenet`: Table 1, the response normalisations of figure 3 (constants, which the paper leaves out, of Krizhevsky
et al. 2012), auxiliary classifiers of section 5. Poolings round up, as Table 1's sides ask: 112, 56, 28, 14, 7 px.
`googlenet-bn` is what torchvision calls `googlenet`: batch normalisation (eps 0.001) in place of biases and response
normalisation, 3x3 in place of 5x5, a last pooling of 2x2, auxiliary averages to 4x4 at any size, dropout 0.2.
Departures: under 79 px the auxiliary averages shrink to the maps. `googlenet-notes`: 96 px, no response
normalisation, no dropout. `googlenet-cifar`: batch normalisation, our small stem, one 3x3 convolution, no dropout.
Initialisation: the paper is silent; ours is He et al. 2015, fan in, biases 0.
Checked against torchvision and a functional form of Table 1 in tests/models/test_googlenet.py.

Shapes: N images, C channels, H W pixels, D channels out, K classes, s stride.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, cat, nn

from candid.models.auxiliary import AuxiliaryLoss, SupervisedLogits
from candid.models.convolution import Conv2d


@dataclass(frozen=True)
class GoogLeNetConfig:
    """One row of `VARIANTS`."""

    form: Literal["paper", "torchvision"] = "paper"
    stem: Literal["imagenet", "small"] = "imagenet"
    image_size: int = 224  # px; in training, the paper's auxiliary classifiers fit this size only
    normalisation: Literal["response", "batch", "none"] = "response"
    auxiliary: bool = True
    auxiliary_loss: AuxiliaryLoss = AuxiliaryLoss(weight=0.3)
    dropout: float = 0.4  # before the head
    auxiliary_dropout: float = 0.7  # 0 where `dropout` is 0, which turns off all

    @property
    def side_of_4a(self) -> int:
        """Side in px of the maps that the auxiliary classifiers read."""
        return self.image_size // 2 if self.stem == "small" else (self.image_size + 1) // 16

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel; torchvision's last pooling spares that pixel."""
        if self.stem == "small":
            return 4
        return 15 if self.form == "torchvision" else 31


class ConvLayer(nn.Module):
    """A convolution, batch normalisation where the network has it, and a ReLU."""

    def __init__(
        self, config: GoogLeNetConfig, in_channels: int, out_channels: int, side: int, stride: int = 1
    ) -> None:
        super().__init__()
        batch_norm = config.normalisation == "batch"
        self.conv = Conv2d(in_channels, out_channels, side, stride, padding=side // 2, bias=not batch_norm)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        return self.norm(self.conv(x)).relu()  # [N, D, H / s, W / s]


def response_norm(config: GoogLeNetConfig) -> nn.Module:
    """Krizhevsky et al. 2012, section 3.3: n = 5, alpha = 1e-4 (which torch divides by n), beta = 0.75, k = 2."""
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, k=2) if config.normalisation == "response" else nn.Identity()


class Inception(nn.Module):
    """Figure 2b: 1x1, 3x3 and 5x5 convolutions and a pooling side by side; `widths` as in a row of Table 1."""

    def __init__(self, config: GoogLeNetConfig, in_channels: int, *widths: int) -> None:
        super().__init__()
        width1, reduce3, width3, reduce5, width5, width_pool = widths
        side = 3 if config.form == "torchvision" else 5
        self.branch1 = ConvLayer(config, in_channels, width1, 1)
        self.branch2 = nn.Sequential(ConvLayer(config, in_channels, reduce3, 1), ConvLayer(config, reduce3, width3, 3))
        self.branch3 = nn.Sequential(
            ConvLayer(config, in_channels, reduce5, 1), ConvLayer(config, reduce5, width5, side)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), ConvLayer(config, in_channels, width_pool, 1))

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        return cat((self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)), dim=1)  # [N, D, H, W]


class AuxiliaryClassifier(nn.Module):
    """Section 5: an average of 5x5 maps every 3, a 1x1 convolution, a linear layer, dropout and a head."""

    def __init__(self, config: GoogLeNetConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        window = min(5, config.side_of_4a)
        side = 4 if config.form == "torchvision" else (config.side_of_4a - window) // 3 + 1
        self.pool = nn.AdaptiveAvgPool2d(4) if config.form == "torchvision" else nn.AvgPool2d(window, stride=3)
        self.conv = ConvLayer(config, in_channels, 128, 1)
        self.linear = nn.Linear(128 * side**2, 1024)
        self.dropout = nn.Dropout(config.auxiliary_dropout if config.dropout > 0 else 0.0)
        self.head = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H / 16, W / 16]
        x = self.conv(self.pool(x)).flatten(1)  # [N, 128, 4, 4], then [N, 2048]; smaller where the images are
        return self.head(self.dropout(self.linear(x).relu()))  # [N, 1024], then [N, K]


class GoogLeNet(nn.Module):
    """Logits [N, num_classes] from a stem and nine inception modules; in training those of the auxiliaries too."""

    def __init__(self, config: GoogLeNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvLayer(config, in_channels, 64, 7, stride=2),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            response_norm(config),
            ConvLayer(config, 64, 64, 1),
            ConvLayer(config, 64, 192, 3),
            response_norm(config),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
        )
        if config.stem == "small":
            self.stem = nn.Sequential(ConvLayer(config, in_channels, 192, 3))
        self.inception3a = Inception(config, 192, 64, 96, 128, 16, 32, 32)
        self.inception3b = Inception(config, 256, 128, 128, 192, 32, 96, 64)
        self.pool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(config, 480, 192, 96, 208, 16, 48, 64)
        self.inception4b = Inception(config, 512, 160, 112, 224, 24, 64, 64)
        self.inception4c = Inception(config, 512, 128, 128, 256, 24, 64, 64)
        self.inception4d = Inception(config, 512, 112, 144, 288, 32, 64, 64)
        self.inception4e = Inception(config, 528, 256, 160, 320, 32, 128, 128)
        self.pool4 = nn.MaxPool2d(2 if config.form == "torchvision" else 3, stride=2, ceil_mode=True)
        self.inception5a = Inception(config, 832, 256, 160, 320, 32, 128, 128)
        self.inception5b = Inception(config, 832, 384, 192, 384, 48, 128, 128)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(1024, num_classes)
        widths = (512, 528) if config.auxiliary else ()  # of 4a and 4d
        self.auxiliary = nn.ModuleList(AuxiliaryClassifier(config, width, num_classes) for width in widths)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor | SupervisedLogits:  # x [N, C, H, W]
        x = self.stem(x)  # [N, 192, H / 8, W / 8]; with the small stem H, W
        x = self.inception3b(self.inception3a(x))  # [N, 480, H / 8, W / 8]
        x = maps4a = self.inception4a(self.pool3(x))  # [N, 512, H / 16, W / 16]
        x = maps4d = self.inception4d(self.inception4c(self.inception4b(x)))  # [N, 528, H / 16, W / 16]
        x = self.pool4(self.inception4e(x))  # [N, 832, H / 32, W / 32]
        x = self.inception5b(self.inception5a(x))  # [N, 1024, H / 32, W / 32]
        logits = self.head(self.dropout(x.mean(dim=(2, 3))))  # [N, 1024], then [N, K]
        if not (self.training and len(self.auxiliary) > 0):
            return logits
        first, second = self.auxiliary
        return SupervisedLogits(logits, (first(maps4a), second(maps4d)))


VARIANTS = {
    "googlenet": GoogLeNetConfig(),
    "googlenet-bn": GoogLeNetConfig("torchvision", normalisation="batch", dropout=0.2),
    "googlenet-notes": GoogLeNetConfig(image_size=96, normalisation="none", auxiliary=False, dropout=0.0),
    "googlenet-notes-aux": GoogLeNetConfig(image_size=96, normalisation="none", dropout=0.0),
    "googlenet-cifar": GoogLeNetConfig("paper", "small", 32, "batch", auxiliary=False, dropout=0.0),
}
