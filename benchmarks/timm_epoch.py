"""One epoch over a folder of 32x32 JPEGs, loading included, against timm's networks, loader and optimizer.

Run: python -m benchmarks.timm_epoch
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.models.densenet import DenseNet
from timm.optim import create_optimizer_v2
from torch import nn
from torch.nn.functional import cross_entropy

from benchmarks.automatic import measured_epoch
from benchmarks.measuring import apart, describe_machine, fastest
from benchmarks.usual_networks import with_small_densenet_stem, with_small_resnet_stem
from candid.device import AUTOCAST_TYPES

BAR, ROUNDS, WORKERS = 1.3, 2, 2
BATCH_SIZE, NUM_PICTURES, NUM_CLASSES = 128, 1536, 10  # whole batches, because timm leaves out what is left over


@dataclass(frozen=True)
class Work:
    """A network, timm's form of it, and the fastest that timm's can be made here."""

    model: str
    build: Callable[[], nn.Module]
    precision: str
    compiled: bool


def small_resnet18() -> nn.Module:
    """timm's with a 3x3 convolution of stride 1 as its stem."""
    return with_small_resnet_stem(timm.create_model("resnet18", num_classes=NUM_CLASSES))


def small_densenet() -> nn.Module:
    """timm's in the size of densenet-cifar, with a 3x3 convolution of stride 1 as its stem."""
    network = DenseNet(growth_rate=12, block_config=(6, 12, 24, 16), num_classes=NUM_CLASSES)
    return with_small_densenet_stem(network, 24)


def by_name(name: str) -> Callable[[], nn.Module]:
    """timm's network as it is."""
    return partial(timm.create_model, name, num_classes=NUM_CLASSES)


WORK = (
    Work("resnet18-cifar", small_resnet18, "bf16", compiled=True),
    Work("densenet-cifar", small_densenet, "bf16", compiled=False),
    Work("mobilenetv2-1.0", by_name("mobilenetv2_100"), "bf16", compiled=False),
    Work("ghostnet-1.0", by_name("ghostnet_100"), "fp32", compiled=False),
)


def main(names: list[str]) -> None:
    """Print the table."""
    print(
        f"An epoch over {NUM_PICTURES:,} JPEGs of 32x32 in batches of {BATCH_SIZE}, after one to warm up; "
        f"fastest of {ROUNDS}\n{describe_machine()}, timm {timm.__version__}",
        flush=True,
    )
    with TemporaryDirectory() as folder:
        make_pictures(Path(folder))
        for work in WORK:
            if work.model in (names or [work.model]):
                measure(work, Path(folder))


def measure(work: Work, folder: Path) -> None:
    """Print a line."""
    with apart(partial(measured_epoch, work.model, BATCH_SIZE, 0, folder)) as candid:
        seconds = fastest({"candid": candid, "timm": timm_epoch(work, folder)}, ROUNDS)
        settings = candid().settings
    print(
        f"  {work.model:<18}timm {seconds['timm']:7.2f} s ({work.precision}{', compiled' * work.compiled})   "
        f"candid {seconds['candid']:7.2f} s ({settings})   "
        f"{seconds['timm'] / seconds['candid']:5.2f}x, bar {BAR}x",
        flush=True,
    )


def timm_epoch(work: Work, folder: Path) -> Callable[[], None]:
    """An epoch as timm's training script has it, channels last, with its lightest variations: crop and mirror."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # compiling, it misses a GPU aloud
    network = work.build().to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(network, "sgd", lr=1e-3, momentum=0.9, weight_decay=5e-4)
    run = torch.compile(network) if work.compiled else network
    dtype = AUTOCAST_TYPES.get(work.precision)
    loader = create_loader(
        create_dataset("", str(folder / "train"), is_training=True),
        input_size=(3, 32, 32),
        batch_size=BATCH_SIZE,
        is_training=True,
        color_jitter=0.0,
        num_workers=WORKERS,
        device=torch.device("cpu"),
    )

    def epoch() -> None:
        for inputs, labels in loader:
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                loss = cross_entropy(run(inputs.contiguous(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def make_pictures(folder: Path) -> None:
    """Noise that JPEG can bear, in ten classes below train/."""
    random = np.random.default_rng(0)
    for number in range(NUM_PICTURES):
        place = folder / "train" / f"class{number % NUM_CLASSES}" / f"{number:05}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(place, quality=90)


if __name__ == "__main__":
    main(sys.argv[1:])
