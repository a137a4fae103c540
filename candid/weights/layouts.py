"""Key maps: what other libraries call the parameters of our networks, family by family.

A key map turns a name of ours, such as `stages.0.1.norm2.bias`, into theirs, `layer1.1.bn2.bias`. The tests of
equality run on these maps, so a wrong one makes a wrong network. A `Layout` adds for which networks that has been
shown, and in which order a library keeps its channels; a `Lookalike` has the names but computes something else.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, cat

from candid.models import find_variant
from candid.models.densenet import DenseNetConfig

KeyMap = Callable[[str], str]


def key_map(*rules: tuple[str, str]) -> KeyMap:
    r"""The map that applies `rules` in order: a regular expression and what replaces it.

    In the replacement `\1` is a group as it was found, and `<1+4>` is the number in group 1 plus 4.
    """

    def rename(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, partial(_fill, replacement), name)
        return name

    return rename


def _fill(replacement: str, match: re.Match[str]) -> str:
    shifted = re.sub(r"<(\d)([+-]\d+)>", lambda part: str(int(match[int(part[1])]) + int(part[2])), replacement)
    return match.expand(shifted)


TORCHVISION = {
    "alexnet": key_map(
        (r"^classifier\.(\d)", "classifier.<1+1>"),  # theirs begins with a dropout
        (r"^head", "classifier.6"),
    ),
    "vgg": key_map((r"^head", "classifier.6")),
    "resnet": key_map(
        (r"^stem\.0", "conv1"),
        (r"^stem\.1", "bn1"),
        (r"^stages\.(\d)", "layer<1+1>"),
        (r"norm", "bn"),
        (r"shortcut", "downsample"),
        (r"^head", "fc"),
    ),
    "densenet": key_map(
        (r"^stem\.0", "features.conv0"),
        (r"^stem\.1", "features.norm0"),
        (r"^transitions\.(\d)", "features.transition<1+1>"),
        (r"^blocks\.(\d)\.layers\.(\d+)", "features.denseblock<1+1>.denselayer<2+1>"),
        (r"^norm\.", "features.norm5."),
        (r"^head", "classifier"),
    ),
    "googlenet": key_map(
        (r"^stem\.0", "conv1"),
        (r"^stem\.([34])", "conv<1-1>"),
        (r"^auxiliary\.(\d)", "aux<1+1>"),
        (r"norm", "bn"),
        (r"linear", "fc1"),
        (r"^head", "fc"),
        (r"head", "fc2"),
    ),
    "mobilenetv2": key_map(
        (r"^stem", "features.0"),
        (r"^stages\.0\.0\.filter", "features.1.conv.0"),  # the first block does not expand
        (r"^stages\.0\.0\.project\.(\d)", "features.1.conv.<1+1>"),
        *(
            (rf"^stages\.{stage}\.(\d)", f"features.<1+{first}>")
            for stage, first in enumerate((1, 2, 4, 7, 11, 14, 17))
        ),
        (r"expand", "conv.0"),
        (r"filter", "conv.1"),
        (r"project\.(\d)", "conv.<1+2>"),
        (r"^last", "features.18"),
        (r"^head", "classifier.1"),
    ),
    "shufflenetv2": key_map(
        (r"^stem", "conv1"),
        (r"^stages\.(\d)", "stage<1+2>"),
        (r"left", "branch1"),
        (r"right", "branch2"),
        (r"^last", "conv5"),
        (r"^head", "fc"),
    ),
}

TIMM = {
    "vgg": key_map(
        (r"^classifier\.0", "pre_logits.fc1"),  # a convolution over the whole map
        (r"^classifier\.3", "pre_logits.fc2"),
        (r"^head", "head.fc"),
    ),
    "mobilenetv2": key_map(
        (r"^stem\.0", "conv_stem"),
        (r"^stem\.1", "bn1"),
        (r"^stages\.0\.0\.filter\.1", "blocks.0.0.bn1"),  # the first block does not expand
        (r"^stages\.0\.0\.project\.0", "blocks.0.0.conv_pw"),
        (r"^stages\.0\.0\.project\.1", "blocks.0.0.bn2"),
        (r"^stages", "blocks"),
        (r"expand\.0", "conv_pw"),
        (r"expand\.1", "bn1"),
        (r"filter\.0", "conv_dw"),
        (r"filter\.1", "bn2"),
        (r"project\.0", "conv_pwl"),
        (r"project\.1", "bn3"),
        (r"^last\.0", "conv_head"),
        (r"^last\.1", "bn2"),
        (r"^head", "classifier"),
    ),
    "ghostnet": key_map(
        (r"^stem\.0", "conv_stem"),
        (r"^stem\.1", "bn1"),
        (r"^bottlenecks\.([0-5])\.", r"blocks.\1.0."),
        (r"^bottlenecks\.([6-9]|10)\.", "blocks.6.<1-6>."),
        (r"^bottlenecks\.11\.", "blocks.7.0."),
        (r"^bottlenecks\.(\d+)\.", "blocks.8.<1-12>."),
        (r"primary", "primary_conv"),
        (r"cheap", "cheap_operation"),
        (r"downsample\.0", "conv_dw"),
        (r"downsample\.1", "bn_dw"),
        (r"\.se\.", ".se.conv_"),
        (r"^last\.0", "blocks.9.0.conv"),
        (r"^last\.1", "blocks.9.0.bn1"),
        (r"^hidden", "conv_head"),
        (r"^head", "classifier"),
    ),
}

KUANGLIU = {
    "vgg": key_map((r"^head", "classifier")),
    "resnet": key_map(
        (r"^stem\.0", "conv1"),
        (r"^stem\.1", "bn1"),
        (r"^stages\.(\d)", "layer<1+1>"),
        (r"norm", "bn"),
        (r"^head", "linear"),
    ),
    "preact_resnet": key_map(
        (r"^stem", "conv1"),
        (r"^stages\.(\d)", "layer<1+1>"),
        (r"norm", "bn"),
        (r"shortcut", "shortcut.0"),
        (r"^head", "linear"),
    ),
    "densenet": key_map(
        (r"^stem\.0", "conv1"),
        (r"^blocks\.(\d)\.layers", "dense<1+1>"),
        (r"^transitions\.(\d)", "trans<1+1>"),
        (r"norm", "bn"),
        (r"^head", "linear"),
    ),
}

WEIAICUNZAI = {
    "resnet": key_map(
        (r"conv1", "residual_function.0"),
        (r"norm1", "residual_function.1"),
        (r"conv2", "residual_function.3"),
        (r"norm2", "residual_function.4"),
        (r"conv3", "residual_function.6"),
        (r"norm3", "residual_function.7"),
        (r"^stem", "conv1"),
        (r"^stages\.(\d)", "conv<1+2>_x"),
        (r"^head", "fc"),
    ),
}

GPLEISS: dict[str, KeyMap] = {"densenet": lambda name: TORCHVISION["densenet"](name).replace("norm5", "norm_final")}
DOTTED: dict[str, KeyMap] = {
    "densenet": lambda name: re.sub(r"(denselayer\d+\.\w+)([12])", r"\1.\2", TORCHVISION["densenet"](name))
}


Rearrange = Callable[[str, Tensor, object], Tensor]
"""(our name, their tensor, config of the network) to that tensor with its channels in our order."""


def as_it_is(name: str, value: Tensor, config: object) -> Tensor:
    """The tensor: the channels are in our order already."""
    return value


def oldest_maps_first(name: str, value: Tensor, config: object) -> Tensor:
    """What reads the maps of a dense block that puts the newest in front, for one that puts them behind."""
    assert isinstance(config, DenseNetConfig), "only dense blocks concatenate"
    reader = re.match(r"blocks\.\d\.layers\.(\d+)\.(?:norm|conv)1\.|transitions\.(\d)\.|norm\.|head\.w", name)
    if reader is None or value.dim() == 0:
        return value
    num_layers = int(reader[1]) if reader[1] else config.layers_per_block[int(reader[2] or -1)]
    dim = min(1, value.dim() - 1)  # of normalisations the only one, of convolutions and the head the one that reads
    num_new = num_layers * config.growth_rate
    new, old = value.split([num_new, value.shape[dim] - num_new], dim)
    return cat((old, *reversed(new.split(config.growth_rate, dim))), dim)


@dataclass(frozen=True)
class Layout:
    """How one library writes down the weights of a family's networks."""

    library: str
    their_name: KeyMap
    has: Callable[[str], bool]
    """Whether the library's network of these names is, as a function, ours of this name."""
    rearrange: Rearrange = as_it_is


