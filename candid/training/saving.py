"""Writing checkpoints behind the training loop's back: it waits for the copy of the tensors, not for the disk."""

import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from candid.checkpoint import Checkpoint, RunFolder, TrainingState, is_finite
from candid.durable import write_file
from candid.errors import CandidError
from candid.training.progress import table_text


class Saver:
    """Saves one checkpoint at a time; the next one, and the end of the run, wait for it to be on the disk."""

    def __init__(self, run: RunFolder, *, in_background: bool = True) -> None:
        """Nothing is written yet. Not in the background, training waits for the disk, and needs no copies."""
        self._run, self._in_background = run, in_background
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._pending: Future[None] | None = None

    def save(self, checkpoint: Checkpoint, state: TrainingState, *, is_best: bool) -> None:
        """Copy what is to be saved, and begin to write it; or write it.

        Raises:
            CandidError: if the save before this one failed, or a value is not finite.
        """
        self.wait()
        if self._in_background:
            checkpoint = replace(checkpoint, weights=_copy(checkpoint.weights))
            state = replace(state, tensors=_copy(state.tensors), history=list(state.history))
        _refuse_not_finite(checkpoint.weights | state.tensors)
        if self._in_background:
            self._pending = self._pool.submit(self._write, checkpoint, state, is_best)
        else:
            self._write(checkpoint, state, is_best)

    def check(self) -> None:
        """Raise what went wrong with a save that has ended."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Return when everything is on the disk; raise a CandidError where it is not."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, checkpoint: Checkpoint, state: TrainingState, is_best: bool) -> None:
        try:
            self._run.save(checkpoint, state, is_best=is_best)
            write_file(self._run.path / "results.csv", table_text(state.history))
        except OSError as error:
            raise CandidError(_explain(error, self._run.path, checkpoint.weights | state.tensors)) from error


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    names = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if names:
        raise CandidError(
            f"Training diverged: {names[0]} holds a value that is not finite; expected numbers. Nothing of it was "
            "saved. Lower optimizer.rate, or set schedule.warmup."
        )


def _explain(error: OSError, run: Path, tensors: Mapping[str, Tensor]) -> str:
    needed = sum(tensor.nbytes for tensor in tensors.values()) / 2**20
    place: Any = next(folder for folder in (run, *run.parents) if folder.exists())
    free = shutil.disk_usage(place).free / 2**20
    return (
        f"{error.filename or run} could not be written ({error.strerror}); a checkpoint needs {needed:,.1f} MiB, and "
        f"{free:,.1f} MiB are free there. Earlier checkpoints are whole: make room, then "
        f"`candid train --resume --out {run}`."
    )
