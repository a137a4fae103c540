"""What a folder's facts come to, as sentences that name the folder or the file, and the cure."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from candid.data.decoding import is_grey_kind
from candid.data.diagnosis import Copies, Counts, Sizes, some
from candid.data.folders import find_split_folders, folders_in, is_named_as_picture
from candid.data.survey import Place
from candid.errors import DataError
from candid.words import count

MOST_IMBALANCE, FEWEST = 10, 20
"""How many times as large one class may be as another, and how many pictures it should have, before it is said."""
SURE_NUMBER = 400
"""Pictures from which an accuracy is known to 5 points either way."""
MANY_NOT_SQUARE = 0.1


def find_copied(folder: Path, copies: Sequence[Copies], *, is_split_by_us: bool) -> tuple[list[str], list[str]]:
    """What is wrong with copies, and what is worth knowing of them."""
    errors: list[str] = []
    notes: list[str] = []
    for are_exact, same in ((True, "the same as"), (False, "hardly to be told from")):
        kind = [each for each in copies if each.are_exact == are_exact]
        crossing = [each for each in kind if each.cross_classes]
        if crossing:
            pair = _pair(folder, crossing[0], crossing[0].class_names)
            errors.append(
                f"{_pictures(crossing)} {same} one of another class, such as {pair}: there cannot be two answers. "
                "Keep each in the class where it belongs."
            )
        crossing = [each for each in kind if each.cross_splits]
        if crossing:
            pair = _pair(folder, crossing[0], crossing[0].splits)
            cure = (
                f"Put each group into one split yourself, in {folder}/train, {folder}/val and {folder}/test."
                if is_split_by_us
                else "Keep each in one split."
            )
            errors.append(
                f"{_pictures(crossing)} {same} one of another split, such as {pair}: what is asked was learnt before, "
                f"which flatters the result. {cure}"
            )
        within = [each for each in kind if not each.cross_classes and not each.cross_splits]
        if within:
            pair = _pair(folder, within[0], within[0].files)
            notes.append(f"{_pictures(within)} {same} another of their class and split, such as {pair}.")
    return errors, notes


def find_imbalance(counts: Counts) -> list[str]:
    """What is worth knowing of the numbers of pictures in classes and splits."""
    learnt = counts.get("train", counts.get("undivided", {}))
    if not learnt:
        return []
    notes: list[str] = []
    small, large = (choose(learnt, key=lambda name: learnt[name]) for choose in (min, max))
    if learnt[large] > MOST_IMBALANCE * learnt[small]:
        notes.append(
            f"Class {large!r} has {learnt[large]:,} pictures to learn from and {small!r} {learnt[small]:,}: the "
            "accuracy over all says little of the small classes. Look at that of each, or collect more."
        )
    few = [name for name in learnt if learnt[name] < FEWEST]
    if few:
        classes = "1 class has" if len(few) == 1 else f"{len(few):,} classes have"
        notes.append(f"{classes} fewer than {FEWEST} pictures to learn from: {some(few)}. Collect more.")
    for split in ("validation", "test"):
        number = sum(counts.get(split, {}).values())
        if 0 < number < SURE_NUMBER:
            notes.append(
                f"The {split} split has {count(number, 'picture')}, so its accuracy may be off by "
                f"{98 / number**0.5:.0f} points either way. More of them make it surer."
            )
    if "train" in counts and "test" not in counts:
        notes.append("There is no test split, so there will be no independent number. Put pictures aside for one.")
    return notes


def find_names(folder: Path, class_names: Sequence[str], places: Iterable[Place]) -> list[str]:
    """What is worth knowing of names and of what lies deeper."""
    notes: list[str] = []
    are_numbers = all(name.isdecimal() for name in class_names)
    if are_numbers and list(class_names) != sorted(class_names, key=int):
        notes.append(
            f"The names of the classes are numbers, in the order {some(class_names)}, as text is sorted. candid goes "
            "by the names; where another program goes by positions, they are others. Use words, or 01, 02 and so on."
        )
    deeper = sorted(
        {
            place.class_name
            for place in places
            if place.class_name and any(file.count("/") > (2 if place.split else 1) for file in place.files)
        }
    )
    if deeper:
        notes.append(
            f"Folders within a class belong to it: {some(deeper)}. If they are classes of their own, move them up."
        )
    return notes


def find_unused(folder: Path, places: Iterable[Place]) -> list[str]:
    """What lies in the folder and is not looked at."""
    notes: list[str] = []
    stray = [file for place in places if place.class_name is None for file in place.files]
    if stray:
        are = "is" if len(stray) == 1 else "are"
        notes.append(
            f"{count(len(stray), 'picture')} in no class folder {are} not used, such as {folder / stray[0]}. "
            "Move what belongs to a class into its folder."
        )
    try:
        used = [path for paths in find_split_folders(folder).values() for path in paths]
        unused = [path.name for path in folders_in(folder) if path not in used] if used else []
    except DataError:  # which is a finding already
        unused = []
    if unused:
        notes.append(f"Beside the split folders, {some(unused)} in {folder} will not be used; move or rename it.")
    suffixes = _count_other_suffixes(folder)
    if suffixes:
        listed = some([f"{suffix} ({number:,})" for suffix, number in suffixes.most_common()])
        notes.append(f"Files in {folder} that are not named as pictures are not used: {listed}.")
    return notes


def find_mixture(sizes: Sizes, kinds: Mapping[str, int]) -> list[str]:
    """What is worth knowing of sizes and colours."""
    notes: list[str] = []
    if sizes.share_not_square >= MANY_NOT_SQUARE:
        notes.append(
            f"{100 * sizes.share_not_square:.0f} % of the pictures are not square. data.fit decides: crop cuts their "
            "ends off, pad adds black, squash distorts them."
        )
    grey = sum(number for kind, number in kinds.items() if is_grey_kind(kind))
    total = sum(kinds.values())
    if 0 < grey < total:
        notes.append(
            f"{grey:,} of {total:,} pictures have no colour. Where that goes with the class, it is what is learnt; "
            "data.channels=1 takes the colour from all."
        )
    return notes


def _pictures(copies: Sequence[Copies]) -> str:
    number = sum(len(each.files) for each in copies)
    return f"{number:,} pictures are"


def _pair(folder: Path, copies: Copies, kinds: Sequence[str]) -> str:
    """Two of the files that are not of one kind."""
    first_of: dict[str, str] = {}
    for file, kind in zip(copies.files, kinds, strict=True):
        if kind:
            first_of.setdefault(kind, file)
    one, other, *_ = first_of.values()
    return f"{folder / one} and {folder / other}"


def _count_other_suffixes(folder: Path) -> Counter[str]:
    """Suffixes of files that are not taken for pictures, hidden ones aside, with their numbers."""
    suffixes: Counter[str] = Counter()
    for _, folder_names, file_names in os.walk(folder):
        folder_names[:] = [name for name in folder_names if not name.startswith(".")]
        others = [name for name in file_names if not is_named_as_picture(name) and not name.startswith(".")]
        suffixes.update(os.path.splitext(name)[1].lower() or "no suffix" for name in others)
    return suffixes
