"""The figures of a report; each function draws one and leaves no trace in matplotlib's global state."""

from collections.abc import Sequence
from io import BytesIO
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from candid.report.pictures import Picture
from candid.report.reading import Epoch
from candid.report.theme import Theme
from candid.scores import Bin, ClassScores, wilson_interval
from candid.words import percent, shorten

Panel = Literal["loss", "accuracy", "learning rate"]
PANELS: tuple[Panel, ...] = ("loss", "accuracy", "learning rate")
COLUMNS = {
    "loss": (("validation", "validation_loss"), ("train", "train_loss")),
    "accuracy": (("validation", "validation_accuracy"), ("train", "train_accuracy")),
    "learning rate": (("", "learning_rate"),),
}
MOST_BARS = 40
MOST_NUMBERED = 20
MOST_COMPLETE = 100
MOST_CONFUSED = 30
LABELS_IN_FULL = 50
NAME_WIDTH = 20


def draw_curves(
    theme: Theme, epochs: Sequence[Epoch], best_epoch: int | None, panels: Sequence[Panel] = PANELS
) -> Figure:
    """Loss, accuracy and learning rate over the epochs; a dotted line marks the epoch that was chosen."""
    figure = Figure(figsize=(3.4 * len(panels), 2.7), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, theme, epochs, panel)
        if best_epoch is not None:
            axes.axvline(best_epoch, color=theme.second, linewidth=1, linestyle=":")
            axes.set_title(f"best (dotted): epoch {best_epoch}", loc="right", fontsize=8, color=theme.second)
    return figure


def _draw_panel(axes: Axes, theme: Theme, epochs: Sequence[Epoch], panel: Panel) -> None:
    marker = "o" if len(epochs) <= 30 else ""
    styles = {"validation": (theme.accent, "-"), "train": (theme.second, "--"), "": (theme.accent, "-")}
    for name, column in COLUMNS[panel]:
        values: list[float | None] = [getattr(epoch, column) for epoch in epochs]
        points = [(e.epoch, value) for e, value in zip(epochs, values, strict=True) if value is not None]
        if points:
            color, line = styles[name]
            axes.plot(*zip(*points, strict=True), color=color, linestyle=line, linewidth=1.6, marker=marker,
                      markersize=3, label=name)  # fmt: skip
    if len(axes.lines) > 1:
        axes.legend(fontsize=8)
    axes.set_title("loss (nats)" if panel == "loss" else panel)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y")
    if panel == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def worst_first(scores: Sequence[ClassScores]) -> list[ClassScores]:
    """The classes by recall, lowest first; those without an example last."""
    return sorted(scores, key=lambda score: (score.images == 0, score.recall if score.images else 0.0))


def draw_per_class(theme: Theme, scores: Sequence[ClassScores]) -> Figure:
    """A bar for the recall of each class with its 95 % interval, the worst on top; at most 40 bars."""
    shown = [score for score in worst_first(scores) if score.images][:MOST_BARS]
    figure = Figure(figsize=(4.4, 0.75 + 0.25 * len(shown)), layout="constrained")
    axes = figure.subplots()
    recalls = np.array([score.recall for score in shown])
    bounds = np.array([score.recall_interval for score in shown])
    rows = np.arange(len(shown))
    axes.barh(rows, recalls, height=0.62, color=theme.accent, alpha=0.55, linewidth=0)
    axes.errorbar(recalls, rows, xerr=np.abs(bounds.T - recalls), fmt="none", ecolor=theme.ink, elinewidth=1, capsize=2)
    axes.set_yticks(rows, [shorten(score.class_name, NAME_WIDTH) for score in shown])
    for row, score in enumerate(shown):
        axes.annotate(
            percent(score.recall), (1, row), (6, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", verticalalignment="center", fontsize=8,
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6), xlabel="recall, with 95 % Wilson interval")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "", "50 %", "", "100 %"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    return figure


