"""How every benchmark here measures: side by side in one process, minima of several rounds."""

import math
import multiprocessing
import platform
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import TypeVar

import torch
import torchvision

from candid.device import describe_processor

T = TypeVar("T")


def describe_machine() -> str:
    """Processor, cores and versions, on one line."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{describe_processor()}, {torch.get_num_threads()} threads{gpu}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def fastest(
    contenders: Mapping[str, Callable[[], object]], rounds: int, hopeless: float = math.inf
) -> dict[str, float]:
    """Seconds of each contender's fastest call; in each round every one runs once, after one round to warm up.

    Who took more than `hopeless` times the best time in the rounds so far is not called again. Warming up may take half
    as much again; the time of who takes more is that.
    """
    best = dict.fromkeys(contenders, math.inf)
    for number in range(rounds + 1):
        limit = hopeless * min(best.values()) * (1.5 if number == 1 else 1)
        for name, run in contenders.items():
            if best[name] > limit:
                continue
            started_at_s = time.perf_counter()
            run()
            took_s = time.perf_counter() - started_at_s
            best[name] = min(best[name], took_s) if number > 1 else took_s
    return best


@contextmanager
def apart(make: Callable[[], Callable[[], T]]) -> Generator[Callable[[], T]]:
    """What `make` gives, made and called in a process of its own: how it treats memory and threads is its own affair.

    Raises:
        EOFError: if it ended there in an error, whose text was printed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.automatic"])  # torch takes seconds to import
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(make, theirs))
    process.start()
    theirs.close()

    def call() -> T:
        ours.send("once more")
        return ours.recv()

    try:
        yield call
    finally:
        ours.send("the end")  # to close it would not do: loaders' workers may hold it open
        process.join()


def _serve(make: Callable[[], Callable[[], object]], calls: Connection) -> None:
    run = make()
    while calls.recv() != "the end":
        calls.send(run())
