"""Optimizers, and the learning rate as a pure function of the step."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from candid.recipe_parts import Optimizer, Schedule
from candid.training.muon import Muon, is_filters
from candid.weights.names import is_head

NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # pyright: ignore[reportPrivateUsage]


def build_optimizer(settings: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer with its parameter groups; the learning rate is set before every step."""
    groups = parameter_groups(settings, model)
    if settings.name == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.rate, momentum=settings.momentum, nesterov=settings.nesterov, foreach=True
        )
    if settings.name == "muon":
        return Muon(groups, lr=settings.rate, betas=(settings.momentum, 0.98), foreach=True)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=settings.rate, betas=(settings.momentum, 0.999), foreach=True)


def parameter_groups(settings: Optimizer, model: nn.Module) -> list[dict[str, object]]:
    """Parameters by weight decay (norms and biases may be exempt) and by what their rate is multiplied by (heads)."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        of_module = settings.head_factor if is_head(path) else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            learns_by_adamw = settings.name == "muon" and not is_filters(parameter)
            factor = of_module * (settings.vector_factor if learns_by_adamw else 1.0)
            exempt = not settings.decay_norms_and_biases and (name == "bias" or isinstance(module, NORMALISATIONS))
            decay = 0.0 if exempt else settings.weight_decay
            groups.setdefault((decay, factor), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "rate_factor": factor}
        for (decay, factor), parameters in groups.items()
    ]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


@dataclass(frozen=True)
class RateSchedule:
    """The learning rate of each step."""

    settings: Schedule
    peak: float
    steps_per_epoch: int
    epochs: int

    def rate(self, step: int, epoch_losses: Sequence[float] = ()) -> float:
        """The rate of step 0, 1, ...; `epoch_losses` are those of the epochs before it (plateau reads them)."""
        warmup_steps, total_steps = self._steps(self.settings.warmup), self.epochs * self.steps_per_epoch
        if step < warmup_steps:
            return self.peak * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / (total_steps - warmup_steps)
        match self.settings.name:
            case "constant":
                return self.peak
            case "multi-step":
                return self.peak * self.settings.factor ** self._milestones_passed(step)
            case "cosine":
                return self.peak * 0.5 * (1 + math.cos(math.pi * progress))
            case "one-cycle":
                return self.peak * (1 - progress)
            case "plateau":
                stalls = count_stalls(epoch_losses, self.settings.patience)
                return self.peak * self.settings.factor**stalls

    def _milestones_passed(self, step: int) -> int:
        return bisect.bisect_right(sorted(map(self._steps, self.settings.milestones)), step)

    def _steps(self, time: float) -> int:
        """Steps in a time that is a share of the run below 1, and a number of epochs from 1 on."""
        return round(time * self.steps_per_epoch * (self.epochs if time < 1 else 1))


def count_stalls(losses: Sequence[float], patience: int) -> int:
    """How often `patience` epochs in a row brought no loss below the lowest before them."""
    stalls, lowest, waited = 0, math.inf, 0
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = min(lowest, loss)
        if waited == patience:
            stalls, waited = stalls + 1, 0
    return stalls
