"""docs/dense-block.png: what a DenseNet-BC (k = 12) saves for the way back, against its depth.

Run: python -m benchmarks.dense_memory
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure
from torch import nn

from benchmarks.dense_block import Work, bytes_saved, prepare
from benchmarks.usual_networks import small_densenet
from candid.models.densenet import DenseNet, DenseNetConfig
from candid.report.theme import Theme, render_png

FIGURE = Path(__file__).parent.parent / "docs" / "dense-block.png"
DEPTHS = (40, 70, 100, 130, 160, 190)
BATCH_SIZE, SHOWN_BATCH_SIZE = 4, 64  # what is saved grows as the batch does
GROWTH = 12


def main() -> None:
    """Measure, print and draw."""
    saved = {name: [measure(build, depth) for depth in DEPTHS] for name, build in networks().items()}
    for name, mebibytes in saved.items():
        print(f"{name:<28}" + "".join(f"{value:8,.0f}" for value in mebibytes))
    FIGURE.write_bytes(render_png(partial(draw, saved=saved)))


def networks() -> dict[str, Callable[[int], nn.Module]]:
    """By the number of layers in each of three blocks."""
    ours: dict[str, Callable[[int], nn.Module]] = {
        f"candid, {memory}": lambda n, memory=memory: DenseNet(
            DenseNetConfig(GROWTH, (n, n, n), 2 * GROWTH, "small", 32, memory=memory), num_classes=10
        )
        for memory in ("plain", "shared", "recompute")
    }
    return {
        "torchvision": lambda n: small_densenet(GROWTH, (n, n, n)),
        "torchvision, memory_efficient": lambda n: small_densenet(GROWTH, (n, n, n), efficient=True),
    } | ours


def measure(build: Callable[[int], nn.Module], depth: int) -> float:
    """MiB saved by one step, as of a batch of SHOWN_BATCH_SIZE."""
    work = Work("", BATCH_SIZE, 32, {}, [])
    return bytes_saved(prepare(work, build((depth - 4) // 6))) / 2**20 * SHOWN_BATCH_SIZE / BATCH_SIZE


def draw(theme: Theme, saved: dict[str, list[float]]) -> Figure:
    """The figure."""
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    colors = {"torchvision": theme.wrong, "candid, plain": theme.second, "candid, shared": theme.accent}
    for name, mebibytes in saved.items():
        is_theirs = name.startswith("torchvision")
        color = colors.get(name, theme.wrong if is_theirs else theme.right)
        style = ":" if name == "candid, plain" else "--" if name in colors and is_theirs else "-"
        axes.plot(DEPTHS, [value / 1024 for value in mebibytes], style, color=color, marker="o", label=name)
    axes.set(
        xlabel="depth (layers)",
        ylabel="kept for the way back (GiB)",
        title=f"DenseNet-BC, k = {GROWTH}, batch {SHOWN_BATCH_SIZE}, 32 px, float32",
        ylim=(0, None),
        xticks=DEPTHS,
    )
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
