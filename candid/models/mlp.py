"""Fully connected networks: three linear layers, bare, with ReLU, or with batch normalisation and ReLU.

Widths, our choice: those of the 28x28-300-100-10 network of LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based
learning applied to document recognition", section III. Departures from it: ReLU instead of a scaled tanh;
`mlp-linear` has nothing between its layers, so that they make one linear map; `mlp-bn` adds Ioffe and
Szegedy 2015 (arXiv:1502.03167) before each ReLU. Initialisation, our choice: He et al. 2015
(arXiv:1502.01852), fan in: variance 2 / fan in with ReLU and 1 / fan in without; biases 0.
Checked against a functional form in tests/models/test_mlp.py.

Shapes: N images, then channels and pixels, or features.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class MLPConfig:
    """One row of `VARIANTS`."""

    activation: Literal["linear", "relu"] = "relu"
    batch_norm: bool = False  # before each activation
    widths: tuple[int, int] = (300, 100)
    image_size: int = 28  # px; the first layer fits this size only

    @property
    def smallest_image_size(self) -> int:
        """Side in px; a single pixel is a feature as any other."""
        return 1


class MLP(nn.Module):
    """Logits [N, num_classes] from three linear layers; images of `image_size` only."""

    def __init__(self, config: MLPConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        width1, width2 = config.widths
        self.linear1 = nn.Linear(in_channels * config.image_size**2, width1)
        self.norm1 = nn.BatchNorm1d(width1) if config.batch_norm else nn.Identity()
        self.linear2 = nn.Linear(width1, width2)
        self.norm2 = nn.BatchNorm1d(width2) if config.batch_norm else nn.Identity()
        self.head = nn.Linear(width2, num_classes)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.Identity()
        for layer in (self.linear1, self.linear2, self.head):
            nn.init.kaiming_normal_(layer.weight, nonlinearity=config.activation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:  # x [N, in_channels, 28, 28]
        x = x.flatten(1)  # [N, in_channels * 28 * 28]
        x = self.activation(self.norm1(self.linear1(x)))  # [N, 300]
        x = self.activation(self.norm2(self.linear2(x)))  # [N, 100]
        return self.head(x)  # [N, num_classes]


VARIANTS = {
    "mlp-linear": MLPConfig("linear"),
    "mlp-relu": MLPConfig("relu"),
    "mlp-bn": MLPConfig("relu", batch_norm=True),
}
