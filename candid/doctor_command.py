"""`candid doctor`: what is wrong with a folder of pictures, and what is worth knowing, before anything is trained."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from candid.printing import print_table
from candid.words import count, percent, showable

if TYPE_CHECKING:
    from candid.data.diagnosis import Diagnosis, Spread

MOST_CLASSES, MOST_UNREADABLE = 40, 100
"""How many of them are shown; JSON has all."""


def doctor(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of pictures, as `candid train --data` takes.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at every picture of a folder; exit code 3 when training on it would be wrong."""
    from candid.data.doctor import diagnose

    diagnosis = diagnose(folder)
    if as_json:
        typer.echo(json.dumps(diagnosis.as_dict(), indent=2))
    else:
        _show(diagnosis)
    if diagnosis.errors:
        raise typer.Exit(3)


def _show(diagnosis: "Diagnosis") -> None:
    classes = "1 class" if len(diagnosis.class_names) == 1 else f"{len(diagnosis.class_names):,} classes"
    _say(f"{diagnosis.folder}: {count(diagnosis.num_files, 'picture')}, {classes}")
    if diagnosis.class_names:
        _show_classes(diagnosis)
    if diagnosis.sizes:
        sizes = diagnosis.sizes
        rows = [_row("width", sizes.width), _row("height", sizes.height), _row("shorter side", sizes.shorter_side)]
        print_table(("px", "smallest", "median", "largest"), rows)
        _say(f"Not square: {percent(sizes.share_not_square)}.")
        _say(f"Stored as: {', '.join(f'{kind} {number:,}' for kind, number in diagnosis.kinds.items())}.")
    for heading, sentences in (("Wrong:", diagnosis.errors), ("Worth knowing:", diagnosis.notes)):
        if sentences:
            _say(f"\n{heading}")
        for sentence in sentences:
            _say(f"- {sentence}")
    _show_unreadable(diagnosis)
    if diagnosis.suggestion:
        when = "When that is mended" if diagnosis.errors else "To start"
        _say(f"\n{when}, at {diagnosis.suggestion.image_size} px: {diagnosis.suggestion.command}")
        _say(diagnosis.suggestion.splits)


def _show_classes(diagnosis: "Diagnosis") -> None:
    """A table of the classes, the smallest ones where there are too many."""
    splits = diagnosis.counts
    numbers = {name: [classes.get(name, 0) for classes in splits.values()] for name in diagnosis.class_names}
    shown = list(numbers)
    if len(shown) > MOST_CLASSES:
        shown = sorted(numbers, key=lambda name: sum(numbers[name]))[:MOST_CLASSES]
    print_table(("class", *splits), [(showable(name), *(f"{number:,}" for number in numbers[name])) for name in shown])
    if len(shown) < len(numbers):
        _say(f"These are the smallest; {len(numbers) - len(shown):,} classes are larger.")


def _show_unreadable(diagnosis: "Diagnosis") -> None:
    problems = list(diagnosis.unreadable.values())
    if problems:
        _say("\nCannot be used:")
    for problem in problems[:MOST_UNREADABLE]:
        _say(f"  {problem}")
    if len(problems) > MOST_UNREADABLE:
        _say(f"  and {len(problems) - MOST_UNREADABLE:,} more; --json has all")


def _row(name: str, spread: "Spread") -> tuple[str, ...]:
    return name, f"{spread.smallest:,}", f"{spread.median:,}", f"{spread.largest:,}"


def _say(text: str) -> None:
    """A line whose names cannot move the cursor."""
    typer.echo("\n".join(map(showable, text.split("\n"))))
