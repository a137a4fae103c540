"""Memory and time of a step against the batch, as `candid plan --what-if` draws them."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from candid.durable import write_file
from candid.errors import InputError
from candid.report.theme import Theme, is_own_png, render_png
from candid.training.planning import Curve

LINES = ("-", "--", ":")
GIB = 2**30


def write_memory_figure(path: Path, title: str, curves: Sequence[Curve], budgets: Mapping[str, float]) -> Path:
    """The figure as a PNG file; replaces an earlier one, but no other file."""
    if path.exists() and not is_own_png(path):
        raise InputError(f"{path} is no figure that candid drew, so it stays as it is. Give another --figure FILE.")
    write_file(path, render_png(partial(draw_memory, title=title, curves=curves, budgets=budgets)))
    return path


def draw_memory(theme: Theme, title: str, curves: Sequence[Curve], budgets: Mapping[str, float]) -> Figure:
    """A line for each way to train; dotted lines are `budgets` in bytes."""
    figure = Figure(figsize=(8.2, 3.6), layout="constrained")
    memory, time = figure.subplots(1, 2)
    colors = (theme.accent, theme.wrong, theme.right)
    for curve, color, line in zip(curves, colors, LINES, strict=False):
        gib = [total / GIB for total in curve.memory]
        memory.plot(curve.batches, gib, color=color, linestyle=line, linewidth=1.6, label=curve.name)
        time.plot(curve.batches, curve.step_s, color=color, linestyle=line, linewidth=1.6, label=curve.name)
    highest = max(max(curve.memory) for curve in curves) / GIB
    for name, num_bytes in budgets.items():
        if num_bytes / GIB < 1.6 * highest:
            memory.axhline(num_bytes / GIB, color=theme.second, linewidth=0.8, linestyle=":")
            memory.annotate(name, (1, num_bytes / GIB), (3, 0), xycoords=("axes fraction", "data"),
                            textcoords="offset points", color=theme.second, fontsize=7, va="center")  # fmt: skip
    for axes, what in ((memory, "peak memory (GiB)"), (time, "time of a step (s), about")):
        _finish(axes, curves[0].batches, what)
    memory.legend(fontsize=8)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def _finish(axes: Axes, batches: Sequence[int], what: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(batches))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.set(xlabel="batch (images)", title=what)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
