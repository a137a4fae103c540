"""One epoch of training is five verbs: fetch, forward, backward, step, log."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm

from candid.checkpoint import Checkpoint, TrainingState, build_network
from candid.data.loading import Batch
from candid.device import AUTOCAST_TYPES, torch_memory_format
from candid.models import find_variant
from candid.models.auxiliary import split_output
from candid.models.whitening import whiten
from candid.randomness import seed_for
from candid.recipe import Recipe
from candid.training.freezing import Freezing, plan_freezing
from candid.training.optimization import RateSchedule, build_optimizer, set_rate
from candid.training.ranks import ALONE, Ranks
from candid.training.recomputation import BATCH_NORMS, recompute_segments
from candid.training.whole_steps import whole_step


class Diverged(Exception):
    """The loss, a gradient, a weight or a statistic is not finite any more; `batch` is where it showed."""

    def __init__(self, what: str, batch: Batch) -> None:
        super().__init__(what)
        self.batch = batch


@dataclass
class Tally:
    """Totals over images, so that a short last batch weighs no more than its images."""

    loss: Tensor
    """Sum over images."""
    correct: Tensor
    images: Tensor

    @classmethod
    def zero(cls, device: torch.device) -> "Tally":
        """Nothing counted yet."""
        return cls(
            *(torch.zeros((), dtype=dtype, device=device) for dtype in (torch.float64, torch.int64, torch.int64))
        )

    def add(self, mean_loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count one forward pass: logits and targets [N, classes]; stays on the device."""
        self.images += len(targets)
        self.loss += mean_loss.detach() * len(targets)
        self.correct += (logits.argmax(dim=1) == targets.argmax(dim=1)).sum()

    def to(self, device: torch.device) -> "Tally":
        """A copy on a device."""
        return Tally(*(total.to(device, copy=True) for total in (self.loss, self.correct, self.images)))

    def over(self, ranks: Ranks) -> "Tally":
        """The totals of all ranks."""
        return Tally(*map(ranks.sum, (self.loss, self.correct, self.images)))


