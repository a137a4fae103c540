"""A folder of pictures is looked at as a whole, before anything is trained on it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from candid.data.diagnosis import Copies, Diagnosis, Sizes, Spread, share
from candid.data.duplicates import find_alike, find_copies
from candid.data.findings import find_copied, find_imbalance, find_mixture, find_names, find_unused
from candid.data.folders import Splits, arrange
from candid.data.suggestion import suggest
from candid.data.survey import Place, Survey, list_places, survey
from candid.errors import DataError, InputError
from candid.words import count

UNDIVIDED = "undivided"
"""What stands for a split where a folder cannot be split."""
SPLITS = ("train", "validation", "test", UNDIVIDED)


def diagnose(folder: Path) -> Diagnosis:
    """All that there is to know of a folder of pictures, also where it cannot be trained on.

    Every file is decoded once; no pixels are kept, and under 200 bytes of each picture.

    Raises:
        InputError: if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with pictures in class folders.")
    places, problems = list_places(folder)
    found = survey(folder, [file for place in places for file in place.files])
    splits, refusal = _arrange(folder, found)
    split_of = _list_splits(places, found, splits)
    class_of = [place.class_name or "" for place in places for _ in place.files]
    counts = {split: Counter[str]() for split in SPLITS if split in split_of}
    for split, class_name in zip(split_of, class_of, strict=True):
        counts[split].update([class_name] if class_name else [])
    whole = np.flatnonzero(found.heights)
    sizes = _measure(found.heights[whole], found.widths[whole]) if len(whole) else None
    kinds = dict(Counter(found.kind_names[kind] for kind in found.kinds[whole].tolist()).most_common())
    class_names = sorted({place.class_name for place in places if place.class_name})
    copies = _list_copies(found, whole, split_of, class_of)
    is_split_by_us = not any(place.split for place in places)
    wrong_copies, known_copies = find_copied(folder, copies, is_split_by_us=is_split_by_us)
    notes = find_imbalance(counts) + find_names(folder, class_names, places) + find_unused(folder, places)
    return Diagnosis(
        folder=str(folder),
        num_files=len(found.files),
        class_names=tuple(class_names),
        counts={split: dict(sorted(classes.items())) for split, classes in counts.items() if classes},
        sizes=sizes,
        kinds=kinds,
        unreadable={found.files[position]: found.problems[position] for position in sorted(found.problems)},
        copies=tuple(copies),
        errors=(*dict.fromkeys([*refusal, *problems, *_describe_unreadable(found)]), *wrong_copies),
        notes=(*notes, *(find_mixture(sizes, kinds) if sizes else []), *known_copies),
        suggestion=suggest(str(folder), sizes, kinds, counts) if sizes else None,
    )


def _arrange(folder: Path, found: Survey) -> tuple[Splits | None, list[str]]:
    """The splits by candid's own rules; None, and why, where it refuses the folder."""
    try:
        return arrange(folder, lambda files: found.hex_digests())[0], []
    except DataError as error:
        return None, [str(error)]


def _list_splits(places: Sequence[Place], found: Survey, splits: Splits | None) -> list[str]:
    """The split of each file."""
    named = [place.split or UNDIVIDED for place in places for _ in place.files]
    if splits is None or any(place.split for place in places):
        return named
    split_of = {file: split for split, classes in splits.items() for files in classes.values() for file in files}
    return [split_of.get(file, UNDIVIDED) for file in found.files]


def _measure(heights: NDArray[np.int32], widths: NDArray[np.int32]) -> Sizes:
    shorter, longer = np.minimum(heights, widths), np.maximum(heights, widths)
    return Sizes(
        width=Spread.of(widths),
        height=Spread.of(heights),
        shorter_side=Spread.of(shorter),
        share_not_square=share(shorter < longer),
        share_elongated=share(1.5 * shorter < longer),
    )


def _list_copies(
    found: Survey, whole: NDArray[np.intp], split_of: Sequence[str], class_of: Sequence[str]
) -> list[Copies]:
    """Pictures that are there more than once; what is equal to the byte is not named again for what it shows."""
    sha256 = found.sha256[whole]
    exact: list[list[int]] = [whole[group].tolist() for group in find_copies(sha256)]
    alike = find_alike(found.looks[whole])
    near: list[list[int]] = [whole[group].tolist() for group in alike if (sha256[group] != sha256[group[0]]).any()]
    return [
        Copies(
            are_exact=are_exact,
            files=tuple(found.files[position] for position in group),
            splits=tuple(split_of[position] for position in group),
            class_names=tuple(class_of[position] for position in group),
        )
        for are_exact, groups in ((True, exact), (False, near))
        for group in groups
    ]


def _describe_unreadable(found: Survey) -> list[str]:
    if not found.problems:
        return []
    return [
        f"{len(found.problems):,} of {count(len(found.files), 'file')} cannot be used, and training stops at them. "
        "Replace or remove them, or go on without by --bad-images skip."
    ]
