"""What a data set is once it has been found: class names and splits of examples, opened when asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from candid.errors import DataError, InputError
from candid.recipe import Recipe

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class StoredExamples:
    """Examples that already live in memory, all of one size."""

    images: Tensor
    """uint8 [N, C, H, W]; C is 1 (grey) or 3 (RGB)."""
    labels: Tensor
    """int64 [N], class indices."""
    files: tuple[str, ...]
    """What a person calls each example: a file name, or its index in the data set's own order."""
    unreadable: tuple[str, ...] = ()
    """As in `FileExamples`."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> "StoredExamples":
        """The examples at `indices` [M], in that order."""
        files = tuple(self.files[index] for index in indices.tolist())
        return StoredExamples(self.images[indices], self.labels[indices], files)


@dataclass(frozen=True)
class FileExamples:
    """Examples that are picture files of any size."""

    root: Path
    """The data set's folder; `files` are relative to it."""
    files: tuple[str, ...]
    labels: Tensor
    """int64 [N], class indices."""
    sha256: tuple[str, ...] = ()
    """Of each file's bytes, where it is known; else empty."""
    unreadable: tuple[str, ...] = ()
    """What is wrong with each file that was left out because it is no picture, in a sentence that names it."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> Self:
        """The examples at `indices` [M], in that order."""
        chosen = indices.tolist()
        return replace(
            self,
            files=tuple(self.files[index] for index in chosen),
            labels=self.labels[indices],
            sha256=tuple(self.sha256[index] for index in chosen if self.sha256),
        )

    def leave_out(self, problems: Mapping[Path, str]) -> Self:
        """The examples without files that are no pictures; it names these, and no other takes the place of one.

        Raises:
            DataError: if nothing of a class is left.
        """
        kept = [index for index, file in enumerate(self.files) if self.root / file not in problems]
        lost = set(self.labels.tolist()) - set(self.labels[kept].tolist())
        if lost:
            file = self.files[self.labels.tolist().index(min(lost))]
            raise DataError(
                f"No picture of the class of {self.root / file} can be used; expected one at least to go on without "
                f"the others. `candid doctor {self.root}` says what is wrong with each."
            )
        left = self.select(torch.tensor(kept))
        return replace(left, unreadable=(*self.unreadable, *problems.values()))


Examples = StoredExamples | FileExamples


@dataclass(frozen=True)
class DataSet:
    """A data set that has been found; none of its splits is read before it is opened."""

    name: str
    class_names: tuple[str, ...]
    """Position = index of the class in the labels and of its logit."""
    channels: Literal[1, 3]
    image_size: int | None
    """Side of the pictures in px where all are square and of one size."""
    openers: Mapping[Split, Callable[[], Examples]]
    """How to read each split that the data set itself has; `train` is always there."""
    validation: float = 0.1
    """What to hold out of `train` where there is no validation split: a count, or a share below 1."""
    mean: tuple[float, ...] | None = None
    """Channel means in [0, 1] over the training pictures, where they are known."""
    std: tuple[float, ...] | None = None


def pick_evenly(examples: Examples, number: int) -> Examples:
    """At least `number` examples, or all where there are fewer, and less than twice as many; at equal distances."""
    return examples.select(torch.arange(0, len(examples), max(1, len(examples) // number)))


def hold_out(data_set: DataSet, recipe: Recipe) -> tuple[Examples, Examples | None]:
    """The training and the validation examples; no validation when the recipe wants none."""
    train = data_set.openers["train"]()
    size = recipe.data.validation
    if size == 0:
        return train, None
    if "validation" in data_set.openers:
        return train, data_set.openers["validation"]()
    size = data_set.validation if size is None else size
    if size >= len(train):
        raise InputError(
            f"data.validation is {size:g}; it must be below the {len(train)} training examples of "
            f"{data_set.name}. Hold out fewer, or a share such as 0.1."
        )
    kept, held_out = stratified_holdout(train.labels, size, recipe.seed)
    return train.select(kept), train.select(held_out)


def stratified_holdout(labels: Tensor, size: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to keep and indices to hold out, both ascending; every class gives its share.

    `labels` [N]; `size` is a count, or a share of N when below 1. The classes' shares are rounded so that
    the total is exact (largest remainder), and which examples of a class are held out depends on the
    seed alone.
    """
    count = round(len(labels) * size) if size < 1 else int(size)
    per_class = torch.bincount(labels)
    exact = per_class.double() * count / len(labels)
    taken = exact.floor().long()
    by_remainder = torch.argsort(exact - taken, descending=True, stable=True)
    taken[by_remainder[: count - int(taken.sum())]] += 1
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, number in enumerate(taken.tolist()):
        members = torch.nonzero(labels == label).flatten()
        held_out[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()