class Trainer:
    """A network, its optimizer and the settings of a resolved recipe.

    `step` counts optimizer steps taken, `tally` what the epoch that has begun has counted on this rank.
    """

    def __init__(
        self, recipe: Recipe, num_classes: int, steps_per_epoch: int, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        """Build the network with weights that depend on the recipe's seed alone."""
        self.recipe, self.device, self.ranks, self.step = recipe, device, ranks, 0
        self.start_tally()
        self.model = self.build(num_classes)
        self.freezing = self.plan_freezing(num_classes)
        self.average = self.copy_model() if recipe.training.ema_decay else None
        if recipe.training.sync_batch_norm and ranks.number > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # names stay; evaluation does as before
        if recipe.training.memory == "recompute" and not find_variant(recipe.model.name).has_dense_block:
            recompute_segments(self.model)  # a dense block does so by itself
        self.parameters = list(self.model.parameters())  # a walk through a thousand layers takes a while
        self.statistics = list(self.model.buffers())
        self.optimizer = build_optimizer(recipe.optimizer, self.model)
        self.schedule = RateSchedule(recipe.schedule, recipe.optimizer.rate, steps_per_epoch, recipe.training.epochs)
        self.scaler = self._new_scaler()
        self.auxiliary_loss = find_variant(recipe.model.name).auxiliary_loss
        self._run_model: nn.Module = self.model

    def build(self, num_classes: int) -> nn.Module:
        """The network on the device, with weights that depend on the recipe's seed alone."""
        return build_network(self.recipe, num_classes).to(self.device)

    def plan_freezing(self, num_classes: int) -> Freezing:
        """Which layers stay as they are."""
        return plan_freezing(self.recipe, num_classes)

    def copy_model(self) -> nn.Module:
        """The network once more, with weights of its own."""
        return copy.deepcopy(self.model)

    @property
    def evaluated_model(self) -> nn.Module:
        """The network whose accuracy counts: the running average of the weights where there is one."""
        return self.average if self.average is not None else self.model

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1)."""
        return self.step / (self.schedule.epochs * self.schedule.steps_per_epoch)

    def split(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Micro-batches of nearly equal size: inputs, targets, and each one's share of the batch.

        Over ranks the shares add up to their number, because gradients are averaged over ranks. None has a single
        example where more are allowed, of which batch normalisation would have no statistics.
        """
        size, number = self.recipe.training.micro_batch_size or len(batch.inputs), len(batch.inputs)
        parts = math.ceil(number / size) if size == 1 else max(1, min(math.ceil(number / size), number // 2))
        for inputs, targets in zip(batch.inputs.tensor_split(parts), batch.targets.tensor_split(parts), strict=True):
            yield inputs, targets, len(inputs) / len(batch.indices) * self.ranks.number

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, classes] and the mean loss, in the recipe's precision."""
        inputs = inputs.contiguous(memory_format=torch_memory_format(self.recipe.training.memory_format))
        with self._autocast():
            logits, auxiliary = split_output(self._run_model(inputs))
        auxiliary_loss = self.auxiliary_loss([self._loss(other, targets) for other in auxiliary], self.progress)
        return logits.float(), self._loss(logits, targets) + auxiliary_loss

    def shrink(self) -> int | None:
        """Halve the micro-batches from the next step on; their new size, None where they cannot be smaller.

        The batch, its order and its rate stay: gradients add up over more micro-batches.
        """
        size = self.recipe.training.micro_batch_size or math.ceil(self.recipe.training.batch_size / self.ranks.number)
        smaller = size // 2
        if smaller < (2 if self.takes_statistics else 1):
            return None
        self.recipe = self.recipe.replace({"training.micro_batch_size": smaller})
        return smaller

    @property
    def takes_statistics(self) -> bool:
        """Whether a layer learns from the statistics of a micro-batch, of which it needs two examples."""
        return any(module.training and isinstance(module, BATCH_NORMS) for module in self.model.modules())

    def renew_scaler(self) -> None:
        """Forget where the gradient scaler stood in a step that was broken off, but not its scale."""
        state = self.scaler.state_dict()
        self.scaler = self._new_scaler()
        if state:
            self.scaler.load_state_dict(state)

    def start_tally(self) -> None:
        """Forget what was counted."""
        self.tally = Tally.zero(self.device)

    def start_epoch(self) -> None:
        """Put the network into training mode, but for the layers that stay frozen in the coming epoch."""
        self.freezing.apply(self.model, self.step // self.schedule.steps_per_epoch)
        self._run_model = self._prepare_model()  # among ranks, DDP averages what has a gradient when it is made

    def seed_layers(self) -> None:
        """Make what layers draw in the coming step (dropout) a function of seed and step alone."""
        torch.manual_seed(seed_for(self.recipe.seed, "layers", self.step))

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the running average towards the weights; early on faster, so that it forgets the beginning."""
        if self.average is None:
            return
        decay = min(self.recipe.training.ema_decay, (1 + self.step) / (10 + self.step))
        for ours, theirs in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if ours.is_floating_point():
                ours.lerp_(theirs, 1 - decay)
            else:
                ours.copy_(theirs)

    def show(self, pictures: Iterable[Tensor]) -> None:
        """Let a first layer that learns from pictures [N, C, H, W] see them, before training."""
        whiten(self.model, pictures)
        if self.average is not None:
            self.average.load_state_dict(self.model.state_dict())

    def begin(self, weights: dict[str, Tensor]) -> None:
        """Begin from these weights."""
        self.model.load_state_dict(weights)
        if self.average is not None:
            self.average.load_state_dict(weights)

    def state_tensors(self) -> dict[str, Tensor]:
        """The optimizer's buffers, the epoch's totals, and the raw weights where an average is what is evaluated."""
        buffers = {
            f"optimizer.{number}.{name}": value
            for number, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
        buffers |= {f"tally.{name}": value for name, value in vars(self.tally.over(self.ranks)).items()}
        if self.average is not None:
            buffers |= {f"weights.{name}": value for name, value in self.model.state_dict().items()}
        return buffers

    def restore(self, checkpoint: Checkpoint, state: TrainingState) -> None:
        """Go on from a checkpoint."""
        self.step = checkpoint.step
        self.evaluated_model.load_state_dict(checkpoint.weights)
        if self.average is not None:
            self.model.load_state_dict(_with_prefix("weights.", state.tensors))
        if self.ranks.is_first:  # the others begin at nothing: the totals are added up over ranks
            self.tally = Tally(**_with_prefix("tally.", state.tensors)).to(self.device)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        buffers: dict[int, dict[str, Tensor]] = {}
        for name, value in _with_prefix("optimizer.", state.tensors).items():
            number, _, buffer = name.partition(".")
            of_parameter = torch.empty_like(parameters[int(number)])  # in its order, else every step takes longer
            is_like_it = value.shape == of_parameter.shape
            buffers.setdefault(int(number), {})[buffer] = of_parameter.copy_(value) if is_like_it else value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": buffers})
        if state.gradient_scaler:
            self.scaler.load_state_dict(state.gradient_scaler)

    def clip_gradients(self) -> None:
        """Shorten the whole gradient to the recipe's largest norm, where it has one."""
        if self.recipe.training.clip_norm:
            clip_grad_norm_(self.parameters, self.recipe.training.clip_norm)

    def refuse_divergence(self, batch: Batch) -> None:
        """Raise `Diverged` where the step from `batch` met or made a value that is no finite number.

        What is not finite in a gradient is so in the weights after the step: its norm is there to name the cause. In
        fp16 an infinite gradient is no divergence: the scaler leaves the step out and halves its scale. At a scale
        below 1, though, the scale is not the reason.
        """
        sums = torch.stack([self.tally.loss, self._sum(self.parameters), self._sum(self.statistics)])
        loss, weights, statistics = sums.tolist()  # waits for the device only once
        scale_is_no_reason = self.scaler.is_enabled() and self.scaler.get_scale() < 1
        if math.isfinite(loss + weights + statistics) and not scale_is_no_reason:
            return
        gradients = [value.grad for value in self.parameters if value.grad is not None]
        found = {
            "the loss": loss,
            "the gradient's norm": get_total_norm(gradients).item(),
            "the sum of the weights": weights,
            "the sum of the normalisation layers' statistics": statistics,
        }
        for what, value in found.items():
            if not math.isfinite(value):
                raise Diverged(f"{what} is {value}", batch)

    def _sum(self, tensors: Iterable[Tensor]) -> Tensor:
        """The sum over tensors of floats: not finite where one of their values is not."""
        sums = [tensor.detach().sum() for tensor in tensors if tensor.is_floating_point()]
        return torch.stack(sums).sum().double() if sums else torch.zeros((), dtype=torch.float64, device=self.device)

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.recipe.training.precision == "fp16")

    def _prepare_model(self) -> nn.Module:
        """The network as it is called in training: over ranks gradients are averaged, compiled if so wished."""
        model: nn.Module = self.model
        if self.ranks.number > 1:
            model = DistributedDataParallel(model, find_unused_parameters=True)
        return torch.compile(model) if self.recipe.training.compile else model  # pyright: ignore[reportReturnType]

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits.float(), targets, label_smoothing=self.recipe.training.label_smoothing)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST_TYPES.get(self.recipe.training.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


def train_one_epoch(
    trainer: Trainer, batches: Iterable[Batch], epoch_losses: list[float], after_step: Callable[[int], None]
) -> None:
    """Learn from the epoch's remaining batches; `epoch_losses` are those of the epochs before.

    `after_step` is called with the number of examples of each step, when it is complete. Where memory runs out, the
    error of that goes on, and `trainer` stands between two steps.
    """
    trainer.start_epoch()
    for batch in batches:  # inputs [N, C, H, W], targets [N, classes]
        set_rate(trainer.optimizer, trainer.schedule.rate(trainer.step, epoch_losses))
        with whole_step(trainer):
            trainer.seed_layers()
            for inputs, targets, share in trainer.split(batch):
                logits, loss = trainer.forward(inputs, targets)
                trainer.scaler.scale(loss * share).backward()
                trainer.tally.add(loss, logits, targets)
            trainer.scaler.unscale_(trainer.optimizer)
            trainer.clip_gradients()
            trainer.scaler.step(trainer.optimizer)
            trainer.scaler.update()
            trainer.refuse_divergence(batch)
            trainer.optimizer.zero_grad(set_to_none=True)
            trainer.step += 1
            trainer.update_average()
        after_step(len(batch.indices))


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