def draw_reliability(theme: Theme, bins: Sequence[Bin]) -> Figure:
    """Accuracy over confidence, a dot for each bin that is as large as its share of the pictures, with its interval.

    Below the diagonal the network is surer than it is right.
    """
    figure = Figure(figsize=(4.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color=theme.second, linestyle=":", linewidth=1.2, label="as sure as right")
    confidences, accuracies = ([getattr(part, name) for part in bins] for name in ("confidence", "accuracy"))
    bounds = np.array([wilson_interval(round(part.accuracy * part.images), part.images) for part in bins])
    reach = np.abs(bounds.T - np.array(accuracies))
    axes.errorbar(confidences, accuracies, yerr=reach, fmt="none", ecolor=theme.ink, elinewidth=1, capsize=2)
    total = sum(part.images for part in bins)
    sizes = [20 + 400 * part.images / total for part in bins]
    axes.scatter(confidences, accuracies, s=sizes, color=theme.accent, alpha=0.55, linewidths=0, zorder=3)
    axes.set(xlim=(0, 1.03), ylim=(0, 1.03), xlabel="confidence", ylabel="accuracy, with 95 % Wilson interval")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.set_aspect("equal")
    axes.legend(fontsize=8, loc="upper left")
    axes.grid()
    axes.set_axisbelow(True)
    return figure


def classes_to_draw(confusion: Tensor) -> list[int]:
    """Classes of the confusion matrix: all of up to 100, else the 30 with most errors, in class order."""
    if len(confusion) <= MOST_COMPLETE:
        return list(range(len(confusion)))
    errors = confusion.sum(dim=0) + confusion.sum(dim=1) - 2 * confusion.diagonal()
    return sorted(errors.argsort(descending=True, stable=True)[:MOST_CONFUSED].tolist())


def draw_confusion(theme: Theme, confusion: Tensor, class_names: Sequence[str]) -> Figure:
    """Truth by row, prediction by column; the colour is the share of the row on a square-root scale."""
    classes = classes_to_draw(confusion)
    counts = confusion[classes][:, classes].numpy()
    shares = counts / confusion[classes].sum(dim=1, keepdim=True).clamp(min=1).numpy()
    names = [shorten(class_names[k], NAME_WIDTH - 4) for k in classes]
    side_in = 1.7 + len(classes) * _cell_in(len(classes))
    figure = Figure(figsize=(side_in, side_in), layout="constrained")
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list("shares", [theme.paper, theme.accent])
    axes.imshow(shares, cmap=colors, norm=PowerNorm(0.5, 0, 1), interpolation="none")
    if len(classes) <= MOST_NUMBERED:
        for row, column in zip(*counts.nonzero(), strict=True):
            color = theme.on_accent if shares[row, column] > 0.35 else theme.ink
            axes.text(column, row, f"{counts[row, column]}", color=color, fontsize=8, ha="center", va="center")
    _label_classes(axes, names)
    return figure


def _cell_in(num_classes: int) -> float:
    """Side of a cell in inches: room for a number, for a label, or for a square one can still see."""
    if num_classes <= MOST_NUMBERED:
        return max(0.42, min(0.8, 2.5 / num_classes))
    return 0.17 if num_classes <= LABELS_IN_FULL else 0.08


def _label_classes(axes: Axes, names: Sequence[str]) -> None:
    """Class names along both sides; of many, every second."""
    step = 1 if len(names) <= LABELS_IN_FULL else 2
    size = 9 if len(names) <= MOST_NUMBERED else 7.5
    ticks = range(0, len(names), step)
    axes.set_xticks(
        ticks, names[::step], rotation=45 if step == 1 else 90, ha="right", va="center" if step > 1 else "top",
        rotation_mode="anchor", fontsize=size,
    )  # fmt: skip
    axes.set_yticks(ticks, names[::step], fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="prediction", ylabel="truth")


def draw_pictures(theme: Theme, pictures: Sequence[Picture], columns: int, with_probability: bool) -> Figure:
    """The pictures in rows, each under "prediction (truth)" with a tick or a cross."""
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.72 * rows), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1.5 * columns), ylim=(1.72 * rows, 0))
    axes.axis("off")
    for position, picture in enumerate(pictures):
        row, column = divmod(position, columns)
        left, top = 1.5 * column + 0.1, 1.72 * row + 0.36
        extent = left, left + 1.3, top + 1.3, top
        axes.imshow(imread(BytesIO(picture.png)), cmap="gray", vmin=0, vmax=1, extent=extent)
        caption = _caption(picture, with_probability)
        color = theme.right if picture.right else theme.wrong
        axes.text(left, top - 0.04, caption, color=color, fontsize=6.5, linespacing=1.25, va="bottom")
    axes.set(xlim=(0, 1.5 * columns), ylim=(1.72 * rows, 0), aspect="auto")
    return figure


def _caption(picture: Picture, with_probability: bool) -> str:
    mark = "✓" if picture.right else "✗"
    probability = f" {percent(picture.probability)}" if with_probability else ""
    first = f"{mark} {shorten(picture.prediction, 20 - len(probability))}{probability}"
    return f"{first}\n({shorten(picture.truth, 20)})"
