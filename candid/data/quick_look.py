"""What can be seen of a folder of pictures in a moment, without decoding: whether it is worth a visit to the doctor."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from candid.data.examples import DataSet, FileExamples
from candid.data.hashing import hash_files
from candid.words import count

MOST_IMBALANCE = 10
MOST_HASHED = 1000
"""Files, which takes less than a tenth of a second where they are small."""


def look_quickly(data_set: DataSet) -> str | None:
    """A line about a folder that `candid doctor` has more to say of; None where nothing is seen.

    Seen are classes of very different sizes, and copies in two splits that have kept their names.
    """
    if data_set.image_size is not None:  # a set that has a name, and would be unpacked
        return None
    splits: dict[str, FileExamples] = {}
    for split, opener in data_set.openers.items():
        examples = opener()
        if not isinstance(examples, FileExamples):
            return None
        splits[split] = examples
    seen = [*_see_imbalance(splits["train"], data_set.class_names), *_see_copies(splits)]
    if not seen:
        return None
    return f"{'; '.join(seen)}: `candid doctor {splits['train'].root}` says more."


def _see_imbalance(train: FileExamples, class_names: tuple[str, ...]) -> list[str]:
    numbers = torch.bincount(train.labels, minlength=len(class_names)).tolist()
    least, most = min(numbers), max(numbers)
    if most <= MOST_IMBALANCE * least:
        return []
    small, large = class_names[numbers.index(least)], class_names[numbers.index(most)]
    return [f"Class {large!r} has {count(most, 'picture')} to learn from and {small!r} {least:,}"]


def _see_copies(splits: Mapping[str, FileExamples]) -> list[str]:
    """Files of train that are in another split too, among those with the same name and the same number of bytes."""
    if splits["train"].sha256:  # by which copies share a split
        return []
    train = splits["train"]
    others = [file for split, examples in splits.items() if split != "train" for file in examples.files]
    names = {os.path.basename(file) for file in others}
    learnt = _by_name_and_size(train.root, [file for file in train.files if os.path.basename(file) in names])
    asked = _by_name_and_size(train.root, others)
    alike = [key for key in asked if key in learnt]
    pairs = [(one, other) for key in alike for one in learnt[key] for other in asked[key]][: MOST_HASHED // 2]
    digests = iter(hash_files(train.root, [file for pair in pairs for file in pair]))
    same = [pair for pair in pairs if next(digests) == next(digests)]
    if not same:
        return []
    one, other = (train.root / file for file in same[0])
    number = "1 picture" if len(same) == 1 else f"{len(same):,} pictures or more"
    return [
        f"{number} to learn from {'is' if len(same) == 1 else 'are'} in another split too, such as {one} as {other}"
    ]


def _by_name_and_size(root: Path, files: Iterable[str]) -> dict[tuple[str, int], list[str]]:
    """Files by what a copy usually keeps; empty ones and those that are not there are none."""
    found: dict[tuple[str, int], list[str]] = {}
    for file in files:
        with suppress(OSError):
            if num_bytes := os.stat(f"{root}/{file}").st_size:
                found.setdefault((os.path.basename(file), num_bytes), []).append(file)
    return found
