"""Training throughput at batch 128 on 32x32 pictures, loading included, against the usual script.

Run: python -m benchmarks.training
"""

from dataclasses import dataclass
from functools import partial

from benchmarks.automatic import measured_epoch
from benchmarks.measuring import apart, describe_machine, fastest
from benchmarks.usual import random_cifar, usual_loader, usual_script
from benchmarks.usual_networks import USUAL

BATCH_SIZE, ROUNDS = 128, 2
LONGEST_WAIT_PERCENT = 3


@dataclass(frozen=True)
class Work:
    """A network, how often the usual script's throughput candid's has to be, and how many steps are timed at once."""

    model: str
    bar: float
    steps: int


WORK = (
    Work("resnet18-cifar", 2.5, 3),
    Work("densenet-cifar", 3.5, 3),
    Work("mobilenetv2-cifar", 3.0, 2),
    Work("wrn-16-4", 2.0, 4),
    Work("shufflenetv2-1.0-cifar", 1.2, 8),
    Work("ghostnet-1.0", 1.6, 16),
)


def main() -> None:
    """Print the table."""
    print(
        f"Training, batches of {BATCH_SIZE} with loading; fastest of {ROUNDS} rounds\n{describe_machine()}", flush=True
    )
    for work in WORK:
        measure(work)


def measure(work: Work) -> None:
    """Print a line: both throughputs, their ratio, and what share of its time candid waited for data."""
    images, labels = random_cifar(BATCH_SIZE * work.steps)
    usual = usual_script(USUAL[work.model](), usual_loader(images, labels, BATCH_SIZE, workers=2))
    with apart(partial(measured_epoch, work.model, BATCH_SIZE, work.steps)) as candid:
        seconds = fastest({"candid": candid, "usual": usual}, ROUNDS)
        outcome = candid()
    print(
        f"  {work.model:<24}usual {len(images) / seconds['usual']:6,.0f} images/s   "
        f"candid {len(images) / seconds['candid']:6,.0f} ({outcome.settings})   "
        f"{seconds['usual'] / seconds['candid']:5.2f}x, bar {work.bar:.1f}x   "
        f"waits {outcome.waited_percent:.1f} % for data, bar {LONGEST_WAIT_PERCENT} %",
        flush=True,
    )


if __name__ == "__main__":
    main()
