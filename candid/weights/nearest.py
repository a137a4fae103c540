"""Whose weights are these? The network of the zoo whose names and shapes agree best with those of a file."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch

from candid.models import REGISTRY, build_model
from candid.weights.layouts import Layout, layouts_of
from candid.weights.names import Shapes, bare, is_counter, is_head

NUM_LAYOUTS = 4
"""How many layouts, each of a family, are looked at closely."""


@dataclass(frozen=True)
class Nearest:
    """A network and how near it is."""

    model: str
    library: str
    """Whose names the file has."""
    share: float
    """Of the tensors of both sides, those that agree in name and shape, the number of classes apart; in [0, 1]."""


def find_nearest(shapes: Shapes) -> Nearest | None:
    """The network nearest to tensors of these bare names and shapes; None where no name is known."""
    given = {name: shape for name, shape in shapes.items() if not is_counter(name)}
    members: dict[str, list[str]] = {}
    for model, variant in REGISTRY.items():
        members.setdefault(variant.family, []).append(model)
    layouts = [(family, layout) for family in members for layout in layouts_of(family)]
    kinship = [_kinship(members[family][0], layout, _patterns(given)) for family, layout in layouts]
    best: Nearest | None = None
    for index in sorted(range(len(layouts)), key=lambda index: -kinship[index])[:NUM_LAYOUTS]:
        family, layout = layouts[index]
        for model in members[family] if kinship[index] else ():
            share = _agreement(_shapes_of(model), layout, given)
            if best is None or share > best.share:
                best = Nearest(model, layout.library, share)
            if share == 1:
                return best
    return best


def _kinship(model: str, layout: Layout, patterns: set[str]) -> float:
    """How alike the names of a family's first network and the given ones are, numbers apart, in [0, 1]."""
    theirs = _patterns(map(layout.their_name, _shapes_of(model)))
    return len(patterns & theirs) / len(patterns | theirs)


def _patterns(names: Iterable[str]) -> set[str]:
    return {re.sub(r"\d+", "#", bare(name)) for name in names}


def _agreement(ours: Shapes, layout: Layout, given: Shapes) -> float:
    if not 1 / 2 < len(ours) / len(given) < 2:
        return 0.0
    agreeing = sum(_alike(name, shape, given.get(bare(layout.their_name(name)))) for name, shape in ours.items())
    return 2 * agreeing / (len(ours) + len(given))


def _alike(name: str, ours: torch.Size, theirs: torch.Size | None) -> bool:
    """Whether two tensors differ at most in the number of classes, or of channels of the images."""
    if theirs is None or len(ours) != len(theirs):
        return False
    if is_head(name):
        return ours[1:] == theirs[1:]
    return ours == theirs or reads_images(ours, theirs)


def reads_images(ours: torch.Size, theirs: torch.Size) -> bool:
    """Whether two convolutions differ only in that one reads grey and one RGB images."""
    return len(ours) == len(theirs) == 4 and {ours[1], theirs[1]} == {1, 3} and ours[::2] == theirs[::2]


@cache
def _shapes_of(model: str) -> Shapes:
    variant = REGISTRY[model]
    with torch.device("meta"):
        state = build_model(model, variant.num_classes, variant.in_channels).state_dict()
    return {name: value.shape for name, value in state.items() if not is_counter(name)}
