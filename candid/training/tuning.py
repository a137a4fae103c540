"""Settings that are measured: what a recipe leaves open is chosen by timing a few real steps of training.

The true network, loss, optimizer and loop take steps on one batch of the recipe's shape, one network at a time.
Settings are compared in turns, each at its fastest step, and those that fall behind are left out of the next round.
What `resolve_recipe` takes without measuring is the starting point, which another choice has to beat by MARGIN, so
that noise does not decide. None of them changes the mathematics, beside a precision that the recipe leaves open.
"""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from candid.checkpoint import build_network
from candid.data.augmentation import Augmenter
from candid.data.examples import FileExamples
from candid.data.loading import StreamedPixels
from candid.data.preprocessing import Preprocessing
from candid.device import num_cores
from candid.errors import DataError, InputError
from candid.models import find_variant
from candid.recipe import Recipe
from candid.training.recomputation import BATCH_NORMS
from candid.training.stopwatch import SETTINGS, Stopwatch, Timing, settings_of, undisturbed, with_settings
from candid.words import aligned, count

Effort = Literal["off", "quick", "full"]
BUDGET_S = {"quick": 20.0, "full": 180.0}
ROUNDS = {"quick": 2, "full": 6}
SHARE = 0.03
"""The most of a run's time that measuring may take, unless everything is asked for."""
LEAST_RUN_S = 60.0
"""A run that is over sooner gains nothing by measuring."""
LEAST_MICRO_BATCH, SHORT_STEP_S = 16, 0.05
MOST_WORKERS, NUM_PICTURES_READ = 8, 32


@dataclass(frozen=True)
class Tuning:
    """What was timed, in this order, and the recipe that came of it."""

    recipe: Recipe
    timings: tuple[Timing, ...]
    seconds: float
    """How long all of it took, rounded once, so that what is said of it is what is recorded."""
    busy_cores: float = 0.0
    """Cores that other programs took meanwhile, where they took so many that the times say little."""
    is_cached: bool = False
    """Whether an earlier run of the same network on this machine measured it."""

    @property
    def step_s(self) -> float:
        """Seconds of a step as it was chosen."""
        chosen = settings_of(self.recipe)
        return next(timing.step_s for timing in self.timings if timing.settings == chosen)

    def text(self) -> str:
        """The table, fastest first; the chosen row is marked."""
        varied = [key for key in SETTINGS if key in SETTINGS[:2] or len({t.settings[key] for t in self.timings}) > 1]
        headings = ("", *(key.replace("_size", "").replace("_", " ") for key in varied), "a step")
        rows = [
            (
                ">" if timing.settings == settings_of(self.recipe) else "",
                *(_cell(key, timing.settings[key]) for key in varied),
                f"{1000 * timing.step_s:,.1f} ms" if math.isfinite(timing.step_s) else "fails",
            )
            for timing in sorted(self.timings, key=lambda timing: timing.step_s)
        ]
        when = "an earlier run timed" if self.is_cached else f"timed in {self.seconds:.1f} s,"
        title = f"{count(len(rows), 'way')} to train, {when} with batches of {self.recipe.training.batch_size}:"
        busy = f"Other programs took {self.busy_cores:.1f} cores meanwhile, so that the next run measures anew."
        lines = aligned([headings, *rows], numbers=(len(headings) - 1,))
        return "\n".join([title, *lines, *([busy] if self.busy_cores else [])])

    def record(self) -> dict[str, object]:
        """The same for environment.json."""
        chosen = settings_of(self.recipe)
        rows = [
            {**timing.settings, "step_ms": _milliseconds(timing.step_s), "chosen": timing.settings == chosen}
            for timing in self.timings
        ]
        facts = {"cached": self.is_cached, "seconds": self.seconds, "busy_cores": round(self.busy_cores, 2)}
        return {**facts, "timings": rows}


def budget_for(step_s: float, num_steps: int, effort: Effort) -> float:
    """Seconds that measuring may take before a run of so many steps; 0 where it would not pay."""
    run_s = step_s * num_steps
    if effort == "full":
        return BUDGET_S["full"]
    return min(BUDGET_S["quick"], SHARE * run_s) if run_s >= LEAST_RUN_S else 0.0


def as_effort(text: str) -> Effort:
    """The effort that is called `text`."""
    for effort in get_args(Effort):
        if effort == text:
            return effort
    raise InputError(f"--tune is {text!r}; it must be off, quick or full.")


def list_open(wanted: Recipe) -> list[str]:
    """The keys of SETTINGS that a recipe leaves open.

    A recipe that was resolved says what `training.memory` is, and keeps its micro-batches with it.
    """
    training, is_open = wanted.training, list[str]()
    is_open += [key for key in ("precision", "memory_format") if getattr(training, key) == "auto"]
    is_open += ["memory", "micro_batch_size"] if training.memory == "auto" else []
    return is_open + ["threads"] * (not training.threads) + ["compile"] * (training.compile is None)


