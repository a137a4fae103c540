"""DSN (Lee, Xie, Gallagher, Zhang, Tu 2015, "Deeply-Supervised Nets", arXiv:1409.5185).

`dsn`: NiN with a companion classifier at each block, as the authors' published configuration for CIFAR-10 has it: a
linear layer reads all values of the block's first convolution before its ReLU, and no ReLU follows the head.
The losses of the companions weigh 0.1 * (1 - t / N) at step t of N: the paper's decay, with an alpha of 1.
Initialisation: that of `nin`; companions uniform with a variance of 1 / fan in, biases 0, as in the configuration.
Departures: cross entropy instead of squared hinge losses, so that all networks share a loop and give probabilities
(for CIFAR-100 so did the authors); gamma, a threshold of the hinge loss that means nothing for cross entropy, is 0,
so companions count until they have faded; they learn at the common rate, in the configuration at a thousandth.
Checked against a functional form of the configuration in tests/models/test_dsn.py.

Shapes: N images, C channels, H W pixels, K classes.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from candid.models.auxiliary import AuxiliaryLoss, SupervisedLogits
from candid.models.nin import NiNConfig, NiNLayers


@dataclass(frozen=True)
class DSNConfig(NiNConfig):
    """One row of `VARIANTS`: a NiN and how its companions count."""

    last_relu: bool = False
    auxiliary_loss: AuxiliaryLoss = AuxiliaryLoss(weight=0.1, margin=0.0, fades=True)  # gamma is the margin

    @property
    def sides(self) -> tuple[int, ...]:
        """Side in px of each block's maps: padding keeps it, and poolings halve it."""
        return tuple(self.image_size // 2**index for index, _ in enumerate(self.blocks))


class Companion(nn.Module):
    """A linear classifier of all values of some maps."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(num_features, num_classes)
        nn.init.kaiming_uniform_(self.head.weight, nonlinearity="linear")
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        return self.head(x.flatten(1))  # [N, K]


class DSN(NiNLayers):
    """Logits [N, num_classes] as of NiN, in training those of a companion of each block too."""

    def __init__(self, config: DSNConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(config, num_classes, in_channels)
        features = [block.widths[0] * side**2 for block, side in zip(config.blocks, config.sides, strict=True)]
        self.auxiliary = nn.ModuleList(Companion(num_features, num_classes) for num_features in features)

    def forward(self, x: Tensor) -> Tensor | SupervisedLogits:  # x [N, C, H, W]
        hidden: list[Tensor] = []
        for block in self.blocks:
            maps, x = block(x)  # [N, 96, H, W], then [N, 192, H / 2, W / 2], then [N, 192, H / 4, W / 4]
            hidden.append(maps)  # the same, but [N, 192, H, W] the first time
        logits = self.classify(x)  # [N, K]
        if not self.training:
            return logits
        pairs = zip(self.auxiliary, hidden, strict=True)
        return SupervisedLogits(logits, tuple(companion(maps) for companion, maps in pairs))


VARIANTS = {"dsn": DSNConfig()}
