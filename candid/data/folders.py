"""Your own pictures: a folder with one folder per class, or with train, validation and test folders of such.

DIR/<class>/* is split by content (see `split_by_content`); DIR/train/<class>/* is taken as it is, with DIR/val and
DIR/test where they exist.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

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
Digest = Callable[[Sequence[str]], Mapping[str, str]]
"""From files to the SHA-256 of each."""

TEST_SHARE, VALIDATION_SHARE = 0.1, 0.1
LAYOUTS = "{folder}/<class>/<picture> or {folder}/train/<class>/<picture>."


def open_folder(folder: Path) -> DataSet:
    """The data set in `folder`; DataError where its layout cannot be understood.

    Classes are the names of the class folders, sorted as text. Only names and a few headers are read here.
    """
    splits, digests = arrange(folder, lambda files: dict(zip(files, hash_files(folder, files), strict=True)))
    class_names = sorted(splits["train"])
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


def arrange(folder: Path, digest: Digest) -> tuple[Splits, Mapping[str, str]]:
    """Each split's files by class, and the SHA-256 of each file where that decided the split.

    Raises:
        DataError: if the layout cannot be understood, with the folder and the cure.
    """
    split_folders = find_split_folders(folder)
    _refuse_dead_links(folder)
    _refuse_unclear_splits(folder, split_folders)
    if split_folders:
        splits: Splits = {split: _list_classes(folder, path) for split, (path, *_) in split_folders.items()}
        _refuse_class_missing_in_a_split(folder, splits)
        _refuse_one_class(folder, split_folders["train"][0], splits["train"])
        return splits, {}  # to take the folders as they are, no file need be read
    classes = _list_classes(folder, folder)
    _refuse_one_class(folder, folder, classes)
    digests = digest([file for files in classes.values() for file in files])
    return split_by_content(folder, classes, digests), digests


def find_split_folders(folder: Path) -> dict[Split, list[Path]]:
    """The folders that are named after splits; none where all folders are classes."""
    found: dict[Split, list[Path]] = {}
    for entry in folders_in(folder):
        if entry.name.lower() in SPLIT_NAMES:
            found.setdefault(SPLIT_NAMES[entry.name.lower()], []).append(entry)
    are_classes = "train" not in found and sum(map(len, found.values())) < len(folders_in(folder))
    return {} if are_classes else found


def split_by_content(folder: Path, classes: Classes, digests: Mapping[str, str]) -> Splits:
    """Each class's files by split, decided by the SHA-256 of each file's bytes.

    A tenth goes to test and a tenth to validation. A picture stays where it is when others are added, and
    copies of a picture share a split. Only a class so small that chance gives it no test or validation
    picture lends its lowest-ranking ones, so that every split has every class.
    """
    splits: Splits = {"train": {}, "validation": {}, "test": {}}
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
    return splits


def list_pictures(folder: Path) -> list[str]:
    """Paths, relative to `folder`, of all files below it that are named as pictures, sorted as text.

    Links to folders are not followed, so that there are no loops.

    Raises:
        DataError: if a folder cannot be read: what is in it must not go missing in silence.
    """
    found: list[str] = []
    for place, folder_names, file_names in os.walk(folder, onerror=_refuse_unreadable_folder):
        folder_names[:] = [name for name in folder_names if not name.startswith(".")]
        inside = Path(place).relative_to(folder).as_posix() + "/"  # once a folder: a Path for each file takes longer
        found += [inside.removeprefix("./") + name for name in file_names if is_named_as_picture(name)]
    return sorted(found)


def is_named_as_picture(name: str) -> bool:
    """Whether a file of this name is taken for a picture."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def folders_in(folder: Path) -> list[Path]:
    """The folders in `folder` that are not hidden, sorted by name.

    Raises:
        DataError: if there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected {LAYOUTS.format(folder='DIR')}")
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        _refuse_unreadable_folder(error)


def leads_back(entry: Path) -> bool:
    """Whether a folder is a link to one that holds it, whose pictures would come again as its own."""
    place = entry.parent.resolve()
    return entry.is_symlink() and entry.resolve() in (place, *place.parents)


def _refuse_unreadable_folder(error: OSError) -> NoReturn:
    raise DataError(
        f"{error.filename} cannot be read: {error.strerror}; expected a folder of pictures. "
        "Make it readable, or remove it."
    ) from None


def _list_classes(root: Path, folder: Path) -> Classes:
    """Class name to its files, relative to `root`; every folder in `folder` is a class."""
    class_folders = folders_in(folder)
    _refuse_dead_links(folder)
    if not class_folders:
        held = "pictures but no class folders" if list_pictures(folder) else "no pictures"
        raise DataError(f"{folder} holds {held}. Expected {LAYOUTS.format(folder=root)}")
    classes: Classes = {}
    for entry in class_folders:
        _refuse_loop(entry)
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


def _refuse_dead_links(folder: Path) -> None:
    """Raise a DataError where there was a class, perhaps, on a disk that is not there now."""
    for entry in sorted(folder.iterdir()):
        is_meant_as_folder = not is_named_as_picture(entry.name) and not entry.name.startswith(".")
        if is_meant_as_folder and entry.is_symlink() and not entry.exists():
            raise DataError(f"{entry} is a link that leads nowhere; expected a folder. Mend it, or remove it.")


def _refuse_loop(entry: Path) -> None:
    if leads_back(entry):
        raise DataError(
            f"{entry} is a link to {entry.resolve()}, which holds it; expected a folder of its own. Remove the link."
        )


def _refuse_unclear_splits(folder: Path, found: Mapping[Split, Sequence[Path]]) -> None:
    for split, paths in found.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise DataError(
                f"{folder} has {len(paths)} folders for the {split} split, {names}; expected one. "
                "Join them, or rename those that are something else."
            )
        _refuse_loop(paths[0])
    if found and "train" not in found:
        names = " and ".join(path.name for paths in found.values() for path in paths)
        raise DataError(f"{folder} holds {names} but no train folder. Expected {LAYOUTS.format(folder=folder)}")


def _refuse_one_class(folder: Path, inside: Path, classes: Classes) -> None:
    """Raise a DataError where the folder that holds the class folders, `inside`, has one of them alone."""
    if len(classes) > 1:
        return
    [class_name] = classes
    is_one_too_high = bool(folders_in(inside / class_name))
    advice = f" If the classes are the folders in {inside / class_name}, name that one." if is_one_too_high else ""
    raise DataError(
        f"{folder} has one class, {class_name!r}; expected at least two, each in a folder of its own.{advice}"
    )


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


def _count_below(share: float, digests: Sequence[str]) -> int:
    """How many SHA-256 digests lie in the lowest `share` of all that there could be."""
    return sum(int(digest[:13], 16) / 16**13 < share for digest in digests)
