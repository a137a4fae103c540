"""The small convolutional network of the notes for images of 28 px; it has no paper.

Layers: two 3x3 convolutions, to 25 and 50 maps, each with ReLU and a 2x2 pooling that keeps the maximum; at 28 px
50 * 5 * 5 = 1250 features, and linear layers of 1024, 128 and one output per class, with ReLU between them.
Initialisation, our choice: He et al. 2015 (arXiv:1502.01852), fan in, biases 0.
Checked against a functional form in tests/models/test_convnet.py.

Shapes, for images of 28 px: N images, then channels and pixels, or features.
"""

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class ConvNetConfig:
    """One row of `VARIANTS`."""

    image_size: int = 28  # px; the first linear layer fits this size only

    @property
    def last_side(self) -> int:
        """Side in px of the last feature maps: each convolution takes 2, each pooling halves."""
        return ((self.image_size - 2) // 2 - 2) // 2

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel."""
        return 10


class ConvNet(nn.Module):
    """Logits [N, num_classes] from two convolutions and three linear layers; images of `image_size` only."""

    def __init__(self, config: ConvNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 25, kernel_size=3)
        self.conv2 = nn.Conv2d(25, 50, kernel_size=3)
        self.linear1 = nn.Linear(50 * config.last_side**2, 1024)
        self.linear2 = nn.Linear(1024, 128)
        self.head = nn.Linear(128, num_classes)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:  # x [N, in_channels, 28, 28]
        x = self.pool(self.relu(self.conv1(x)))  # [N, 25, 26, 26], then [N, 25, 13, 13]
        x = self.pool(self.relu(self.conv2(x)))  # [N, 50, 11, 11], then [N, 50, 5, 5]
        x = self.relu(self.linear1(x.flatten(1)))  # [N, 50 * 5 * 5], then [N, 1024]
        x = self.relu(self.linear2(x))  # [N, 128]
        return self.head(x)  # [N, num_classes]


VARIANTS = {"convnet": ConvNetConfig()}
