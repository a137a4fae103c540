"""Small networks with the names, shapes and arithmetic of other people's, written for these tests in our own words.

`kuangliu` is kuangliu/pytorch-cifar, `weiaicunzai` weiaicunzai/pytorch-cifar100, `gpleiss`
gpleiss/efficient_densenet_pytorch. Keys and shapes, but for VGG16's, were compared once with the real networks'.
"""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDTHS, HALVES = (64, 64, 128, 256, 512), (1, 2, 2, 2)


def conv3(before: int, behind: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, behind, 3, stride, 1, bias=False)


def conv1(before: int, behind: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, behind, 1, stride, bias=False)


def projection(before: int, behind: int, stride: int) -> nn.Sequential:
    if stride == 1 and before == behind:
        return nn.Sequential()
    return nn.Sequential(conv1(before, behind, stride), nn.BatchNorm2d(behind))


class KuangliuBlock(nn.Module):
    def __init__(self, before: int, behind: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(before, behind, stride), nn.BatchNorm2d(behind)
        self.conv2, self.bn2 = conv3(behind, behind), nn.BatchNorm2d(behind)
        self.shortcut = projection(before, behind, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class KuangliuPreActBlock(nn.Module):
    def __init__(self, before: int, behind: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), conv3(before, behind, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(behind), conv3(behind, behind)
        if stride != 1 or before != behind:
            self.shortcut = nn.Sequential(conv1(before, behind, stride))

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        beside = self.shortcut(activated) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + beside


class KuangliuResNet18(nn.Module):
    def __init__(self, block: Callable[[int, int, int], nn.Module], num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = conv3(3, 64)
        self.bn1 = nn.BatchNorm2d(64) if block is KuangliuBlock else None
        for index, ((before, behind), stride) in enumerate(zip(pairwise(WIDTHS), HALVES, strict=True), start=1):
            setattr(self, f"layer{index}", nn.Sequential(block(before, behind, stride), block(behind, behind, 1)))
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x) if self.bn1 is None else F.relu(self.bn1(self.conv1(x)))
        for index in (1, 2, 3, 4):
            x = getattr(self, f"layer{index}")(x)
        return self.linear(x.mean((2, 3)))


class KuangliuVGG16(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class KuangliuDenseLayer(nn.Module):
    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(before), conv1(before, 4 * growth)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), conv3(4 * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([new, x], dim=1)  # the newest in front


class KuangliuTransition(nn.Module):
    def __init__(self, before: int, behind: int) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(before), conv1(before, behind)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class KuangliuDenseNet(nn.Module):
    def __init__(self, layers: tuple[int, ...] = (6, 12, 24, 16), growth: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        self.layers, width = layers, 2 * growth
        self.conv1 = conv3(3, width)
        for block, count in enumerate(layers, start=1):
            dense = [KuangliuDenseLayer(width + index * growth, growth) for index in range(count)]
            setattr(self, f"dense{block}", nn.Sequential(*dense))
            width += count * growth
            if block < len(layers):
                setattr(self, f"trans{block}", KuangliuTransition(width, width // 2))
                width //= 2
        self.bn, self.linear = nn.BatchNorm2d(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for block in range(1, len(self.layers) + 1):
            x = getattr(self, f"dense{block}")(x)
            x = getattr(self, f"trans{block}")(x) if block < len(self.layers) else x
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


class WeiaicunzaiBlock(nn.Module):
    def __init__(self, before: int, behind: int, stride: int) -> None:
        super().__init__()
        self.residual_function = nn.Sequential(
            conv3(before, behind, stride),
            nn.BatchNorm2d(behind),
            nn.ReLU(),
            conv3(behind, behind),
            nn.BatchNorm2d(behind),
        )
        self.shortcut = projection(before, behind, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual_function(x) + self.shortcut(x))


class WeiaicunzaiBottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual_function = nn.Sequential(
            *(conv1(before, width), nn.BatchNorm2d(width), nn.ReLU()),
            *(conv3(width, width, stride), nn.BatchNorm2d(width), nn.ReLU()),
            *(conv1(width, 4 * width), nn.BatchNorm2d(4 * width)),
        )
        self.shortcut = projection(before, 4 * width, stride)

    forward = WeiaicunzaiBlock.forward


class WeiaicunzaiResNet(nn.Module):
    def __init__(
        self, counts: tuple[int, ...] = (2, 2, 2, 2), block: type[nn.Module] = WeiaicunzaiBlock, num_classes: int = 100
    ) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(conv3(3, 64), nn.BatchNorm2d(64), nn.ReLU())
        before, expansion = 64, 4 if block is WeiaicunzaiBottleneck else 1
        for index, (width, stride, count) in enumerate(zip(WIDTHS[1:], HALVES, counts, strict=True), start=2):
            blocks = [
                block(before if k == 0 else expansion * width, width, stride if k == 0 else 1) for k in range(count)
            ]
            setattr(self, f"conv{index}_x", nn.Sequential(*blocks))
            before = expansion * width
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for index in (2, 3, 4, 5):
            x = getattr(self, f"conv{index}_x")(x)
        return self.fc(x.mean((2, 3)))


class GpleissDenseNet(nn.Module):
    def __init__(self, layers: tuple[int, ...] = (6, 6, 6), growth: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        width = 2 * growth
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv0=conv3(3, width))
        for block, count in enumerate(layers, start=1):
            dense = nn.ModuleDict()
            for index in range(1, count + 1):
                dense[f"denselayer{index}"] = nn.ModuleDict(
                    {
                        "norm1": nn.BatchNorm2d(width),
                        "conv1": conv1(width, 4 * growth),
                        "norm2": nn.BatchNorm2d(4 * growth),
                        "conv2": conv3(4 * growth, growth),
                    }
                )
                width += growth
            parts[f"denseblock{block}"] = dense
            if block < len(layers):
                parts[f"transition{block}"] = nn.ModuleDict(
                    {"norm": nn.BatchNorm2d(width), "conv": conv1(width, width // 2)}
                )
                width //= 2
        parts["norm_final"] = nn.BatchNorm2d(width)
        self.features, self.classifier = nn.ModuleDict(parts), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.features.items():
            if name.startswith("denseblock"):
                for layer in part.values():
                    new = layer["conv1"](F.relu(layer["norm1"](x)))
                    x = torch.cat([x, layer["conv2"](F.relu(layer["norm2"](new)))], dim=1)
            elif name.startswith("transition"):
                x = F.avg_pool2d(part["conv"](F.relu(part["norm"](x))), 2)
            else:
                x = part(x)
        return self.classifier(F.relu(x).mean((2, 3)))


def names_of_weiaicunzai_densenet121(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state of our densenet121-cifar under that network's names: every shape is right, and it is another function."""
    layers = {"norm1": "0", "conv1": "2", "norm2": "3", "conv2": "5"}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        part, *rest = name.split(".")
        if part == "blocks":
            block = f"dense_block_layer_{rest[0]}" if rest[0] != "3" else "dense_block3"
            renamed[f"features.{block}.bottle_neck_layer_{rest[2]}.bottle_neck.{layers[rest[3]]}.{rest[4]}"] = value
        elif part == "transitions":
            index = {"norm": "0", "conv": "1"}[rest[1]]
            renamed[f"features.transition_layer_{rest[0]}.down_sample.{index}.{rest[2]}"] = value
        else:
            renamed[f"{ {'stem': 'conv1', 'norm': 'features.bn', 'head': 'linear'}[part] }.{rest[-1]}"] = value
    return renamed


def shapes_of_kuangliu_mobilenetv2(num_classes: int = 10) -> dict[str, tuple[int, ...]]:
    """Names and shapes of its convolutions and linear layer, normalisation apart."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (32, 3, 3, 3)}
    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    before, index = 32, 0
    for expansion, width, count, first_stride in stages:
        for stride in (first_stride, *[1] * (count - 1)):
            inner = expansion * before
            shapes[f"layers.{index}.conv1.weight"] = (inner, before, 1, 1)
            shapes[f"layers.{index}.conv2.weight"] = (inner, 1, 3, 3)
            shapes[f"layers.{index}.conv3.weight"] = (width, inner, 1, 1)
            if stride == 1 and before != width:
                shapes[f"layers.{index}.shortcut.0.weight"] = (width, before, 1, 1)
            before, index = width, index + 1
    return {
        **shapes,
        "conv2.weight": (1280, 320, 1, 1),
        "linear.weight": (num_classes, 1280),
        "linear.bias": (num_classes,),
    }
