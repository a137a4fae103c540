"""How long steps of training take: the true network, optimizer and loop on a batch of random pictures."""

import gc
import math
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.nn.functional import one_hot
from torch.utils import deterministic

from candid.data.loading import Batch
from candid.device import computing_s, held_memory, machine_memory, peak_memory_mib
from candid.out_of_memory import free_memory
from candid.recipe import Recipe
from candid.training.loop import Diverged, Trainer, train_one_epoch
from candid.training.setup import use_settings

T = TypeVar("T")
SETTINGS = ("precision", "memory_format", "memory", "micro_batch_size", "threads", "compile")
"""The keys of `training` that may be chosen."""
MARGIN = 0.03
"""By what share of its time a choice has to beat the one before it."""
TIMED_STEPS, TIMED_S = 2, 0.4
"""How many steps are timed in a turn at least, and for how long if they are short."""
NEAR = (1.5, 1.15)
"""Times the fastest step: who is slower behind the first round, or behind a later one, is out of the next."""
HOPELESS, START_UP_S = 2.5, 0.5
"""Times the fastest step, beside what a first one takes: who is slower takes no other."""
GROWTH = {("precision", "bf16", "fp32"): 2, ("memory", "shared", "plain"): 6}
"""How much more memory a step may need than with another value of a setting, at most."""
BUSY_CORES = 0.25
"""Cores that other programs take, beside those that training leaves idle, from which on times say little."""
STILL = 1e-9
"""A learning rate at which weights stay what they are: random pictures must not make them diverge."""


@dataclass(frozen=True)
class Timing:
    """One way to train, and the time that a step takes so."""

    settings: Mapping[str, Any]
    """The keys of SETTINGS."""
    step_s: float
    """Of the fastest step; infinite where it failed."""


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The keys of SETTINGS as a resolved recipe has them."""
    return {key: getattr(recipe.training, key) for key in SETTINGS}


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with some keys of SETTINGS changed."""
    return recipe.replace({f"training.{key}": value for key, value in settings.items()})


def pick(step_s: Mapping[T, float], incumbent: T) -> T:
    """The fastest, where it takes less than the incumbent's time by at least MARGIN; else the incumbent."""
    fastest = min(step_s, key=lambda choice: step_s[choice])
    return fastest if step_s[fastest] <= (1 - MARGIN) * step_s[incumbent] else incumbent


