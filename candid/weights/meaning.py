"""What the numbers in a file of weights do not tell: the names of the classes, and how pictures are prepared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torchvision.models import ResNet18_Weights

from candid.data.catalog import CATALOG, full_name, open_data_set
from candid.data.preprocessing import Preprocessing
from candid.errors import CheckpointError, InputError
from candid.recipe_parts import Data
from candid.words import count

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, for pixel values in [0, 1]."""
IMAGENET = CATALOG["imagenet"]
KNOWN_INPUT: dict[str, tuple[str, Statistics]] = {
    "1378be20": ("torchvision's GoogLeNet, which rescales its input so", ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
}
"""By the first digits of a file's SHA-256: pictures other than its library's usual ones."""


@dataclass(frozen=True)
class Origin:
    """What is known of the data that weights were trained on; None where nothing is."""

    name: str = ""
    """As recipes have it; empty where no data set is named."""
    class_names: tuple[str, ...] | None = None
    channels: Literal[1, 3] | None = None
    image_size: int | None = None
    """Side in px where all pictures have one."""
    statistics: Statistics | None = None
    has_validation: bool = False
    """Whether it has a validation split of its own."""


def find_origin(data: str | None) -> Origin:
    """What candid knows of a data set of the catalog, without having it, or of a folder of pictures."""
    if data is None:
        return Origin()
    if data in CATALOG:
        entry = CATALOG[data]
        # The folders name ImageNet's classes, and the folders are not here; torchvision has the same order.
        names = tuple(ResNet18_Weights.DEFAULT.meta["categories"]) if entry is IMAGENET else entry.class_names
        return Origin(data, names, entry.channels, entry.image_size, (entry.mean, entry.std))
    found = open_data_set(data)
    has_validation = "validation" in found.openers
    return Origin(full_name(data), found.class_names, found.channels, None, None, has_validation)


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in a text file, one a line; position = index of the logit.

    Raises:
        CheckpointError: if there is no such file or it does not name each class once.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); expected a text file with one class name a line. "
            "Check --classes."
        ) from None
    except UnicodeDecodeError:
        raise CheckpointError(
            f"{path} is not text in UTF-8; expected a text file with one class name a line. Save it as UTF-8."
        ) from None
    names = [line.strip() for line in lines]
    for number, name in enumerate(names, start=1):
        if not name:
            raise CheckpointError(
                f"{path} has nothing in line {number}; expected one class name a line. Remove the line."
            )
        first = names.index(name) + 1
        if first < number:
            raise CheckpointError(
                f"{path} names {name!r} in lines {first} and {number}; expected each class once. Name them differently."
            )
    if len(names) < 2:
        raise CheckpointError(
            f"{path} has {count(len(names), 'class name')}; expected two or more, one a line. Add the others."
        )
    return tuple(names)


def check_statistics(mean: Sequence[float] | None, std: Sequence[float] | None) -> Statistics | None:
    """The user's own statistics, if there are any; InputError where they make no sense."""
    if mean is None and std is None:
        return None
    if mean is None or std is None or len(mean) != len(std) or len(mean) not in (1, 3):
        raise InputError(
            "--mean and --std belong together; give both, one number for each channel, such as 0.485,0.456,0.406."
        )
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 and math.isfinite(value) for value in std):
        raise InputError(
            f"--mean {_list(mean)} --std {_list(std)} do not suit pixel values in [0, 1]; expected numbers "
            "in that range. Divide those for pixel values up to 255 by 255."
        )
    return tuple(mean), tuple(std)


def choose_preprocessing(
    settings: Data, given: Statistics | None, origin: Origin, *, sha256: str, is_of_imagenet: bool
) -> tuple[Preprocessing, str]:
    """How pictures are prepared, by resolved `settings`, and a sentence that tells it.

    The user's own statistics go before those of the data set; networks of ImageNet take ImageNet's.

    Raises:
        InputError: if nothing tells the statistics.
    """
    channels = 3 if settings.channels == 3 else 1
    why, statistics = "as you said", given
    if statistics is None and origin.statistics:
        why, statistics = f"those of {origin.name}", origin.statistics
    elif statistics is None and sha256[:8] in KNOWN_INPUT:
        why, statistics = KNOWN_INPUT[sha256[:8]]
    elif statistics is None and is_of_imagenet and channels == 3:
        why, statistics = "those of ImageNet, taken for granted", (IMAGENET.mean, IMAGENET.std)
    if statistics is None or len(statistics[0]) != channels:
        raise InputError(
            f"The mean and standard deviation of the {channels}-channel pictures that the weights were trained on are "
            "not known; expected --mean and --std, or --data with the name of that data set."
        )
    mean, std = statistics
    preprocessing = Preprocessing(
        image_size=settings.image_size, channels=channels, fit=settings.fit, mean=mean, std=std
    )
    how = {"crop": "the middle square", "pad": "with black borders", "squash": "squashed"}[settings.fit]
    sentence = f"Pictures: {settings.image_size} px, {how}, mean {_list(mean)}, std {_list(std)} ({why})."
    if is_of_imagenet and settings.fit == "crop":
        sentence += (
            " torchvision and timm measure on a smaller part of the middle, so accuracies differ a little from theirs."
        )
    return preprocessing, sentence


def _list(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
