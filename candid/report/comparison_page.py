"""The page of several runs side by side, put into `comparison.html.jinja`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from candid.durable import write_file
from candid.errors import InputError
from candid.report.comparison_figures import draw_against_parameters, draw_against_time, draw_overlaid
from candid.report.drawing import draw_twice
from candid.report.side_by_side import Contender, SideBySide
from candid.report.templates import render

MARK = '<meta name="generator" content="candid compare">'


def write_comparison(path: Path, found: SideBySide) -> Path:
    """The page as one file; it replaces an earlier one, but no other file.

    Raises:
        InputError: if another file lies there.
    """
    if path.exists() and MARK.encode() not in path.read_bytes()[:4096]:
        raise InputError(f"{path} is no comparison that candid wrote, so it stays as it is. Give another --out FILE.")
    write_file(path, render_comparison(found))
    return path


def render_comparison(found: SideBySide) -> str:
    """The HTML of the page."""
    return render(
        "comparison.html.jinja",
        mark=MARK,
        contenders=found.contenders,
        spreads=found.spreads,
        duels=found.duels,
        figures=list(draw_figures(found.contenders)),
    )


def draw_figures(contenders: Sequence[Contender]) -> list[Any]:
    """Curves and scatters for which there is something to draw."""
    labels = ", ".join(contender.label for contender in contenders)
    figures: list[Any] = []
    if any(epoch.validation_accuracy is not None for c in contenders for epoch in c.record.epochs):
        draw = partial(draw_overlaid, contenders=contenders, curve="validation_accuracy")
        figures.append(draw_twice(draw, f"Validation accuracy over the epochs of {labels}."))
    if any(c.record.epochs for c in contenders):
        draw = partial(draw_overlaid, contenders=contenders, curve="train_loss")
        figures.append(draw_twice(draw, f"Training loss over the epochs of {labels}."))
    if any(c.score and c.parameters for c in contenders):
        draw = partial(draw_against_parameters, contenders=contenders)
        figures.append(draw_twice(draw, f"Accuracy against parameters of {labels}."))
    if any(c.score and c.train_seconds for c in contenders):
        draw = partial(draw_against_time, contenders=contenders)
        figures.append(draw_twice(draw, f"Accuracy against time of training of {labels}."))
    return figures
