"""docs/scaling.png: images/s of training against width, depth, image side and batch.

Run: python -m benchmarks.scaling
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from benchmarks.automatic import as_data, automatic_epoch, automatic_recipe
from benchmarks.by_hand import ByHand
from benchmarks.measuring import describe_machine, fastest
from benchmarks.usual import random_cifar
from candid.report.theme import Theme, render_png

FIGURE = Path(__file__).parent.parent / "docs" / "scaling.png"
ROUNDS = 2
BY_HAND, AUTOMATIC = "fp32, NCHW", "automatic settings"


@dataclass(frozen=True)
class Point:
    """A training that is timed."""

    value: int
    """Where it stands on the panel's axis."""
    model: str
    batch_size: int
    side_px: int = 32


@dataclass(frozen=True)
class Panel:
    """What grows, and what else holds."""

    title: str
    axis: str
    points: Sequence[Point]


PANELS = (
    Panel(
        "DenseNet-BC-40-k, batch 16",
        "width: growth rate k",
        [Point(k, f"densenet-bc-40-{k}", 16) for k in (12, 36, 48, 60)],
    ),
    Panel(
        "ResNet-n for CIFAR, batch 64",
        "depth: layers n",
        [Point(n, f"resnet{n}-cifar", 64) for n in (20, 32, 44, 56, 110)],
    ),
    Panel(
        "ResNet-18, batch 16",
        "image side (px)",
        [Point(side, "resnet18-cifar", 16, side) for side in (16, 32, 48, 64, 96)],
    ),
    Panel("ResNet-20 for CIFAR", "batch", [Point(2**n, "resnet20-cifar", 2**n) for n in range(3, 10)]),
)
Speeds = dict[str, list[float]]
"""Images/s by contender, a value for each point."""


def main(figure: Path = FIGURE) -> None:
    """Measure, print and draw."""
    print(f"Images/s of training; fastest of {ROUNDS} rounds\n{describe_machine()}", flush=True)
    speeds = [measure_panel(panel) for panel in PANELS]
    figure.write_bytes(render_png(partial(draw, speeds=speeds)))


def measure_panel(panel: Panel) -> Speeds:
    """Print the panel as a table."""
    measured = [measure(point) for point in panel.points]
    speeds = {name: [point[name] for point in measured] for name in (BY_HAND, AUTOMATIC)}
    print(f"{panel.title}\n  {panel.axis:<26}" + "".join(f"{point.value:8,}" for point in panel.points))
    for name, values in speeds.items():
        print(f"  {name:<26}" + "".join(f"{value:8,.0f}" for value in values), flush=True)
    return speeds


def measure(point: Point) -> dict[str, float]:
    """Images/s of both contenders."""
    images, labels = random_cifar(point.batch_size, point.side_px)
    recipe = automatic_recipe(point.model, point.batch_size, point.side_px)
    contenders = {
        AUTOMATIC: automatic_epoch(recipe, as_data(images, labels)),
        BY_HAND: partial(ByHand(point.model, images, "contiguous").epoch, 1, "fp32"),
    }
    return {name: point.batch_size / seconds for name, seconds in fastest(contenders, ROUNDS).items()}


def draw(theme: Theme, speeds: list[Speeds]) -> Figure:
    """The figure: a panel for each thing that grows, both axes logarithmic."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    for axes, panel, values in zip(figure.subplots(2, 2).flat, PANELS, speeds, strict=True):
        draw_panel(axes, theme, panel, values)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    return figure


def draw_panel(axes: Axes, theme: Theme, panel: Panel, speeds: Speeds) -> None:
    """One panel."""
    ticks = [point.value for point in panel.points]
    for (name, values), color in zip(speeds.items(), (theme.second, theme.accent), strict=True):
        axes.plot(ticks, values, color=color, marker="o", label=name)
    axes.set(title=panel.title, xlabel=panel.axis, ylabel="images/s", xscale="log", yscale="log")
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(axis="y")


if __name__ == "__main__":
    main()
