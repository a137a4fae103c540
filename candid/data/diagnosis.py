"""What is known about a folder of pictures once all of it has been looked at: facts and findings, ready to be shown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Counts = Mapping[str, Mapping[str, int]]
"""Split, or "undivided", to class name to number of pictures."""


@dataclass(frozen=True)
class Spread:
    """Lengths in px."""

    smallest: int
    median: int
    largest: int

    @classmethod
    def of(cls, lengths: NDArray[np.int32]) -> "Spread":
        """That of one length or more, [N]."""
        return cls(int(lengths.min()), int(np.median(lengths)), int(lengths.max()))


@dataclass(frozen=True)
class Sizes:
    """Of all pictures that can be decoded, upright."""

    width: Spread
    height: Spread
    shorter_side: Spread
    share_not_square: float
    """In [0, 1]."""
    share_elongated: float
    """In [0, 1], with one side more than one and a half times as long as the other."""


@dataclass(frozen=True)
class Copies:
    """Files that show the same picture."""

    are_exact: bool
    """Equal in every byte; else the same to the eye: stored anew, resized, or nearly so."""
    files: tuple[str, ...]
    splits: tuple[str, ...]
    """Of each file."""
    class_names: tuple[str, ...]
    """Of each file; empty where it lies in no class folder."""

    @property
    def cross_splits(self) -> bool:
        """Whether what is learnt from is asked for, too."""
        return len(set(self.splits)) > 1

    @property
    def cross_classes(self) -> bool:
        """Whether there are two answers to one question."""
        return len({*self.class_names} - {""}) > 1


@dataclass(frozen=True)
class Suggestion:
    """Where to start."""

    image_size: int
    """Side in px."""
    fit: Literal["crop", "pad"]
    splits: str
    """A sentence: what is held out, and how."""
    command: str
    """A whole command line."""


@dataclass(frozen=True)
class Diagnosis:
    """A folder of pictures, as candid understands it."""

    folder: str
    num_files: int
    """Files that are named as pictures."""
    class_names: tuple[str, ...]
    """Sorted as text; the position is the index of the class."""
    counts: Counts
    sizes: Sizes | None
    """None where no picture can be decoded."""
    kinds: Mapping[str, int]
    """How the pictures are stored, such as "JPEG RGB", and how many."""
    unreadable: Mapping[str, str]
    """File to what is wrong with it, in a sentence that names it."""
    copies: tuple[Copies, ...]
    errors: tuple[str, ...]
    """What would make training wrong, or stops it; sentences with the cure."""
    notes: tuple[str, ...]
    """What is worth knowing."""
    suggestion: Suggestion | None
    """None where there is nothing to train on."""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def share(flags: NDArray[np.bool_]) -> float:
    """Of those that are true, in [0, 1]."""
    return float(flags.mean())


def some(names: Sequence[str], most: int = 5) -> str:
    """Such as "cat, dog and 3 others"."""
    others = f" and {len(names) - most:,} others" if len(names) > most else ""
    return ", ".join(names[:most]) + others
