"""All-CNN (Springenberg, Dosovitskiy, Brox, Riedmiller 2015, "Striving for Simplicity", arXiv:1412.6806).

`all-cnn-c`: Table 1, model C, with the poolings replaced by 3x3 convolutions of stride 2 as in Table 2. As in
Table 1 a ReLU follows the last convolution, and the third 3x3 of 192 maps is not padded: it leaves 6x6 pixels.
Dropout: section 3.1, 0.2 of the input and 0.5 after each convolution that replaces a pooling.
Initialisation: the paper is silent; ours is He et al. 2015, fan in, biases 0.
Departures: none. Checked against a functional form of the tables in tests/models/test_all_cnn.py.

Shapes: N images, C channels, H W pixels, K classes.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from candid.models.convolution import Conv2d


@dataclass(frozen=True)
class AllCNNConfig:
    """One row of `VARIANTS`."""

    widths: tuple[int, int] = (96, 192)
    image_size: int = 32  # px
    dropout: float = 0.5
    input_dropout: float = 0.2  # 0 where `dropout` is 0, which turns off all

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves 3 px, halved twice rounding up, to the convolution without padding."""
        return 9


def conv(in_channels: int, out_channels: int, side: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    """A convolution and its ReLU."""
    return nn.Sequential(Conv2d(in_channels, out_channels, side, stride, padding), nn.ReLU())


class AllCNN(nn.Module):
    """Logits [N, num_classes] from convolutions alone and the average of one map for each class."""

    def __init__(self, config: AllCNNConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        narrow, wide = config.widths
        self.input_dropout = nn.Dropout(config.input_dropout if config.dropout > 0 else 0.0)
        self.stage1 = nn.Sequential(conv(in_channels, narrow), conv(narrow, narrow), conv(narrow, narrow, stride=2))
        self.stage2 = nn.Sequential(conv(narrow, wide), conv(wide, wide), conv(wide, wide, stride=2))
        self.stage3 = nn.Sequential(conv(wide, wide, padding=0), conv(wide, wide, side=1, padding=0))
        self.head = Conv2d(wide, num_classes, kernel_size=1)
        self.dropout = nn.Dropout(config.dropout)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                nn.init.zeros_(parameter)  # a bias
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.dropout(self.stage1(self.input_dropout(x)))  # [N, 96, H / 2, W / 2]
        x = self.dropout(self.stage2(x))  # [N, 192, H / 4, W / 4]
        x = self.stage3(x)  # [N, 192, H / 4 - 2, W / 4 - 2]
        return self.head(x).relu().mean(dim=(2, 3))  # [N, K, H / 4 - 2, W / 4 - 2], then [N, K]


VARIANTS = {"all-cnn-c": AllCNNConfig()}
