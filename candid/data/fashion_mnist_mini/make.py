"""Fashion-MNIST, all 70,000 pictures -> the 7,000 that ship with candid: 600 and 100 of each class.

Test pictures come from the original test set only. The pictures keep their order. Run with
`python -m candid.data.fashion_mnist_mini.make`, where Debian's package dataset-fashion-mnist is installed.
"""

import gzip
import random
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from candid.data.formats import read_idx

SOURCE = Path("/usr/share/datasets/fashion-mnist")
HERE = Path(__file__).parent
SEED = 0


def choose(labels: Tensor, per_class: int, seed: int = SEED) -> list[int]:
    """Ascending indices of `per_class` examples of each class. `labels` [N], class indices."""
    draw = random.Random(seed)
    chosen: list[int] = []
    for label in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels.numpy() == label)
        chosen += [int(members[position]) for position in draw.sample(range(len(members)), per_class)]
    return sorted(chosen)


def make(source: Path = SOURCE) -> dict[str, bytes]:
    """The four IDX files, not yet compressed, by the names they get with `.gz`."""
    files: dict[str, bytes] = {}
    for prefix, count, per_class in (("train", 60_000, 600), ("t10k", 10_000, 100)):
        names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
        images, labels = read_idx([source / f"{name}.gz" for name in names], count, 10)
        chosen = choose(labels, per_class)
        files[names[0]] = _idx(images[chosen].squeeze(1))
        files[names[1]] = _idx(labels[chosen])
    return files


def _idx(array: Tensor) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.to(torch.uint8).numpy().tobytes()


if __name__ == "__main__":
    for name, contents in make().items():
        # Without a time in its header the compressed file is the same whenever it is made.
        (HERE / f"{name}.gz").write_bytes(gzip.compress(contents, 9, mtime=0))
