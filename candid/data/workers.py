"""Processes that read pictures: the death of one, or their silence, is an error between two batches, never a hang."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import TypeVar

from torch.utils.data import DataLoader

from candid.data.ahead import is_abandoned
from candid.errors import DataError

T = TypeVar("T")
CHECK_S, GRACE_S, TIMEOUT_S = 1, 2, 45


def watch(loader: DataLoader[T]) -> Iterator[T]:
    """What a loader's workers make; no batch of it is None.

    Raises:
        DataError: if a worker died, or no batch came for TIMEOUT_S.
    """
    others, handler = multiprocessing.active_children(), signal.getsignal(signal.SIGCHLD)
    batches = [iter(loader)]
    workers = [process for process in multiprocessing.active_children() if process not in others]
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)  # torch's raises wherever the program is: half-way through a step, too
    try:
        while (batch := _fetch(batches[0], workers)) is not None:
            yield batch
    finally:  # to drop torch's iterator is to wait for its workers, and for locks that dead ones may hold
        leaving = threading.Thread(target=batches.clear, daemon=True)
        leaving.start()
        leaving.join(GRACE_S)
        _kill(workers)


def leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; only the parent knows how to stop well, and it stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _fetch(batches: Iterator[T], workers: Sequence[BaseProcess]) -> T | None:
    """The next batch; None after the last, and where nobody waits for it any more."""
    began_at_s = time.monotonic()
    watchdog = threading.Timer(TIMEOUT_S, _kill, [workers])  # ends any waiting for a worker that is stopped
    watchdog.start()
    codes: list[int] = []
    try:
        while not codes and not is_abandoned():
            try:
                return next(batches, None)
            except (RuntimeError, OSError, EOFError) as error:
                if not workers or _is_of_the_work(error):
                    raise
                codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
    finally:
        watchdog.cancel()
    if not codes:
        return None
    raise DataError(_explain(codes[0], time.monotonic() - began_at_s))


def _is_of_the_work(error: Exception) -> bool:
    """Whether an error says what a worker met, not what became of it: its death, its silence, its closed socket."""
    is_about_the_loader = "DataLoader" in str(error) or not isinstance(error, RuntimeError)
    return str(error).startswith("Caught ") or not is_about_the_loader


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()  # one that is stopped hears nothing gentler


def _explain(exit_code: int, waited_s: float) -> str:
    if waited_s < TIMEOUT_S:
        return (
            f"A process that reads pictures died (exit code {exit_code}); expected all of them to live. See whether "
            "memory ran out: the system then kills processes, with exit code -9."
        )
    return (
        f"The processes that read pictures gave no batch for {TIMEOUT_S} s; expected one. See whether the disk hangs, "
        "or somebody stopped them."
    )
