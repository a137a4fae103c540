"""How numbers, names and times are written for people."""

import math
import unicodedata
from collections.abc import Collection, Sequence
from datetime import datetime

NARROWEST = 8
"""Room that a table leaves to its first column at least."""
UNSHOWABLE = {"Cc", "Cs", "Co", "Cn"}
"""Unicode categories without a picture: controls, halves of pairs, private use, unassigned."""


def percent(share: float | None) -> str:
    """A share in [0, 1] such as "87.30 %"; a dash where there is none."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.2f} %"


def interval(bounds: tuple[float, float]) -> str:
    """Bounds in [0, 1] such as "85.10 % to 89.23 %"."""
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def p_value(value: float) -> str:
    """What a test comes to, such as "p = 0.032"; below a thousandth only that."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def count(number: int, noun: str) -> str:
    """Such as "1 picture" or "1,000 pictures"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Such as "45 s", "2 min 13 s" or "3 h 5 min"."""
    total = round(seconds)
    hours, minutes = divmod(total // 60, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {total % 60} s" if minutes else f"{total} s"


def milliseconds(number: float) -> str:
    """Such as "0.31 ms", "9.1 ms" or "1,250 ms"."""
    digits = 0 if number >= 99.5 else 1 if number >= 9.95 else 2
    return f"{number:,.{digits}f} ms"


def moment(iso: str) -> str:
    """ISO 8601 such as "2025-03-01 12:34 UTC", without seconds; what is not ISO 8601 stays as it is."""
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".rstrip()


def showable(text: str) -> str:
    """The text on one line, a � for each character that has no picture."""
    return "".join("�" if unicodedata.category(character) in UNSHOWABLE else character for character in text)


def shorten(name: str, width: int) -> str:
    """A name in at most `width` columns, keeping both ends: 'golden retriever', 9 -> 'gold…ever'."""
    short = name = showable(name)
    kept = len(name)
    while _columns(short) > width:
        kept -= 1
        tail = kept // 2
        short = f"{name[: kept - tail]}…{name[len(name) - tail :]}"
    return short


def aligned(rows: Sequence[Sequence[str]], numbers: Collection[int] = (), width: int | None = None) -> list[str]:
    """A table as lines: the first row is the headings, the columns in `numbers` stand to the right.

    Where `width` is too narrow for the lines, the columns move together and then the first one is shortened.
    """
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    gap = "  "
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        gap = " "
        widths[0] = min(widths[0], max(width - sum(widths[1:]) - len(widths) + 1, NARROWEST))
        rows = [(shorten(row[0], widths[0]), *row[1:]) for row in rows]
    lines = [gap.join(map(_pad, row, widths, (k in numbers for k in range(len(row))))).rstrip() for row in rows]
    return [lines[0], "─" * max(map(_columns, lines)), *lines[1:]]


def _pad(text: str, width: int, to_the_right: bool) -> str:
    space = " " * (width - _columns(text))
    return space + text if to_the_right else text + space


def _columns(text: str) -> int:
    """Room that a text takes, in Latin letters; a Chinese, Japanese or Korean character takes two."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
