"""A step is taken whole or not at all: where memory runs out within it, what it changed is put back."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from candid.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from candid.training.loop import Trainer


class TornStep(Exception):
    """Memory ran out while the weights were being changed: they are neither the old ones nor the new ones."""


@contextmanager
def whole_step(trainer: "Trainer") -> Generator[None]:
    """Where memory runs out within the block, leave `trainer` as it was before it; the error goes on.

    The micro-batches that were done have moved the statistics of batch normalisation and the epoch's totals. The
    weights change last, in place; before that, the optimizer may have made buffers of its own, also in part.

    Raises:
        TornStep: if the weights or the optimizer's buffers had begun to change, which cannot be taken back.
    """
    statistics = [buffer.clone() for buffer in trainer.statistics]
    tally, known, before = trainer.tally.to(trainer.device), set(trainer.optimizer.state), _versions(trainer)
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        for new in set(trainer.optimizer.state) - known:
            del trainer.optimizer.state[new]
        if _versions(trainer) != before:
            raise TornStep from error
        trainer.tally = tally
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.renew_scaler()
        with torch.no_grad():
            for buffer, value in zip(trainer.statistics, statistics, strict=True):
                buffer.copy_(value)
        raise


def _versions(trainer: "Trainer") -> list[int]:
    """How often each weight and each of the optimizer's buffers was changed in place."""
    buffers = (value for state in trainer.optimizer.state.values() for value in state.values())
    tensors = [*trainer.parameters, *(value for value in buffers if isinstance(value, Tensor))]
    return [tensor._version for tensor in tensors]  # pyright: ignore[reportPrivateUsage]  # torch's docs use it
