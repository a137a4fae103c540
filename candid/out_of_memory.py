"""Running out of memory: how to know it from other errors, and how to go on with smaller parts."""

import gc
import traceback

import torch
from torch import Tensor, nn

from candid.errors import CandidError

SIGNS = (
    "can't allocate memory",  # torch on the CPU
    "could not create a primitive",  # oneDNN, which gives no reason, and has no other one for a network that ran before
    "could not create a memory",
    "bad_alloc",
    "ALLOC_FAILED",  # NVIDIA's libraries
    "out of memory",
)
"""What the texts of RuntimeErrors say."""


class OutOfMemory(CandidError):
    """There is too little memory for the smallest part of the work."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or, for torch, NumPy or Python itself, on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def free_memory(error: BaseException) -> None:
    """Give back what the calls held that ended in `error`, and what torch keeps for later."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class WithinMemory:
    """A network that is evaluated part by part where there is too little memory for all pictures at once.

    In evaluation mode each picture's outputs are its own, so that parts change no more than the last digits.
    """

    def __init__(self, model: nn.Module) -> None:
        """`model` is in evaluation mode and gives a tensor."""
        self._model = model
        self._largest: int | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits [N, classes] of inputs [N, C, H, W].

        Raises:
            OutOfMemory: if there is too little for a single picture.
        """
        while True:
            size = min(self._largest or len(inputs), len(inputs))
            try:
                return torch.cat([self._model(part) for part in inputs.split(size)])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                free_memory(error)
            if size == 1:
                raise OutOfMemory(
                    f"Out of memory with a single picture of {inputs.shape[-1]} px; expected room for one. Close other "
                    "programs, or use another --device."
                )
            self._largest = (size + 1) // 2
