"""LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition").

Layers: figure 2, with the paper's sides for images of 32 px; 28 px leave 16 * 4 * 4 = 256 features.
Departures, those in which the network is taught today: max pooling instead of trained averages, every
map of the second convolution reads all six (Table I reads some), sigmoid or ReLU instead of a scaled
tanh, linear logits instead of radial basis units. `lenet-bn` adds Ioffe and Szegedy 2015 (arXiv:1502.03167).
Initialisation, our choice: Xavier uniform (Glorot and Bengio 2010), four times as wide before a bare sigmoid,
whose slope is at most 1/4. PyTorch's default lets so little through four sigmoids that the logits of two
images hardly differ (over 100 times less), and training long stays at chance.
Checked against a reference written from figure 2 in tests/models/test_lenet.py.

Shapes, for images of 28 px: N images, then channels and pixels, or features.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class LeNetConfig:
    """One row of `VARIANTS`."""

    activation: Literal["sigmoid", "relu"] = "sigmoid"
    batch_norm: bool = False  # before each activation, also between the linear layers
    image_size: int = 28  # px; the first linear layer fits this size only

    @property
    def last_side(self) -> int:
        """Side in px of the last feature maps: each 5x5 convolution takes 4, each pooling halves."""
        return ((self.image_size - 4) // 2 - 4) // 2

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel."""
        return 16


class LeNet(nn.Module):
    """Logits [N, num_classes] from two convolutions and three linear layers; images of `image_size` only."""

    def __init__(self, config: LeNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, kernel_size=5)
        self.norm1 = nn.BatchNorm2d(6) if config.batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.norm2 = nn.BatchNorm2d(16) if config.batch_norm else nn.Identity()
        self.linear1 = nn.Linear(16 * config.last_side**2, 120)
        self.norm3 = nn.BatchNorm1d(120) if config.batch_norm else nn.Identity()
        self.linear2 = nn.Linear(120, 84)
        self.norm4 = nn.BatchNorm1d(84) if config.batch_norm else nn.Identity()
        self.head = nn.Linear(84, num_classes)
        self.activation = nn.Sigmoid() if config.activation == "sigmoid" else nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        gain = 4.0 if config.activation == "sigmoid" and not config.batch_norm else 1.0
        for layer in (self.conv1, self.conv2, self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight, gain)
        nn.init.xavier_uniform_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:  # x [N, in_channels, 28, 28]
        x = self.activation(self.norm1(self.conv1(x)))  # [N, 6, 24, 24]
        x = self.pool(x)  # [N, 6, 12, 12]
        x = self.activation(self.norm2(self.conv2(x)))  # [N, 16, 8, 8]
        x = self.pool(x).flatten(1)  # [N, 16 * 4 * 4]
        x = self.activation(self.norm3(self.linear1(x)))  # [N, 120]
        x = self.activation(self.norm4(self.linear2(x)))  # [N, 84]
        return self.head(x)  # [N, num_classes]


VARIANTS = {
    "lenet": LeNetConfig("sigmoid"),
    "lenet-relu": LeNetConfig("relu"),
    "lenet-bn": LeNetConfig("sigmoid", batch_norm=True),
}
