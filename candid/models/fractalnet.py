"""FractalNet (Larsson, Maire, Shakhnarovich 2017, arXiv:1605.07648).

`fractalnet`: the network for CIFAR of section 4, five blocks of three columns, 20 convolutions on the longest path.
`fractalnet-small`: a quarter of its channels, 20 layers in the table of ultra-deep networks. Drop-path: section 3.1,
drawn once a batch, half local, half global; what it leaves out has no gradients, so optimisers leave that alone.
As in section 3.3 and the authors' generator (github.com/gustavla/fractalnet), pooling comes before a block's last
join. Theirs are also dropout before normalisation, more from block to block, and weights uniform with variance
1 / fan in (Caffe's "Xavier"). Departures: batch normalisation has scale and shift, convolutions no bias (in their
Caffe layers the reverse); the last maps are averaged, so that any size works, which changes nothing at 32 px.
The layers of `fractalnet` have 33.7 M parameters; the 38.6 M in print do not follow from them.
Checked against the recursive definition of section 3 in tests/models/test_fractalnet.py.

Shapes: N images, C channels, H W pixels, D channels out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from candid.models.convolution import Conv2d


@dataclass(frozen=True)
class FractalNetConfig:
    """One row of `VARIANTS`."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels of each of the B blocks
    num_columns: int = 3  # C in the paper; column c of a block, from 0, has 2^c convolutions
    image_size: int = 32  # px
    dropout: float = 0.4  # of the last block; the first has none
    drop_path: float = 0.15  # of each input of a join; half of the batches keep one column only; 0: neither

    @property
    def smallest_image_size(self) -> int:
        """Side in px that leaves a single pixel; each block halves and rounds down."""
        return 2 ** len(self.widths)


class ConvLayer(nn.Module):
    """3x3 convolution, dropout, BN, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        return self.relu(self.norm(self.dropout(self.conv(x))))  # [N, D, H, W]


class Join(nn.Module):
    """The mean of its inputs. In training each may be dropped, but never all (local drop-path)."""

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path

    def forward(self, maps: list[Tensor]) -> Tensor:  # [N, D, H, W] each
        if self.training and self.drop_path > 0 and len(maps) > 1:
            kept = torch.rand(len(maps), device="cpu") >= self.drop_path  # on the CPU: no wait for a GPU
            if not kept.any():
                kept[torch.randint(len(maps), (1,), device="cpu")] = True
            maps = [one for one, keep in zip(maps, kept.tolist(), strict=True) if keep]
        return torch.stack(maps).mean(dim=0)  # [N, D, H, W]


class FractalBlock(nn.Module):
    """Columns of 1, 2, 4, ... convolutions side by side, joined wherever several end at the same height."""

    def __init__(self, config: FractalNetConfig, in_channels: int, width: int, dropout: float) -> None:
        super().__init__()
        self.columns = nn.ModuleList()
        for column in range(config.num_columns):
            widths = [in_channels] + [width] * (2**column - 1)  # what each convolution reads
            self.columns.append(nn.Sequential(*(ConvLayer(channels, width, dropout) for channels in widths)))
        self.join = Join(config.drop_path)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor, only: int | None) -> Tensor:  # x [N, C, H, W]; `only`: the one column to follow
        if only is not None:
            return self.pool(self.columns[only](x))  # [N, D, H / 2, W / 2]
        inputs = [x] * len(self.columns)  # of the next convolution in each column
        upcoming = [column.children() for column in self.columns]
        depth = 2 ** (len(self.columns) - 1)
        for height in range(1, depth + 1):
            ends = [column for column in range(len(self.columns)) if height * 2**column % depth == 0]
            maps = [next(upcoming[column])(inputs[column]) for column in ends]  # [N, D, H, W] each
            if height == depth:
                maps = [self.pool(one) for one in maps]  # [N, D, H / 2, W / 2] each
            joined = self.join(maps)
            for column in ends:
                inputs[column] = joined
        return inputs[0]  # [N, D, H / 2, W / 2]: the first column has only the last join


class FractalNet(nn.Module):
    """Logits [N, num_classes] from fractal blocks, a global average and a linear head."""

    def __init__(self, config: FractalNetConfig, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.num_columns, self.drop_path = config.num_columns, config.drop_path
        self.blocks = nn.ModuleList()
        channels = in_channels
        for index, width in enumerate(config.widths):
            dropout = config.dropout * index / (len(config.widths) - 1)
            self.blocks.append(FractalBlock(config, channels, width, dropout))
            channels = width
        self.head = nn.Linear(channels, num_classes)
        nn.init.zeros_(self.head.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")

    def draw_column(self) -> int | None:
        """The only column that is left, in half of the training passes (global drop-path); None leaves all."""
        if not self.training or self.drop_path == 0 or torch.rand((), device="cpu") < 0.5:
            return None
        return int(torch.randint(self.num_columns, (), device="cpu"))

    def forward(self, x: Tensor) -> Tensor:  # x [N, in_channels, H, W]
        only = self.draw_column()
        for block in self.blocks:
            x = block(x, only)  # [N, D, H / 2, W / 2] each time
        return self.head(x.mean(dim=(2, 3)))  # [N, D], then [N, num_classes]


VARIANTS = {
    "fractalnet": FractalNetConfig(),
    "fractalnet-small": FractalNetConfig(widths=(16, 32, 64, 128, 128)),
}