class Stopwatch:
    """Times steps of recipes within a budget."""

    def __init__(self, recipe: Recipe, size: int, num_classes: int, device: torch.device, budget_s: float) -> None:
        """Batches of `size` pictures such as those of `recipe`; the time begins to run."""
        self.budget_s, self.step_s = budget_s, dict[Recipe, float]()
        self._num_classes, self._device, self._started_at_s = num_classes, device, time.perf_counter()
        self._held_bytes = self._others_s = self._watched_s = 0.0
        channels, side = recipe.data.channels, recipe.data.image_size
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(size, channels, side, side, generator=generator)
        targets = one_hot(torch.arange(size) % num_classes, num_classes).float()
        inputs = inputs.contiguous(memory_format=torch.channels_last)  # as `TrainingBatches` gives them
        self._batch = Batch(inputs.to(device), targets.to(device), torch.arange(size))

    @property
    def elapsed_s(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started_at_s

    @property
    def timings(self) -> tuple[Timing, ...]:
        """What was measured, in its order."""
        return tuple(Timing(settings_of(recipe), step_s) for recipe, step_s in self.step_s.items())

    @property
    def busy_cores(self) -> float:
        """Cores that other programs took from training while it was timed; 0 where that hardly matters."""
        cores = self._others_s / self._watched_s if self._watched_s else 0.0
        idle = (os.cpu_count() or 1) - max((recipe.training.threads for recipe in self.step_s), default=1)
        return cores if cores > BUSY_CORES + max(0, idle) else 0.0

    def compare(self, incumbent: Recipe, rivals: Sequence[Recipe], rounds: int) -> Recipe:
        """What `pick` takes of the incumbent and its rivals, each timed once a round while it is near the fastest."""
        alive = [incumbent, *rivals] if rivals else []
        for number in range(rounds):
            for recipe in alive:
                if self._affords(recipe):
                    self.time(recipe)
            fastest_s = min(self.step_s.values(), default=math.inf)
            limit_s = NEAR[min(number, 1)] * fastest_s
            alive = [recipe for recipe in alive if self.step_s.get(recipe, math.inf) <= limit_s]
            if alive in ([], [incumbent]):
                break
        known = {recipe: self.step_s[recipe] for recipe in (incumbent, *rivals) if recipe in self.step_s}
        return pick(known, incumbent) if incumbent in known else incumbent

    def time(self, recipe: Recipe, *, is_brief: bool = False) -> None:
        """Note a recipe's fastest step among a few; a brief turn takes two, the first of which warms up.

        What fails, for want of memory or of an operation, has taken infinitely long.
        """
        use_settings(recipe, self._device)
        before = held_memory(self._device)
        try:
            with self._watching_others(recipe):
                step_s = min(self._take_steps(recipe, is_brief))
        except (RuntimeError, MemoryError, Diverged) as error:
            free_memory(error)
            step_s = math.inf
        gc.collect()  # a network that recomputes refers to itself
        if not self.step_s:
            self._held_bytes = peak_memory_mib(self._device) * 2**20 - before
        self.step_s[recipe] = min(self.step_s.get(recipe, math.inf), step_s)

    @contextmanager
    def _watching_others(self, recipe: Recipe) -> Generator[None]:
        """Add up what other programs compute in the block; compilers that this one starts do not count."""
        began_at_s, all_before, own_before = time.perf_counter(), computing_s(), time.process_time()
        yield
        all_after = computing_s()
        if all_before is not None and all_after is not None and not recipe.training.compile:
            self._watched_s += time.perf_counter() - began_at_s
            self._others_s += all_after - all_before - (time.process_time() - own_before)

    def _take_steps(self, recipe: Recipe, is_brief: bool) -> list[float]:
        """Seconds of each step, without those that warm up where there are others."""
        still = recipe.replace({"optimizer.rate": STILL})
        trainer = Trainer(still, self._num_classes, steps_per_epoch=1000, device=self._device)
        trainer.show([self._batch.inputs])
        num_warmups = 3 if recipe.training.compile else 1  # the first ones compile
        moments, seconds = [time.perf_counter()], list[float]()

        def after_step(_: int) -> None:  # a step ends by looking for divergence, which waits for the device
            moments.append(time.perf_counter())
            seconds.append(moments[-1] - moments[-2])

        def batches() -> Iterator[Batch]:
            while len(seconds) < num_warmups or self._wants_more(seconds, num_warmups, is_brief):
                yield self._batch

        train_one_epoch(trainer, batches(), [], after_step)
        if recipe.training.compile:
            torch.compiler.reset()
        return seconds[num_warmups:] or seconds

    def _wants_more(self, seconds: Sequence[float], num_warmups: int, is_brief: bool) -> bool:
        """Whether another step is worth its time, behind those that warm up."""
        timed = seconds[num_warmups:]
        fastest_s = min(self.step_s.values(), default=math.inf)
        if min(seconds) > min(HOPELESS * fastest_s + START_UP_S * (not timed), self.budget_s / 4):
            return False
        is_out = min(timed, default=0.0) > NEAR[0] * fastest_s
        enough = is_out or (len(timed) >= TIMED_STEPS and sum(timed) >= TIMED_S) or sum(seconds) > self.budget_s / 4
        return not timed or not (is_brief or enough or self.elapsed_s + min(timed) > self.budget_s)

    def _affords(self, recipe: Recipe) -> bool:
        """Whether there is time for a turn of it, and room: the system kills who takes too much on a CPU."""
        expected_s = self.step_s.get(recipe, min(self.step_s.values(), default=0.0))
        in_time = self.elapsed_s + 2 * expected_s <= self.budget_s  # the least of a turn: to warm up, and one step
        first = settings_of(next(iter(self.step_s), recipe))
        growth = math.prod(GROWTH.get((key, first[key], value), 1) for key, value in settings_of(recipe).items())
        room = machine_memory(self._device) - held_memory(self._device)
        return in_time and (growth == 1 or growth * self._held_bytes < room)


@contextmanager
def undisturbed(device: torch.device) -> Generator[None]:
    """Whatever the block does to random state and to torch's settings is undone behind it."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark = benchmark
            torch.use_deterministic_algorithms(is_deterministic, warn_only=warns_only)
            deterministic.fill_uninitialized_memory = fills  # pyright: ignore[reportAttributeAccessIssue]
