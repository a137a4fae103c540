"""The model zoo: networks by name, from `REGISTRY` or an alias, each as its paper has it."""

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from candid.errors import InputError, did_you_mean
from candid.models import (
    airbench,
    alexnet,
    all_cnn,
    convnet,
    densenet,
    dsn,
    fractalnet,
    ghostnet,
    googlenet,
    highway,
    lenet,
    mlp,
    mobilenetv2,
    nin,
    preact_resnet,
    resnet,
    shufflenetv2,
    vgg,
)
from candid.models.auxiliary import NO_AUXILIARY_LOSS, AuxiliaryLoss
from candid.models.dense_block import Memory


class Config(Protocol):
    """What the config of every family tells, beside the fields of its own."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def image_size(self) -> int:
        """Side in px of the images that the network was designed for."""
        ...

    @property
    def smallest_image_size(self) -> int:
        """Side in px below which a feature map would vanish."""
        ...


@dataclass(frozen=True)
class Variant:
    """One network of the zoo: how its family builds it."""

    family: str
    """Name of the module of `candid.models` that has the network and its paper."""
    network: type[nn.Module]
    config: Config
    num_classes: int
    """Of the data that the network was designed for, as are `in_channels` and `image_size`."""
    in_channels: int

    @property
    def image_size(self) -> int:
        """Native side in px: 28 for Fashion-MNIST, 32 for CIFAR, 224 for ImageNet, 96 or 224 in the notes."""
        return self.config.image_size

    @property
    def has_dropout(self) -> bool:
        """Whether the network has a place for dropout."""
        return "dropout" in self.config.__dataclass_fields__

    @property
    def has_dense_block(self) -> bool:
        """Whether the network is made of blocks whose layers read the maps of all layers before them."""
        return "memory" in self.config.__dataclass_fields__

    @property
    def dropout(self) -> float:
        """The paper's probability of dropping a value."""
        return getattr(self.config, "dropout", 0.0)

    @property
    def auxiliary_loss(self) -> AuxiliaryLoss:
        """How the losses of the network's auxiliary classifiers, if it has any, add to the main one."""
        return getattr(self.config, "auxiliary_loss", NO_AUXILIARY_LOSS)

    def build(self, num_classes: int, in_channels: int, image_size: int, dropout: float, memory: Memory) -> nn.Module:
        """The network, freshly initialised; `build_model` refuses bad values first."""
        options: dict[str, Any] = {"image_size": image_size} | ({"dropout": dropout} if self.has_dropout else {})
        options |= {"memory": memory} if self.has_dense_block else {}
        return self.network(replace(self.config, **options), num_classes, in_channels)


def variants(family: str, network: type[nn.Module], configs: Mapping[str, Config]) -> dict[str, Variant]:
    """The rows of one family's table, as entries of the registry."""
    return {name: Variant(family, network, config, *_native_data(name, config)) for name, config in configs.items()}


def _native_data(name: str, config: Config) -> tuple[int, int]:
    """Number of classes and of channels: Fashion-MNIST, ImageNet or CIFAR-10."""
    if "-notes" in name or config.image_size == 28:
        return 10, 1
    return (1000, 3) if config.image_size == 224 else (10, 3)


REGISTRY: dict[str, Variant] = {
    **variants("lenet", lenet.LeNet, lenet.VARIANTS),
    **variants("mlp", mlp.MLP, mlp.VARIANTS),
    **variants("convnet", convnet.ConvNet, convnet.VARIANTS),
    **variants("alexnet", alexnet.AlexNet, alexnet.VARIANTS),
    **variants("vgg", vgg.VGG, vgg.VARIANTS),
    **variants("nin", nin.NiN, nin.VARIANTS),
    **variants("googlenet", googlenet.GoogLeNet, googlenet.VARIANTS),
    **variants("resnet", resnet.ResNet, resnet.VARIANTS),
    **variants("preact_resnet", preact_resnet.PreActResNet, preact_resnet.VARIANTS),
    **variants("densenet", densenet.DenseNet, densenet.VARIANTS),
    **variants("mobilenetv2", mobilenetv2.MobileNetV2, mobilenetv2.VARIANTS),
    **variants("airbench", airbench.Airbench, airbench.VARIANTS),
    **variants("shufflenetv2", shufflenetv2.ShuffleNetV2, shufflenetv2.VARIANTS),
    **variants("ghostnet", ghostnet.GhostNet, ghostnet.VARIANTS),
    **variants("all_cnn", all_cnn.AllCNN, all_cnn.VARIANTS),
    **variants("dsn", dsn.DSN, dsn.VARIANTS),
    **variants("highway", highway.Highway, highway.VARIANTS),
    **variants("fractalnet", fractalnet.FractalNet, fractalnet.VARIANTS),
}

# What names such as `mobilenetv2-0.6` may ask for: below, rounding makes all layers equally narrow; above, 16 times
# the weights are no mobile net any more.
SMALLEST_WIDTH, LARGEST_WIDTH = 0.1, 4.0

