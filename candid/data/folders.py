"""Your own pictures: a folder with one folder per class, or with train, validation and test folders of such.

DIR/<class>/* is split by content (see `split_by_content`); DIR/train/<class>/* is taken as it is, with DIR/val and
DIR/test where they exist.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from candid.data.decoding import SUFFIXES, is_grey
from candid.data.examples import DataSet, FileExamples, Split, pick_evenly
from candid.data.hashing import hash_files
from candid.errors import DataError

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
Classes = dict[str, list[str]]
"""Class name to its files, relative to the data set's folder."""
Splits = dict[Split, Classes]

TEST_SHARE, VALIDATION_SHARE = 0.1, 0.1
LAYOUTS = "{folder}/<class>/<picture> or {folder}/train/<class>/<picture>."


def open_folder(folder: Path) -> DataSet:
    """The data set in `folder`; DataError where its layout cannot be understood.

    Classes are the names of the class folders, sorted as text. Only names and a few headers are read here.
    """
    split_folders: dict[Split, Path] = {
        SPLIT_NAMES[entry.name.lower()]: entry for entry in _folders_in(folder) if entry.name.lower() in SPLIT_NAMES
    }
    if "train" in split_folders:
        splits: Splits = {split: _list_classes(folder, path) for split, path in split_folders.items()}
        _refuse_class_missing_in_a_split(folder, splits)
        digests: Mapping[str, str] = {}  # to take the folders as they are, no file need be read
    else:
        splits, digests = split_by_content(folder, _list_classes(folder, folder))
    class_names = sorted(splits["train"])
    if len(class_names) < 2:
        raise DataError(
            f"{folder} has one class, {class_names[0]!r}; expected at least two, each in a folder of its own."
        )
    examples: dict[Split, FileExamples] = {
        split: _label(folder, classes, class_names, digests) for split, classes in splits.items()
    }
    return DataSet(
        name=str(folder),
        class_names=tuple(class_names),
        channels=_find_channels(examples["train"]),
        image_size=None,
        openers={split: partial(examples.__getitem__, split) for split in examples},
    )


def split_by_content(folder: Path, classes: Classes) -> tuple[Splits, dict[str, str]]:
    """Each class's files by split, decided by the SHA-256 of each file's bytes, and that of each file.

    A tenth goes to test and a tenth to validation. A picture stays where it is when others are added, and
    copies of a picture share a split. Only a class so small that chance gives it no test or validation
    picture lends its lowest-ranking ones, so that every split has every class.
    """
    splits: Splits = {"train": {}, "validation": {}, "test": {}}
    digests = _digest(folder, [file for files in classes.values() for file in files])
    for class_name, files in classes.items():
        ranks = sorted({digests[file] for file in files})
        if len(ranks) < 3:
            raise DataError(
                f"Class {class_name!r} of {folder} has {len(ranks)} different pictures; expected at least 3, "
                "one each to train, to validate and to test."
            )
        num_test = min(max(1, _count_below(TEST_SHARE, ranks)), len(ranks) - 2)
        num_held_out = max(num_test + 1, _count_below(TEST_SHARE + VALIDATION_SHARE, ranks))
        num_held_out = min(num_held_out, len(ranks) - 1)
        held_out: dict[str, Split] = dict.fromkeys(ranks[:num_held_out], "validation")
        held_out |= dict.fromkeys(ranks[:num_test], "test")
        for split in splits:
            splits[split][class_name] = [file for file in files if held_out.get(digests[file], "train") == split]
    return splits, digests


def list_pictures(folder: Path) -> list[str]:
    """Paths, relative to `folder`, of all files below it that are named as pictures, sorted as text."""
    found: list[str] = []
    for place, folder_names, file_names in os.walk(folder):
        folder_names[:] = [name for name in folder_names if not name.startswith(".")]
        inside = Path(place).relative_to(folder).as_posix() + "/"  # once a folder: a Path for each file takes longer
        found += [
            inside.removeprefix("./") + name
            for name in file_names
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


def _folders_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected {LAYOUTS.format(folder='DIR')}")
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_classes(root: Path, folder: Path) -> Classes:
    """Class name to its files, relative to `root`; every folder in `folder` is a class."""
    class_folders = _folders_in(folder)
    if not class_folders:
        held = "pictures but no class folders" if list_pictures(folder) else "no pictures"
        raise DataError(f"{folder} holds {held}. Expected {LAYOUTS.format(folder=root)}")
    classes: Classes = {}
    for entry in class_folders:
        inside = entry.relative_to(root).as_posix()
        classes[entry.name] = [f"{inside}/{file}" for file in list_pictures(entry)]
    if not any(classes.values()):
        raise DataError(f"{folder} holds no pictures. Expected {LAYOUTS.format(folder=root)}")
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise DataError(
            f"{folder / empty[0]} is a class folder without pictures; expected at least one. "
            "Put pictures into it, or remove it."
        )
    return classes


def _refuse_class_missing_in_a_split(folder: Path, splits: Splits) -> None:
    every = {class_name for classes in splits.values() for class_name in classes}
    for split, classes in splits.items():
        for class_name in sorted(every - classes.keys()):
            present = next(other for other in splits if class_name in splits[other])
            raise DataError(
                f"Class {class_name!r} is in the {present} split of {folder} but not in the {split} split. "
                "Expected every class in every split: move some of its pictures, or remove the class."
            )


def _label(folder: Path, classes: Classes, class_names: Sequence[str], digests: Mapping[str, str]) -> FileExamples:
    files = tuple(file for name in class_names for file in classes[name])
    labels = torch.tensor([label for label, name in enumerate(class_names) for _ in classes[name]])
    return FileExamples(folder, files, labels, tuple(digests[file] for file in files if digests))


def _find_channels(examples: FileExamples) -> Literal[1, 3]:
    """1 when a hundred pictures or more, spread over the classes, are all grey by their headers; else 3."""
    return 1 if all(is_grey(examples.root / file) for file in pick_evenly(examples, 100).files) else 3


def _digest(folder: Path, files: Sequence[str]) -> dict[str, str]:
    try:
        return dict(zip(files, hash_files(folder, files), strict=True))
    except OSError as error:
        raise DataError(
            f"{error.filename} cannot be read: {error.strerror}; expected a picture. Make it readable, or remove it."
        ) from None


def _count_below(share: float, digests: Sequence[str]) -> int:
    """How many SHA-256 digests lie in the lowest `share` of all that there could be."""
    return sum(int(digest[:13], 16) / 16**13 < share for digest in digests)
