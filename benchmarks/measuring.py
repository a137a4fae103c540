"""How every benchmark here measures: side by side in one process, minima of several rounds."""

import platform
import time
from collections.abc import Callable

import torch
import torchvision

from candid.device import describe_processor


def describe_machine() -> str:
    """Processor, cores and versions, on one line."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{describe_processor()}, {torch.get_num_threads()} threads{gpu}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def fastest(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each contender's fastest call; in each round every one runs once, after one round to warm up."""
    best = dict.fromkeys(contenders, float("inf"))
    for number in range(rounds + 1):
        for name, run in contenders.items():
            started_at_s = time.perf_counter()
            run()
            if number:
                best[name] = min(best[name], time.perf_counter() - started_at_s)
    return best
