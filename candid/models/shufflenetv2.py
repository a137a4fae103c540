"""ShuffleNetV2 (Ma, Zhang, Zheng, Sun 2018, arXiv:1807.11164).

Layers: Table 5; units: figure 3c and 3d. Initialisation, of which the paper is silent, from the authors' code:
normal, with deviation 0.01 in the first convolution and the head, elsewhere 1 over the channels that a filter
reads (so 1 in depthwise ones); normalisation begins with a shift of 1e-4.
Departures, as in torchvision: the head has a bias, which the authors' code leaves out; no dropout, which
the authors' code, not the paper, has before the head of 2.0 (0.2).
`-cifar` is our own, for images of 32 px: the stem is one 3x3 convolution of stride 1 without pooling, which
leaves 4x4 maps. Checked against torchvision in tests/models/test_shufflenetv2.py.

Shapes: N images, C channels, H W pixels, D channels out, s stride.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn, stack

from candid.models.blocks import AnySize, conv_norm
from candid.models.fused_layers import Layers

UNITS_PER_STAGE = (4, 8, 4)  # Table 5, stages 2 to 4: one of stride 2, the others of stride 1


@dataclass(frozen=True)
class ShuffleNetV2Config(AnySize):
    """One row of `VARIANTS`."""

    stage_channels: tuple[int, ...] = (116, 232, 464)
    last_channels: int = 1024
    stem: Literal["imagenet", "small"] = "imagenet"
    image_size: int = 224  # px


class ShuffleUnit(nn.Module):
    """Figure 3c (stride 1: half the channels pass untouched) and 3d (stride 2: both branches read all)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.is_split = stride == 1
        self.left = Layers()
        if not self.is_split:
            self.left.extend(conv_norm(in_channels, in_channels, 3, stride, depthwise=True))
            self.left.extend(conv_norm(in_channels, half, 1, activation=nn.ReLU))
        self.right = Layers(
            *conv_norm(half if self.is_split else in_channels, half, 1, activation=nn.ReLU),
            *conv_norm(half, half, 3, stride, depthwise=True),
            *conv_norm(half, half, 1, activation=nn.ReLU),
        )

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        left, right = x.chunk(2, dim=1) if self.is_split else (x, x)  # [N, C / 2, H, W] each, or [N, C, H, W]
        left, right = self.left(left), self.right(right)  # [N, D / 2, H / s, W / s] each
        return stack((left, right), dim=2).flatten(1, 2)  # [N, D, H / s, W / s], shuffled: left, right, left, ...


class ShuffleNetV2(nn.Module):
    """Logits [N, num_classes] from a stem, stages of shuffle units, a 1x1 convolution, an average and a head."""

    def __init__(self, config: ShuffleNetV2Config, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = 24
        stride = 2 if config.stem == "imagenet" else 1
        self.stem = Layers(*conv_norm(in_channels, channels, 3, stride, activation=nn.ReLU))
        if config.stem == "imagenet":
            self.stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.Sequential()
        for num_units, out_channels in zip(UNITS_PER_STAGE, config.stage_channels, strict=True):
            stage = nn.Sequential(ShuffleUnit(channels, out_channels, stride=2))
            stage.extend(ShuffleUnit(out_channels, out_channels, stride=1) for _ in range(num_units - 1))
            self.stages.append(stage)
            channels = out_channels
        self.last = Layers(*conv_norm(channels, config.last_channels, 1, activation=nn.ReLU))
        self.head = nn.Linear(config.last_channels, num_classes)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.01 if name == "stem.0" else 1 / module.weight.shape[1])
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 1e-4)
        nn.init.normal_(self.head.weight, 0, 0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        x = self.stem(x)  # [N, 24, H / 4, W / 4]; with the small stem H, W
        x = self.stages(x)  # [N, stage_channels[-1], H / 32, W / 32]; with the small stem H / 8, W / 8
        x = self.last(x).mean(dim=(2, 3))  # [N, last_channels]
        return self.head(x)  # [N, num_classes]


VARIANTS = {
    "shufflenetv2-0.5": ShuffleNetV2Config((48, 96, 192)),
    "shufflenetv2-1.0": ShuffleNetV2Config((116, 232, 464)),
    "shufflenetv2-1.5": ShuffleNetV2Config((176, 352, 704)),
    "shufflenetv2-2.0": ShuffleNetV2Config((244, 488, 976), 2048),
    "shufflenetv2-0.5-cifar": ShuffleNetV2Config((48, 96, 192), 1024, "small", 32),
    "shufflenetv2-1.0-cifar": ShuffleNetV2Config((116, 232, 464), 1024, "small", 32),
}
