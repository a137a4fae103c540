"""AlexNet (Krizhevsky, Sutskever, Hinton 2012, NIPS) in one tower (Krizhevsky 2014, arXiv:1404.5997).

`alexnet`: the network of 2014 as torchvision has it. `alexnet-notes`: the widths of 2012, for grey images.
Dropout: 2012, section 4.2, on what the two hidden linear layers give. Initialisation: 2012, section 5.
Departures: no local response normalisation, as in torchvision. The fourth convolution of `alexnet` has 256
maps, as in torchvision and in the author's own code; the paper's footnote 1 says 384. Features are averaged
to 6x6, which at 224 px changes nothing and lets other sizes in. torchvision drops the inputs of the hidden
layers instead. In `alexnet-notes` every map reads all maps before it, where 2012 has two halves on two
GPUs, and nothing pads the first convolution: 54 px, not 55.
Checked against torchvision and a functional form of 2012 in tests/models/test_alexnet.py.

Shapes, for images of 224 px: N images, then channels and pixels, or features; `alexnet` left, notes right.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from candid.models.convolution import Conv2d


@dataclass(frozen=True)
class AlexNetConfig:
    """One row of `VARIANTS`."""

    widths: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)  # maps of the convolutions
    first_padding: int = 2  # px; of the first convolution
    average_side: int | None = 6  # px; None: no averages, and the first linear layer fits `image_size` only
    linear_width: int = 4096
    image_size: int = 224  # px
    dropout: float = 0.5

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel: with its padding what a value of the last pooling sees."""
        return 67 - 2 * self.first_padding

    @property
    def last_side(self) -> int:
        """Side in px of the last feature maps; the first convolution and the poolings step by 32 px in all."""
        return (self.image_size - self.smallest_image_size) // 32 + 1


class AlexNet(nn.Module):
    """Logits [N, num_classes] from five convolutions, three poolings and three linear layers."""

    def __init__(self, config: AlexNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        width1, width2, width3, width4, width5 = config.widths
        self.features = nn.Sequential(
            Conv2d(in_channels, width1, kernel_size=11, stride=4, padding=config.first_padding),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            Conv2d(width1, width2, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            Conv2d(width2, width3, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(width3, width4, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(width4, width5, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.average = nn.AdaptiveAvgPool2d(config.average_side) if config.average_side else nn.Identity()
        side = config.average_side or config.last_side
        self.classifier = nn.Sequential(
            nn.Linear(width5 * side**2, config.linear_width),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(config.linear_width, config.linear_width),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
        )
        self.head = nn.Linear(config.linear_width, num_classes)
        parameters, first_biases = list(self.parameters()), (0, 1, 0, 1, 1, 1, 1, 0)
        for weight, bias, first_bias in zip(parameters[::2], parameters[1::2], first_biases, strict=True):
            nn.init.normal_(weight, std=0.01)
            nn.init.constant_(bias, first_bias)

    def forward(self, x: Tensor) -> Tensor:  # x [N, in_channels, 224, 224]
        x = self.features(x)  # [N, 64, 55, 55] or [N, 96, 54, 54], ..., [N, 256, 6, 6] or [N, 256, 5, 5]
        x = self.average(x).flatten(1)  # [N, 256 * 6 * 6] or [N, 256 * 5 * 5]
        return self.head(self.classifier(x))  # [N, 4096], then [N, num_classes]


VARIANTS = {
    "alexnet": AlexNetConfig(),
    "alexnet-notes": AlexNetConfig((96, 256, 384, 384, 256), first_padding=0, average_side=None),
}
