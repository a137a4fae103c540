"""An epoch over a folder of 60,000 JPEGs of 32x32, without a network, against torchvision; and how long a step waits.

Run: python -m benchmarks.folder
"""

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets

from benchmarks.automatic import CPU, VARIATIONS, as_data, automatic_epoch, automatic_recipe
from benchmarks.loading import consume
from benchmarks.measuring import describe_machine, fastest
from benchmarks.training import LONGEST_WAIT_PERCENT
from benchmarks.usual import random_cifar, usual_transforms
from candid.data.catalog import open_data_set
from candid.data.loading import TrainingBatches, TrainingData, open_training_data
from candid.recipe import Recipe

NUM_PICTURES, NUM_DISTINCT, NUM_CLASSES = 60_000, 200, 10
BATCH_SIZE, WORKERS, ROUNDS, BAR = 128, 2, 2, 10
WAITS = (("resnet20-cifar", 128, 8), ("lenet-relu", 64, 150), ("lenet-relu", 256, 50), ("wrn-16-4", 128, 3))
"""Networks, their batches, and how many steps are watched."""


def main() -> None:
    """Print the table."""
    print(f"{NUM_PICTURES:,} JPEGs of 32x32, batches of {BATCH_SIZE} with pad-and-crop, mirror and normalisation")
    print(describe_machine(), flush=True)
    with TemporaryDirectory() as folder:
        make_pictures(Path(folder))
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")  # with nothing in it
        measure_folder(Path(folder))
    for model, batch_size, steps in WAITS:
        images, labels = random_cifar(batch_size * steps)
        epoch = automatic_epoch(automatic_recipe(model, batch_size), as_data(images, labels))
        epoch()
        percent = min(epoch().waited_percent for _ in range(ROUNDS))
        print(
            f"  {model:<16}batch {batch_size:>3}   waits {percent:4.1f} % of a step for data, "
            f"bar {LONGEST_WAIT_PERCENT} %",
            flush=True,
        )


def measure_folder(folder: Path) -> None:
    """Print the lines of the folder: opening it twice, and an epoch of each way to read it."""
    recipe = Recipe().replace(
        {**VARIATIONS, "data.name": str(folder), "data.validation": 0.0, "data.image_size": 32, "data.channels": 3,
         "training.batch_size": BATCH_SIZE}
    )  # fmt: skip
    first_s, _ = timed(lambda: open_folder(recipe))
    print(f"  candid, opened for the first time: decoded, and kept   {first_s:6.2f} s", flush=True)
    second_s, data = timed(lambda: open_folder(recipe))
    print(f"  candid, opened again: read from the cache              {second_s:6.2f} s", flush=True)
    from_disk = open_folder(recipe.replace({"data.in_memory": False}))
    pictures = datasets.ImageFolder(str(folder / "train"), usual_transforms())
    usual = DataLoader(pictures, BATCH_SIZE, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    in_memory, cached = (TrainingBatches(each, recipe, NUM_CLASSES, CPU) for each in (data, from_disk))
    seconds = fastest(
        {
            "candid, in memory": lambda: consume(in_memory.epoch(0)),
            "candid, from the cache (data.in_memory=false)": lambda: consume(cached.epoch(0)),
            f"torchvision ImageFolder, {WORKERS} workers": lambda: consume(usual),
        },
        ROUNDS,
    )
    *_, slowest_s = seconds.values()
    for name, duration_s in seconds.items():
        ratio = f"   {slowest_s / duration_s:5.1f}x, bar {BAR}x" if name.startswith("candid") else ""
        print(f"  an epoch: {name:<45}{duration_s:6.2f} s{ratio}", flush=True)


def open_folder(recipe: Recipe) -> TrainingData:
    """The pictures as a run opens them."""
    return open_training_data(open_data_set(recipe.data.name), recipe)


def timed(call: Callable[[], TrainingData]) -> tuple[float, TrainingData]:
    """Seconds, and what came of it."""
    began_at_s = time.perf_counter()
    data = call()
    return time.perf_counter() - began_at_s, data


def make_pictures(folder: Path) -> None:
    """Coarse noise in ten classes below train/; each file has other pixels, some of them shifted from others."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (NUM_DISTINCT, 8, 8, 3), dtype=np.uint8)
    distinct = [np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BICUBIC)) for each in coarse]
    for number in range(NUM_CLASSES):
        (folder / "train" / f"class{number}").mkdir(parents=True)
    for number in range(NUM_PICTURES):
        shift = number // NUM_DISTINCT
        shifted = np.roll(distinct[number % NUM_DISTINCT], (shift % 32, shift // 32), axis=(0, 1))
        encoded = io.BytesIO()
        Image.fromarray(shifted).save(encoded, "JPEG", quality=90)
        (folder / "train" / f"class{number % NUM_CLASSES}" / f"{number:05}.jpg").write_bytes(encoded.getvalue())


if __name__ == "__main__":
    main()
