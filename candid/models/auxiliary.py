"""Auxiliary classifiers: what networks that have them give in training, and how much their losses weigh."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class SupervisedLogits(NamedTuple):
    """The logits that count, and those of the auxiliary classifiers from the first layers to the last."""

    logits: Tensor
    """[N, num_classes]"""
    auxiliary: tuple[Tensor, ...]
    """[N, num_classes] each"""


@dataclass(frozen=True)
class AuxiliaryLoss:
    """How the losses of auxiliary classifiers add to the loss of the main one."""

    weight: float
    """Of each of them, where the main loss has 1."""
    margin: float = 0.0
    """What a loss must exceed to count; only the excess counts."""
    fades: bool = False
    """Whether the weight falls to 0, linearly over the run."""

    def __call__(self, losses: Sequence[Tensor], progress: float) -> Tensor | float:
        """What `losses` (scalars) add to the main loss when the share `progress` in [0, 1] of the run is done."""
        weight = self.weight * (1 - progress if self.fades else 1)
        return weight * sum((loss - self.margin).clamp(min=0) for loss in losses)


NO_AUXILIARY_LOSS = AuxiliaryLoss(0.0)


def split_output(output: Tensor | SupervisedLogits) -> SupervisedLogits:
    """What any network of the zoo gives, with an empty tuple where it has no auxiliary classifiers."""
    return output if isinstance(output, SupervisedLogits) else SupervisedLogits(output, ())
