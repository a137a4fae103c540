"""Results as notebooks show them: sentences, tables and figures in HTML that runs no script and fetches nothing."""

from collections.abc import Collection, Iterable, Sequence
from html import escape

from candid.words import shorten, showable

NAME_WIDTH = 16
"""Columns of a class name in a heat map."""
DARKEST = 0.6
"""Opacity of a cell that holds all of its row: the count in it can be read on light and on dark paper."""


def paragraphs(sentences: Iterable[str]) -> str:
    """Each sentence as a paragraph."""
    return "".join(f"<p>{_safe(sentence)}</p>" for sentence in sentences)


def table(rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> str:
    """A table; as in `aligned`, the first row is the headings and the columns in `numbers` stand to the right."""
    sides = ["right" if column in numbers else "left" for column in range(len(rows[0]))]
    tags = ["th", *["td"] * (len(rows) - 1)]
    return _table(
        [_cell(tag, text, f"text-align:{side}") for text, side in zip(row, sides, strict=True)]
        for tag, row in zip(tags, rows, strict=True)
    )


def heat_map(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Counts [classes, classes] with a row for each truth and a column for each answer, bluer for more of the row."""
    short = [shorten(name, NAME_WIDTH) for name in names]
    head = [_cell("th", text, "text-align:right") for text in ("truth \\ answer", *short)]
    body = [
        [_cell("th", name, "text-align:right"), *(_shaded(count, sum(row)) for count in row)]
        for name, row in zip(short, counts, strict=True)
    ]
    return _table([head, *body])


def figure(source: str, alt: str) -> str:
    """A picture given as a data URI, and what it shows in words."""
    return f'<img src="{escape(source)}" alt="{_safe(alt)}">'


def _shaded(count: int, total: int) -> str:
    blue = f"background:rgba(31,119,180,{DARKEST * count / max(1, total):.2f})"
    return _cell("td", f"{count:,}" if count else "", f"text-align:right;{blue}")


def _table(rows: Iterable[Iterable[str]]) -> str:
    lines = (f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table>{''.join(lines)}</table>"


def _cell(tag: str, text: str, style: str) -> str:
    return f'<{tag} style="{style}">{_safe(text)}</{tag}>'


def _safe(text: str) -> str:
    return escape(showable(text))
