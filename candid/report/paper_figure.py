"""Figure 4 of the DenseNet paper: error on augmented CIFAR-10 against parameters, from its Table 2, and our runs."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from candid.durable import write_file
from candid.errors import InputError
from candid.paper_tables import COLUMNS, Paper
from candid.report.paper_runs import MeasuredRun
from candid.report.theme import Theme, is_own_png, render_png
from candid.zoo import read_entries

COLUMN = "C10+"
TICKS = (1, 2, 5, 10, 20, 50)
"""Millions of parameters."""


class Style(NamedTuple):
    """How a method is drawn; the paper's own are in the accent colour."""

    marker: str
    line: str
    own: bool = False
    label_at: tuple[float, float] = (5, 3)
    """Of the depth, in points from the marker."""


STYLES = {
    "DenseNet-BC": Style("o", "-", own=True),
    "DenseNet": Style("o", "--", own=True),
    "Pre-activation ResNet": Style("s", "-", label_at=(-6, -9)),
    "ResNet": Style("s", ":"),
    "Stochastic depth": Style("D", ":"),
    "Wide ResNet": Style("^", ":"),
    "FractalNet": Style("v", ":"),
}


class Point(NamedTuple):
    """A network of the table that has all that the figure shows."""

    depth: int
    millions: float
    """Of parameters."""
    error: float
    """In percent."""


def write_paper_figure(path: Path, paper: Paper, runs: Sequence[MeasuredRun]) -> Path:
    """The figure as a PNG file; replaces an earlier one, but no other file."""
    if path.exists() and not is_own_png(path):
        raise InputError(f"{path} is no figure that candid drew, so it stays as it is. Give another --figure FILE.")
    write_file(path, render_png(partial(draw_paper, paper=paper, runs=runs)))
    return path


def draw_paper(theme: Theme, paper: Paper, runs: Sequence[MeasuredRun]) -> Figure:
    """A line or points for each method with the depths beside them; our runs are stars."""
    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    axes = figure.subplots()
    for method, style in STYLES.items():
        _draw_method(axes, theme, method, style, find_points(paper, method))
    millions = {entry.name: entry.parameters / 1e6 for entry in read_entries()}
    ours = [(millions[run.model], 100 * run.error) for run in runs if run.column == COLUMN]
    if ours:
        axes.plot(*zip(*ours, strict=True), color=theme.wrong, marker="*", markersize=9, linestyle="", label="candid")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} M")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set(xlabel="parameters", title="Test error on CIFAR-10 with shifts and mirroring (C10+), numbers are depths")
    axes.set_xlim(0.6, 60)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, ncols=2)
    return figure


def find_points(paper: Paper, method: str) -> list[Point]:
    """The networks of a method, whatever its row adds behind a comma."""
    points: list[Point] = []
    for row in paper.small_images:
        error = row.errors[COLUMNS.index(COLUMN)]
        if row.method.partition(",")[0] == method and row.depth and row.millions and error:
            points.append(Point(row.depth, row.millions, error))
    return points


def _draw_method(axes: Axes, theme: Theme, method: str, style: Style, points: Sequence[Point]) -> None:
    color = theme.accent if style.own else theme.second
    several = len({point.depth for point in points}) > 1  # else they are one network, trained in several ways
    axes.plot(
        [point.millions for point in points],
        [point.error for point in points],
        color=color,
        label=method,
        linestyle=style.line if several else "",
        linewidth=1.4,
        marker=style.marker,
        markersize=5,
        markerfacecolor=color if style.line == "-" else theme.paper,
    )
    for point in points:
        axes.annotate(
            str(point.depth),
            (point.millions, point.error),
            style.label_at,
            textcoords="offset points",
            color=color,
            fontsize=7,
            horizontalalignment="left" if style.label_at[0] > 0 else "right",
        )