ALIASES = {  # timm's names for the networks that it took over from torchvision
    "vgg11_bn": "vgg11-bn",  # as in torchvision too
    "vgg13_bn": "vgg13-bn",
    "vgg16_bn": "vgg16-bn",
    "vgg19_bn": "vgg19-bn",
    "tv_resnet34": "resnet34",
    "tv_resnet50": "resnet50",
    "tv_resnet101": "resnet101",
    "tv_resnet152": "resnet152",
    "tv_resnext50_32x4d": "resnext50-32x4d",
    "resnext50_32x4d": "resnext50-32x4d",  # as in torchvision too, like the next
    "resnext101_32x8d": "resnext101-32x8d",
    "resnext101_64x4d": "resnext101-64x4d",
    "wide_resnet50_2": "wide-resnet50-2",
    "wide_resnet101_2": "wide-resnet101-2",
    "tv_densenet121": "densenet121",
    "mobilenet_v2": "mobilenetv2-1.0",  # torchvision's
    "mobilenetv2_035": "mobilenetv2-0.35",
    "mobilenetv2_050": "mobilenetv2-0.5",
    "mobilenetv2_075": "mobilenetv2-0.75",
    "mobilenetv2_100": "mobilenetv2-1.0",
    "mobilenetv2_140": "mobilenetv2-1.4",
    "mobilenetv2-1.0-cifar": "mobilenetv2-cifar",  # ours: the one that other widths are made from
    "shufflenet_v2_x0_5": "shufflenetv2-0.5",  # torchvision's, like the next three
    "shufflenet_v2_x1_0": "shufflenetv2-1.0",
    "shufflenet_v2_x1_5": "shufflenetv2-1.5",
    "shufflenet_v2_x2_0": "shufflenetv2-2.0",
    "ghostnet_050": "ghostnet-0.5",
    "ghostnet_100": "ghostnet-1.0",
    "ghostnet_130": "ghostnet-1.3",
}


def list_models() -> list[str]:
    """All names that `build_model` takes, family by family; aliases are accepted but not listed.

    Each network's paper, and where it departs from it, stand at the head of its family's file and in docs/models.md.
    """
    return list(REGISTRY)


def find_variant(name: str) -> Variant:
    """The entry of `name`, which may be an alias or have a width that is not listed, as `mobilenetv2-0.6` has."""
    name = ALIASES.get(name, name)
    variant = REGISTRY.get(name) or _of_any_width(name)
    if variant is None:
        advice = did_you_mean(name, REGISTRY, otherwise="`candid models` shows all names.")
        raise InputError(f"No model is called {name!r}. {advice}")
    return variant


def _of_any_width(name: str) -> Variant | None:
    """FAMILY-W from the entry FAMILY-1.0, where the family has a width; also FAMILY-W-cifar."""
    parts = re.fullmatch(r"([a-z0-9]+)-([0-9]+(?:\.[0-9]+)?)(-cifar)?", name)
    if parts is None:
        return None
    family, width, form = parts[1], float(parts[2]), parts[3] or ""
    standard = f"{family}-1.0{form}"
    variant = REGISTRY.get(ALIASES.get(standard, standard))
    if variant is None or "width" not in variant.config.__dataclass_fields__:
        return None
    if not SMALLEST_WIDTH <= width <= LARGEST_WIDTH:
        raise InputError(
            f"{name} would have {width:g} times the channels of {standard}; the factor must be at least "
            f"{SMALLEST_WIDTH:g} and at most {LARGEST_WIDTH:g}. The papers have 0.35 to 1.4."
        )
    return replace(variant, config=replace(variant.config, **{"width": width}))


def smallest_image_size(name: str) -> int:
    """Side in px of the smallest square images that leave a feature map to the last layer."""
    return find_variant(name).config.smallest_image_size


def build_model(
    name: str,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    dropout: float | None = None,
    memory: Memory = "auto",
) -> nn.Module:
    """A freshly initialised network: images [N, in_channels, image_size, image_size] to logits [N, num_classes].

    `name` is one of `list_models` or an alias. The weights are drawn from torch's global generator: seed it before.
    `in_channels` is 1 (grey) or 3 (RGB). `image_size` in px; None is the size that the network was designed for.
    `dropout` is the probability with which a value is dropped, wherever the paper has dropout; None is the paper's, 0
    turns it off.
    `memory` is what the blocks of a DenseNet keep for the way back (see `Memory`); other networks have no such choice.
    In training, a network with auxiliary classifiers gives `SupervisedLogits`; in evaluation all give logits. The paper
    that the network is from stands at the head of its family's file.

    Raises:
        InputError: if the name is unknown or the network cannot be built like this.
    """
    variant = find_variant(name)
    size = variant.image_size if image_size is None else image_size
    dropout = variant.dropout if dropout is None else dropout
    smallest = smallest_image_size(name)
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; it must be at least 2. Add a class to the data.")
    if in_channels not in (1, 3):
        raise InputError(f"in_channels is {in_channels}; it must be 1 for grey images or 3 for RGB.")
    if size < smallest:
        raise InputError(
            f"image_size is {size} px; {name} needs at least {smallest}: use larger images or another model."
        )
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}; it must be at least 0 and below 1. Use 0 to turn it off.")
    if dropout > 0 and not variant.has_dropout:
        raise InputError(f"dropout is {dropout}, but {name} has none. Set it to 0, or choose another network.")
    if memory in ("shared", "recompute") and not variant.has_dense_block:
        raise InputError(f"memory is {memory!r}, but {name} has no dense blocks. Use 'plain', or choose a DenseNet.")
    return variant.build(num_classes, in_channels, size, dropout, memory)


def count_parameters(name: str, num_classes: int, in_channels: int = 3, image_size: int | None = None) -> int:
    """Number of trained values, without the buffers of batch normalisation; allocates no memory."""
    with torch.device("meta"):
        model = build_model(name, num_classes, in_channels, image_size)
    return sum(parameter.numel() for parameter in model.parameters())
