"""Time to an accuracy on CIFAR-10: the recipes for speed, trained whole, against the notes' recipe for densenet_cifar.

Run: SPEED_DATA=FOLDER python -m benchmarks.speed [RECIPE...] (without SPEED_DATA, the catalog's cifar10;
SPEED_SEEDS=0,1,2 takes several seeds). Of the notes' recipe, which would take hours, steps are timed: its 20 epochs are
so many times that.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import describe_machine, fastest
from benchmarks.usual import random_cifar, usual_loader, usual_script
from benchmarks.usual_networks import USUAL
from candid.data.catalog import open_data_set
from candid.data.loading import shown_image_size
from candid.models import build_model
from candid.recipe import Recipe
from candid.recipes import choose_recipe
from candid.words import duration, interval, percent

BASELINE, BASELINE_EPOCHS, BASELINE_BATCH_SIZE = "densenet-cifar", 20, 128
STEPS, ROUNDS = 4, 2


@dataclass(frozen=True)
class Work:
    """A recipe, the accuracy that it is for, and the most of the baseline's time that it may take; None is stated."""

    recipe: str
    target: float
    bar: float | None


WORK = (
    Work("speed/airbench90", 0.90, 1 / 25),
    Work("speed/densenet90", 0.90, 1 / 6),
    Work("speed/resnet90", 0.90, None),
    Work("speed/airbench94", 0.94, None),
)


def main() -> None:
    """Print a line for each run, and one for each recipe."""
    data, seeds = os.environ.get("SPEED_DATA", "cifar10"), os.environ.get("SPEED_SEEDS", "0").split(",")
    num_images = len(open_data_set(data).openers["train"]())
    baseline_s = BASELINE_EPOCHS * time_of_an_epoch(num_images)
    print(f"Training to an accuracy on {Path(data).name}\n{describe_machine()}")
    print(
        f"The notes' recipe, {BASELINE} by the usual script: {duration(baseline_s)} for {BASELINE_EPOCHS} epochs of "
        f"{num_images:,} pictures, from {STEPS} steps",
        flush=True,
    )
    for work in WORK:
        if work.recipe in sys.argv[1:] or not sys.argv[1:]:
            measure(work, data, seeds, baseline_s)


def time_of_an_epoch(num_images: int) -> float:
    """Seconds of an epoch of the notes' recipe, by a few steps of it."""
    images, labels = random_cifar(BASELINE_BATCH_SIZE * STEPS)
    loader = usual_loader(images, labels, BASELINE_BATCH_SIZE, workers=2)
    seconds = fastest({"usual": usual_script(USUAL[BASELINE](), loader)}, ROUNDS)["usual"]
    return seconds / len(images) * num_images


def measure(work: Work, data: str, seeds: list[str], baseline_s: float) -> None:
    """Train a recipe with each seed; print accuracy, interval and time of each, then what they come to."""
    results: list[dict[str, Any]] = []
    for seed in seeds:
        with TemporaryDirectory() as folder:
            results.append(train(work.recipe, data, seed, Path(folder) / "run"))
        result = results[-1]
        print(
            f"  {work.recipe}, seed {seed}: test accuracy {percent(result['test_accuracy'])} "
            f"({interval(result['test_accuracy_interval'])}, {result['test_images']:,} pictures; averaged over mirror "
            f"images {percent(result['mirrored_accuracy'])}) after {duration(result['train_seconds'])}",
            flush=True,
        )
    accuracies = [result["test_accuracy"] for result in results]
    spread = f" ± {100 * stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    seconds = min(result["train_seconds"] for result in results)
    recipe = choose_recipe(work.recipe, data)
    sides_px = [shown_image_size(recipe, epoch) for epoch in range(recipe.training.epochs)]
    petaflops = sum(count_operations(recipe, side_px) for side_px in sides_px) * results[0]["images"] / 1e15
    print(
        f"  {work.recipe}: {percent(mean(accuracies)).replace(' %', f'{spread} %')} (target {percent(work.target)}), "
        f"{petaflops:.2f} PFLOP, {duration(seconds)}, 1/{baseline_s / seconds:.1f} of the notes' time"
        + ("" if work.bar is None else f", bar 1/{1 / work.bar:.0f}"),
        flush=True,
    )


def train(recipe: str, data: str, seed: str, run: Path) -> dict[str, Any]:
    """Train in a process of its own; its result, with the number of its pictures and the mirrored accuracy."""
    training = ["train", recipe, "--data", data, "--seed", seed, "--out", str(run)]
    for arguments in (training, ["evaluate", str(run), "--split", "test", "--mirror"]):
        subprocess.run([sys.executable, "-m", "candid", *arguments], check=True, stdout=subprocess.DEVNULL)
    images = json.loads((run / "environment.json").read_text())["training_images"]
    mirrored = json.loads((run / "evaluation-test-mirrored" / "summary.json").read_text())["accuracy"]
    return json.loads((run / "result.json").read_text()) | {"images": images, "mirrored_accuracy": mirrored}


@cache
def count_operations(recipe: Recipe, side_px: int) -> float:
    """Floating-point operations of a step for each of its pictures, forward and backward, of products alone."""
    channels = recipe.data.channels or 3
    model = build_model(recipe.model.name, 10, channels, memory="plain")
    images = torch.zeros(2, channels, side_px, side_px)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(images), torch.zeros(2, dtype=torch.long)).backward()
    return counter.get_total_flops() / len(images)


if __name__ == "__main__":
    main()
