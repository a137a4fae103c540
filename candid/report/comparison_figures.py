"""The figures of several runs side by side."""

from collections.abc import Callable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from candid.report.side_by_side import Contender
from candid.report.theme import Theme
from candid.words import duration, shorten

MARKERS = "osD^vP*X"
NAME_WIDTH = 28

Curve = Literal["validation_accuracy", "train_loss"]
TITLES: dict[Curve, str] = {"validation_accuracy": "validation accuracy", "train_loss": "training loss (nats)"}


def draw_overlaid(theme: Theme, contenders: Sequence[Contender], curve: Curve) -> Figure:
    """A curve of each run over the epochs."""
    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.subplots()
    for place, contender in enumerate(contenders):
        values = [(epoch.epoch, getattr(epoch, curve)) for epoch in contender.record.epochs]
        points = [(epoch, value) for epoch, value in values if value is not None]
        if points:
            color, line = theme.series[place % len(theme.series)], ("-", "--", ":")[place // len(theme.series) % 3]
            marker = MARKERS[place % len(MARKERS)] if len(points) == 1 else ""  # a line through one point is invisible
            axes.plot(*zip(*points, strict=True), color=color, linestyle=line, linewidth=1.5, marker=marker,
                      label=shorten(contender.label, NAME_WIDTH))  # fmt: skip
    axes.set(xlabel="epoch", title=TITLES[curve])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if curve == "validation_accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _finish(axes)
    return figure


def draw_against_parameters(theme: Theme, contenders: Sequence[Contender]) -> Figure:
    """Accuracy over parameters."""
    figure = _draw_scatter(theme, contenders, lambda contender: contender.parameters, "parameters")
    figure.axes[0].xaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure


def draw_against_time(theme: Theme, contenders: Sequence[Contender]) -> Figure:
    """Accuracy over the time of training."""
    figure = _draw_scatter(theme, contenders, lambda contender: contender.train_seconds, "time of training")
    figure.axes[0].xaxis.set_major_formatter(lambda seconds, _: duration(seconds))
    return figure


def _draw_scatter(
    theme: Theme, contenders: Sequence[Contender], of: Callable[[Contender], float | None], name: str
) -> Figure:
    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.subplots()
    for place, contender in enumerate(contenders):
        x, score = of(contender), contender.score
        if x is None or score is None:
            continue
        low, high = score.interval or (score.accuracy, score.accuracy)
        color = theme.series[place % len(theme.series)]
        axes.errorbar(
            x, score.accuracy, yerr=[[score.accuracy - low], [high - score.accuracy]], color=color, capsize=2,
            marker=MARKERS[place % len(MARKERS)], markersize=6, linestyle="", elinewidth=1,
            label=shorten(contender.label, NAME_WIDTH),
        )  # fmt: skip
    axes.set(xlabel=name, title=f"accuracy against {name}, with 95 % intervals")
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _finish(axes)
    return figure


def _finish(axes: Axes) -> None:
    axes.grid()
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7.5)