@dataclass(frozen=True)
class Lookalike:
    """A network that could be taken for one of ours and computes something else."""

    network: str
    sign: str
    """A regular expression for a name that only it has."""
    reason: str


LOOKALIKES = (
    Lookalike(
        "the MobileNetV2 of kuangliu/pytorch-cifar",
        r"layers\.\d+\.shortcut\.0\.weight",
        "it has 1x1 convolutions beside blocks whose widths differ at stride 1, where MobileNetV2 has nothing",
    ),
    Lookalike(
        "the DenseNet of weiaicunzai/pytorch-cifar100",
        r"features\.transition_layer_\d+\.down_sample\.\d\.weight",
        "its transitions have no ReLU between normalisation and convolution, where DenseNet has one",
    ),
)


def _is_of_imagenet(name: str) -> bool:
    """Whether our network of this name is one that torchvision and timm have."""
    return find_variant(name).image_size == 224 and "notes" not in name


def _matches(pattern: str) -> Callable[[str], bool]:
    return lambda name: re.fullmatch(pattern, name) is not None


def layouts_of(family: str) -> Iterable[Layout]:
    """All layouts known for the networks of a family; ours first, the most common before others."""
    yield Layout("candid", lambda name: name, lambda _: True)
    rows = (
        ("torchvision", TORCHVISION, _is_of_imagenet, as_it_is),
        ("timm", TIMM, _is_of_imagenet, as_it_is),
        ("torchvision with dots in them, as of 2017", DOTTED, _is_of_imagenet, as_it_is),
        ("gpleiss/efficient_densenet_pytorch", GPLEISS, _matches(r"densenet(-bc-.*|\d+|\d*-cifar)"), as_it_is),
        ("weiaicunzai/pytorch-cifar100", WEIAICUNZAI, _matches(r"resnet(18|34|50)-cifar"), as_it_is),
    )
    for library, maps, has, rearrange in rows:
        if family in maps:
            yield Layout(library, maps[family], has, rearrange)
    if family in KUANGLIU:
        rearrange = oldest_maps_first if family == "densenet" else as_it_is
        has = _matches(r"(preact-)?resnet(18|34|50)-cifar|densenet\d*-cifar|vgg16-bn-cifar")
        yield Layout("kuangliu/pytorch-cifar", KUANGLIU[family], has, rearrange)