def tune(
    recipe: Recipe,
    wanted: Recipe,
    num_classes: int,
    device: torch.device,
    *,
    num_steps: int | None = None,
    num_ranks: int = 1,
    effort: Effort = "quick",
    budget_s: float | None = None,
    fits: Callable[[Recipe], bool] = lambda recipe: True,
) -> Tuning:
    """A resolved recipe with what `wanted` left open chosen by measuring, on one of `num_ranks` parts of a batch.

    It takes at most `budget_s`, None for what `effort` allows; of a run of `num_steps`, at most SHARE of the time.
    Only recipes that `fits` accepts are tried. Random state and torch's settings are afterwards what they were.
    """
    share = math.ceil(recipe.training.batch_size / num_ranks)
    budget_s = BUDGET_S[effort] if budget_s is None else budget_s
    stopwatch, is_open = Stopwatch(recipe, share, num_classes, device, budget_s), list_open(wanted)
    stages: list[Callable[[Recipe], list[Recipe]]] = [
        lambda chosen: vary_arithmetic(chosen, is_open),
        lambda chosen: vary_memory(chosen) if "memory" in is_open else [],
        lambda chosen: vary_micro_batches(chosen, share, num_classes) if "micro_batch_size" in is_open else [],
        lambda chosen: vary_threads(chosen, stopwatch) if "threads" in is_open else [],
        lambda chosen: vary_compiling(chosen, is_open) if effort == "full" else [],
    ]
    with undisturbed(device):
        if num_steps is not None:
            stopwatch.time(recipe, is_brief=True)
            stopwatch.budget_s = budget_for(stopwatch.step_s[recipe], num_steps, effort)
        chosen = recipe
        for vary in stages if stopwatch.budget_s else []:
            chosen = stopwatch.compare(chosen, list(filter(fits, vary(chosen))), ROUNDS[effort])
    busy_cores = stopwatch.busy_cores if num_ranks == 1 else 0.0  # other ranks measure at the same time
    return Tuning(chosen, stopwatch.timings, round(stopwatch.elapsed_s, 3), busy_cores)


def vary_arithmetic(chosen: Recipe, is_open: Collection[str]) -> list[Recipe]:
    """Other precisions and memory formats, and both, as far as they are open."""
    training = chosen.training
    precisions = ["fp32", "bf16"] if "precision" in is_open else [training.precision]
    formats = ["channels-last", "contiguous"] if "memory_format" in is_open else [training.memory_format]
    recipes = [
        with_settings(chosen, {"precision": precision, "memory_format": memory_format})
        for memory_format in formats
        for precision in precisions
    ]
    return [recipe for recipe in recipes if recipe != chosen]


def vary_memory(chosen: Recipe) -> list[Recipe]:
    """The other way to run a dense block."""
    training = chosen.training
    if not find_variant(chosen.model.name).has_dense_block or training.sync_batch_norm or training.compile:
        return []
    return [with_settings(chosen, {"memory": "plain" if training.memory == "shared" else "shared"})]


def vary_micro_batches(chosen: Recipe, share: int, num_classes: int) -> list[Recipe]:
    """Halves and quarters of a batch of `share` examples, for networks that take no statistics from it."""
    with torch.device("meta"):
        network = build_network(chosen, num_classes)
    if chosen.training.micro_batch_size or any(isinstance(module, BATCH_NORMS) for module in network.modules()):
        return []
    sizes = [math.ceil(share / parts) for parts in (2, 4)]
    return [with_settings(chosen, {"micro_batch_size": size}) for size in sizes if size >= LEAST_MICRO_BATCH]


def vary_threads(chosen: Recipe, stopwatch: Stopwatch) -> list[Recipe]:
    """Half of the threads, where a step takes so little that to share it out may cost more than it gains.

    On a busy machine fewer threads seem to win at any time.
    """
    threads, is_short = chosen.training.threads // 2, stopwatch.step_s.get(chosen, math.inf) < SHORT_STEP_S
    tries = threads and is_short and not stopwatch.busy_cores
    return [with_settings(chosen, {"threads": threads})] if tries else []


def vary_compiling(chosen: Recipe, is_open: Collection[str]) -> list[Recipe]:
    """The same compiled, which a dense block that shares and what is computed again cannot be."""
    memory = "plain" if "memory" in is_open else chosen.training.memory
    can_compile = "compile" in is_open and memory == "plain"
    return [with_settings(chosen, {"memory": memory, "compile": True})] if can_compile else []


def choose_workers(
    train: FileExamples, preprocessing: Preprocessing, recipe: Recipe, step_s: float, num_ranks: int = 1
) -> int | None:
    """Processes that read a batch of streamed pictures in less time than a step takes; None where that fails.

    Some pictures are read here and now. Half as many workers again make up for what a network that trains beside
    them takes from the processor.
    """
    window = torch.arange(min(NUM_PICTURES_READ, len(train)))
    augmenter = Augmenter(recipe.augmentation, recipe.seed, 0, len(train))
    began_at_s = time.perf_counter()
    try:
        with undisturbed(torch.device("cpu")):
            next(StreamedPixels(train, preprocessing, 0).training([window], augmenter))
    except DataError:  # said when its turn comes
        return None
    read_s = (time.perf_counter() - began_at_s) / len(window) * recipe.training.batch_size / num_ranks
    return max(1, min(MOST_WORKERS, num_cores(), math.ceil(1.5 * read_s / step_s)))


def _cell(key: str, value: Any) -> str:
    if key == "micro_batch_size":
        return f"{value or 'whole'}"
    return ("no", "yes")[value] if key == "compile" else f"{value}"


def _milliseconds(step_s: float) -> float | None:
    return round(1000 * step_s, 3) if math.isfinite(step_s) else None
