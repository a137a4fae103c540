"""A training step written out by hand, with nothing around it."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.usual import usual_sgd
from candid.device import AUTOCAST_TYPES, torch_memory_format
from candid.models import build_model, find_variant
from candid.models.auxiliary import split_output
from candid.randomness import seed_for


class ByHand:
    """A network of candid, an optimizer and one batch that is ready."""

    def __init__(self, model: str, images: Tensor, memory_format: str) -> None:
        """`images` uint8 [N, 3, side, side]; memory format as in a recipe."""
        layout = torch_memory_format(memory_format)
        self._network = build_model(model, num_classes=10, image_size=images.shape[-1]).to(memory_format=layout).train()
        self._inputs = ((images / 255 - 0.45) / 0.25).contiguous(memory_format=layout)
        self._labels = torch.arange(len(images)) % 10
        self._optimizer = usual_sgd(self._network)
        self._auxiliary_loss = find_variant(model).auxiliary_loss

    def epoch(self, steps: int, precision: str) -> None:
        """Take so many steps in a precision, with the draws that candid makes in its first ones."""
        dtype = AUTOCAST_TYPES.get(precision)
        for step in range(steps):
            torch.manual_seed(seed_for(0, "layers", step))  # else a network that leaves out layers has luck or not
            with torch.autocast("cpu", dtype, enabled=dtype is not None):
                logits, others = split_output(self._network(self._inputs))
            loss = cross_entropy(logits.float(), self._labels)
            loss = loss + self._auxiliary_loss([cross_entropy(other.float(), self._labels) for other in others], 0.0)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
