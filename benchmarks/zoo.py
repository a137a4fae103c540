"""Every network with a form for 32x32 pictures: automatic settings against the best settings that hands can find.

Run: python -m benchmarks.zoo [NETWORK...]
"""

import sys
from collections.abc import Mapping
from functools import partial

from benchmarks.automatic import measured_epoch
from benchmarks.by_hand import ByHand
from benchmarks.measuring import apart, describe_machine, fastest
from benchmarks.usual import random_cifar
from candid.zoo import Entry, read_entries

BAR, ROUNDS, HOPELESS = 0.97, 2, 1.15
BUDGET_S = 10.0
"""For measuring the settings of a network, in place of 20 s: there are fifty."""
SMALLEST_BATCH, LARGEST_BATCH, MOST_STEPS = 4, 128, 4
MOST_MULTIPLY_ADDS, ENOUGH_MULTIPLY_ADDS = 20e9, 20e9
"""Of one forward pass: a batch of more than four pictures has at most the first, a few steps come to the second."""


def main(names: list[str]) -> None:
    """Print a line for each network, and the worst."""
    entries = [entry for entry in read_entries() if entry.image_size == 32 and entry.name in (names or [entry.name])]
    print(
        f"Training with automatic settings, loading included, against the best of four settings on a batch that is "
        f"ready; fastest of {ROUNDS} rounds\n{describe_machine()}",
        flush=True,
    )
    ratios = {entry.name: measure(entry) for entry in entries}
    worst = min(ratios, key=lambda name: ratios[name])
    missed = sum(ratio < BAR for ratio in ratios.values())
    print(f"The worst of {len(ratios)}: {worst} {ratios[worst]:.3f}x; {missed} below the bar of {BAR}x")


def choose_work(entry: Entry) -> tuple[int, int]:
    """Batch size, a power of two, and number of steps of what is timed at once."""
    most = max(SMALLEST_BATCH, min(LARGEST_BATCH, int(MOST_MULTIPLY_ADDS / entry.multiply_adds)))
    batch_size = 1 << most.bit_length() - 1
    return batch_size, max(1, min(MOST_STEPS, int(ENOUGH_MULTIPLY_ADDS / entry.multiply_adds / batch_size)))


def measure(entry: Entry) -> float:
    """Print a line; the ratio of candid's throughput to the best that was found by hand."""
    batch_size, steps = choose_work(entry)
    images, _ = random_cifar(batch_size)
    by_hand = {
        f"{precision}, {memory_format}": partial(network.epoch, steps, precision)
        for memory_format in ("contiguous", "channels-last")
        for network in [ByHand(entry.name, images, memory_format)]
        for precision in ("fp32", "bf16")
    }
    with apart(partial(measured_epoch, entry.name, batch_size, steps, budget_s=BUDGET_S)) as candid:
        settings = candid().settings  # the first call measures them
        seconds = fastest({"candid": candid, **by_hand}, ROUNDS, HOPELESS)
        if find_ratio(seconds) < BAR:  # a machine that is busy for a moment: all have another chance
            again = fastest({"candid": candid, **by_hand}, ROUNDS, HOPELESS)
            seconds = {name: min(seconds[name], again[name]) for name in seconds}
    best, num_images = min(by_hand, key=lambda name: seconds[name]), batch_size * steps
    ratio = find_ratio(seconds)
    print(
        f"  {entry.name:<28}batch {batch_size:3}   by hand {num_images / seconds[best]:6,.0f} images/s ({best})   "
        f"candid {num_images / seconds['candid']:6,.0f} ({settings})   {ratio:.3f}x"
        + (", below the bar" if ratio < BAR else ""),
        flush=True,
    )
    return ratio


def find_ratio(seconds: Mapping[str, float]) -> float:
    """candid's throughput over the best of the others."""
    return min(time for name, time in seconds.items() if name != "candid") / seconds["candid"]


if __name__ == "__main__":
    main(sys.argv[1:])
