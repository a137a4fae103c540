"""The memory plan: of all ways to train a recipe that leave its mathematics alone, the first that fits a budget.

They are tried in this order: what the forward pass keeps (`training.memory`), then micro-batches with the same
effective batch, then pictures read from disk, and, only where it is allowed, bf16. The evaluation's batch shrinks
beside them where it has to, which changes nothing.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from candid.data.examples import DataSet
from candid.device import machine_memory
from candid.errors import InputError
from candid.models import find_variant
from candid.notebook import paragraphs, table
from candid.recipe import Recipe
from candid.sizes import parse_size, reading, size
from candid.training.memory import PARTS, Prediction, Predictor
from candid.words import aligned, count

SMALLEST_MICRO_BATCH = 2
"""Batch normalisation has no statistics of one example."""
BUDGETS = {f"{gib} GiB": gib * 2**30 for gib in (1, 2, 4, 8, 16, 24)}
SHOWN_BATCHES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
MOST_BATCH = 4096
NUMBERS = (6, 7)
"""Columns of the plan's table that stand to the right."""


@dataclass(frozen=True)
class Option:
    """One way to train the recipe."""

    recipe: Recipe
    prediction: Prediction

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of the recipe that tell it from the others."""
        training, data = self.recipe.training, self.recipe.data
        settings: dict[str, Any] = {"training.memory": training.memory}
        if training.micro_batch_size:
            settings["training.micro_batch_size"] = training.micro_batch_size
        if data.in_memory is False:
            settings["data.in_memory"] = False
        if self.recipe.limits.evaluation_batch_size != type(self.recipe.limits)().evaluation_batch_size:
            settings["limits.evaluation_batch_size"] = self.recipe.limits.evaluation_batch_size
        return settings | {"training.precision": training.precision}

    def cells(self) -> tuple[str, ...]:
        """Its row of the table, without the mark of the chosen one."""
        training, limits = self.recipe.training, self.recipe.limits
        split = f"{training.micro_batch_size} of {training.batch_size}" if training.micro_batch_size else "whole"
        pictures = "from disk" if self.recipe.data.in_memory is False else "as they are"
        where = size(self.prediction.total)
        return (
            training.memory,
            split,
            pictures,
            training.precision,
            f"{limits.evaluation_batch_size}",
            where,
            f"about {self.prediction.step_s:.2g} s",
        )


@dataclass(frozen=True)
class Plan:
    """The options that were tried, the last of them the chosen one, and what there is to say about it."""

    options: tuple[Option, ...]
    chosen: Option
    limit: int
    """Bytes."""
    given: str
    """The budget as it was written; empty where it is the machine's memory."""
    advice: str
    """How to keep even batch normalisation as it is, where the choice splits batches; else empty."""
    predictor: Predictor

    def predict_trying(self, recipes: Iterable[Recipe]) -> Prediction:
        """What is held at most where each of some recipes is trained beside the chosen one, one network at a time."""
        return max(map(self._predict_beside, recipes), key=lambda prediction: prediction.total)

    def _predict_beside(self, recipe: Recipe) -> Prediction:
        """The larger of the recipe's prediction and the chosen one's.

        The code that oneDNN writes for one precision stays beside that for another.
        """
        ours, theirs = self.chosen.prediction, self.predictor.predict(recipe)
        if recipe.training.precision == self.chosen.recipe.training.precision:
            return max(ours, theirs, key=lambda prediction: prediction.total)
        fullest, other = (ours, recipe) if ours.total > theirs.total else (theirs, self.chosen.recipe)
        floor = fullest.parts["floor"] + self.predictor.simulation(other).code
        return replace(fullest, parts={**fullest.parts, "floor": floor})

    def text(self) -> str:
        """The table, the parts of the chosen option, and what it means."""
        budget, *meaning = self._sentences()
        return "\n".join([budget, *aligned(self._rows(), NUMBERS), *meaning])

    def _repr_html_(self) -> str:
        """What a notebook shows: the same."""
        budget, *meaning = self._sentences()
        return paragraphs([budget]) + table(self._rows(), NUMBERS) + paragraphs(meaning)

    def _rows(self) -> list[tuple[str, ...]]:
        """The options as cells of a table, the headings first."""
        headings = ("", "keeps", "micro-batch", "pictures", "precision", "evaluates", "memory", "a step")
        return [headings, *((">" if option is self.chosen else "", *option.cells()) for option in self.options)]

    def _sentences(self) -> list[str]:
        """What is said of the budget, and then of the chosen option."""
        budget = reading(self.given) if self.given else f"This machine's memory is {size(self.limit)}"
        parts = self.chosen.prediction.parts
        shares = ", ".join(f"{name} {size(parts[name])}" for name in PARTS if name in parts)
        fullest = f"The fullest moment is {self.chosen.prediction.phase}: {shares}."
        return [f"{budget}.", fullest, *([self.advice] if self.advice else [])]


@dataclass(frozen=True)
class Curve:
    """One way to train, at growing batches that are taken whole."""

    name: str
    """What the forward pass keeps."""
    batches: tuple[int, ...]
    memory: tuple[float, ...]
    """Bytes."""
    step_s: tuple[float, ...]
    largest: dict[str, int]
    """For each budget the largest batch that fits; 0 where none does."""


def trace_curves(recipe: Recipe, data_set: DataSet, device: torch.device) -> list[Curve]:
    """Memory and time of a resolved recipe against the batch, for each way that its network can be trained."""
    predictor, curves = Predictor(data_set, recipe, device), list[Curve]()
    for mode in _modes_of(recipe):
        by_mode = recipe.replace({"training.memory": mode, "training.micro_batch_size": 0})
        predictions = [predictor.predict(_at_batch(by_mode, batch_size)) for batch_size in SHOWN_BATCHES]
        curves.append(
            Curve(
                name=mode,
                batches=SHOWN_BATCHES,
                memory=tuple(prediction.total for prediction in predictions),
                step_s=tuple(prediction.step_s for prediction in predictions),
                largest={name: largest_batch(predictor, by_mode, limit) for name, limit in BUDGETS.items()},
            )
        )
    return curves


def describe_largest_batches(curves: Sequence[Curve]) -> str:
    """A table of the largest whole batch for each budget and each way to train."""
    headings = ("budget", *(curve.name for curve in curves))
    rows = [(name, *(_batch(curve.largest[name]) for curve in curves)) for name in BUDGETS]
    title = "The largest batch, taken whole, by what the forward pass keeps:"
    return "\n".join([title, *aligned([headings, *rows], numbers=range(1, len(headings)))])


def _batch(largest: int) -> str:
    return "none fits" if not largest else f"over {MOST_BATCH:,}" if largest > MOST_BATCH else f"{largest:,}"


def make_plan(
    wanted: Recipe,
    recipe: Recipe,
    data_set: DataSet,
    device: torch.device,
    *,
    allow_bf16: bool = False,
    num_ranks: int = 1,
) -> Plan:
    """The first option for a resolved `recipe` that fits; what `wanted` left open may be chosen, nothing else.

    The budget is `limits.memory`, of each of `num_ranks` processes; where it is empty, the machine's memory.

    Raises:
        InputError: if the budget is above the machine's memory, or nothing fits; then it says what the least is.
    """
    limit = find_limit(recipe, device)
    predictor = Predictor(data_set, recipe, device, num_ranks)
    predictor.predict(recipe)
    if limit <= predictor.floor:
        raise InputError(
            f"limits.memory is {recipe.limits.memory} ({size(limit)}), but Python, PyTorch and candid alone hold "
            f"{size(predictor.floor)} here; it must be more. Use a larger --memory."
        )
    tried: list[Option] = []
    for candidate in _candidates(wanted, recipe, predictor, allow_bf16):
        option = _fit_evaluation(Option(candidate, predictor.predict(candidate)), predictor, limit)
        tried.append(option)
        if option.prediction.total <= limit:
            advice = _advise(wanted, option, tried, predictor, limit)
            return Plan((*tried, *_whole_batches(wanted, recipe, predictor, tried)), option, limit,
                        recipe.limits.memory, advice, predictor)  # fmt: skip
    raise InputError(_explain_nothing_fits(recipe, tried, limit))


def predict_within_budget(recipe: Recipe, data_set: DataSet, device: torch.device, num_ranks: int = 1) -> Prediction:
    """What a resolved recipe needs as it stands: a run that goes on keeps its settings.

    Raises:
        InputError: if that is more than its `limits.memory`, or this is above the machine's memory.
    """
    limit, prediction = find_limit(recipe, device), Predictor(data_set, recipe, device, num_ranks).predict(recipe)
    if prediction.total > limit:
        raise InputError(
            f"limits.memory is {recipe.limits.memory} ({size(limit)}), but the run needs {size(prediction.total)} with "
            "the settings that it began with, and it goes on by those. Use a larger --memory."
        )
    return prediction


def find_limit(recipe: Recipe, device: torch.device) -> int:
    """The budget in bytes; without one, the memory that there is.

    Raises:
        InputError: if it is above that.
    """
    there_is, given = machine_memory(device), recipe.limits.memory
    if parse_size(given) > there_is:
        raise InputError(
            f"limits.memory is {given} ({size(parse_size(given))}), but there are {size(there_is)} ({device.type}); it "
            "must be at most that. Use a smaller --memory, or leave it out."
        )
    return parse_size(given) or there_is


def largest_batch(predictor: Predictor, recipe: Recipe, limit: float) -> int:
    """Images of the largest batch, taken whole, that fits in `limit` bytes; 0 where none does.

    It is one more than MOST_BATCH where that fits too. Evaluation takes no more pictures at once than training does.
    """
    lowest, highest = 0, MOST_BATCH + 2
    while highest - lowest > 1:
        middle = (lowest + highest) // 2
        fits = predictor.predict(_at_batch(recipe, middle)).total <= limit
        lowest, highest = (middle, highest) if fits else (lowest, middle)
    return lowest


def _at_batch(recipe: Recipe, batch_size: int) -> Recipe:
    evaluation_size = min(batch_size, recipe.limits.evaluation_batch_size)
    return recipe.replace({"training.batch_size": batch_size, "limits.evaluation_batch_size": evaluation_size})


def memory_modes(wanted: Recipe, recipe: Recipe) -> list[str]:
    """What `training.memory` may become, the resolved value first, then what holds less."""
    if wanted.training.memory != "auto":
        return [recipe.training.memory]
    modes = _modes_of(recipe)
    return modes[modes.index(recipe.training.memory) :]


def _modes_of(recipe: Recipe) -> list[str]:
    """All that `training.memory` may be for the recipe's network, what holds most first."""
    dense, training = find_variant(recipe.model.name).has_dense_block, recipe.training
    if training.compile or (dense and training.sync_batch_norm):
        return ["plain"]  # `choose_memory` says why the others are refused
    return ["plain", "shared", "recompute"] if dense else ["plain", "recompute"]


def _candidates(wanted: Recipe, recipe: Recipe, predictor: Predictor, allow_bf16: bool) -> Iterator[Recipe]:
    """The variations of a recipe in the order in which they are tried."""
    modes = memory_modes(wanted, recipe)
    changes: list[Mapping[str, Any]] = [{}]
    if predictor.pictures.stored_bytes is None and wanted.data.in_memory is None:
        changes.append({"data.in_memory": False})
    if allow_bf16 and recipe.training.precision == "fp32":
        changes += [{**change, "training.precision": "bf16"} for change in changes]
    for change in changes:
        for micro_batch_size in _micro_batches(recipe, predictor.batch_size(recipe)):
            for mode in modes:
                yield recipe.replace({**change, "training.memory": mode, "training.micro_batch_size": micro_batch_size})


def _micro_batches(recipe: Recipe, batch_size: int) -> list[int]:
    """The recipe's own, then halves of it."""
    sizes, half = [recipe.training.micro_batch_size], recipe.training.micro_batch_size or batch_size
    while (half := math.ceil(half / 2)) >= SMALLEST_MICRO_BATCH and half not in sizes:
        sizes.append(half)
    return sizes


def _fit_evaluation(option: Option, predictor: Predictor, limit: int) -> Option:
    """With a smaller batch of evaluation where that is what does not fit."""
    while option.prediction.total > limit and option.prediction.phase in ("evaluating", "the result"):
        evaluation_size = option.recipe.limits.evaluation_batch_size // 2
        if not evaluation_size:
            break
        smaller = option.recipe.replace({"limits.evaluation_batch_size": evaluation_size})
        option = Option(smaller, predictor.predict(smaller))
    return option


def _whole_batches(wanted: Recipe, recipe: Recipe, predictor: Predictor, tried: Sequence[Option]) -> list[Option]:
    """The ways to keep the batch whole that came behind the chosen one, for comparison."""
    seen = {option.recipe.training.memory for option in tried}
    later = [recipe.replace({"training.memory": mode}) for mode in memory_modes(wanted, recipe) if mode not in seen]
    return [Option(candidate, predictor.predict(candidate)) for candidate in later]


def _advise(wanted: Recipe, chosen: Option, tried: Sequence[Option], predictor: Predictor, limit: int) -> str:
    """What splitting means for batch normalisation, and what would do without."""
    recipe = chosen.recipe
    if recipe.training.micro_batch_size == wanted.training.micro_batch_size:
        return ""
    if not predictor.simulation(recipe).normalises:
        return "The gradients of the micro-batches add up to those of the batch: nothing else changes."
    splits = (
        f"Batch normalisation sees micro-batches of {recipe.training.micro_batch_size} and takes its statistics from "
        f"them, where the recipe has batches of {recipe.training.batch_size}: not quite the same training. To keep "
        "even that exact, "
    )
    if predictor.pictures.stored_bytes is None and wanted.data.in_memory is None:
        streamed = recipe.replace(
            {"training.micro_batch_size": wanted.training.micro_batch_size, "data.in_memory": False}
        )
        if predictor.predict(streamed).total <= limit:
            return f"{splits}read the pictures from disk: --set data.in_memory=false."
    whole = [option for option in tried if option.recipe.training.micro_batch_size == wanted.training.micro_batch_size]
    least = min(whole, key=lambda option: option.prediction.total)
    return (
        f"{splits}give --memory {math.ceil(least.prediction.total / 2**20)}MiB: then {_assignments(least.settings)} "
        "does, without splitting."
    )


def _explain_nothing_fits(recipe: Recipe, tried: Sequence[Option], limit: int) -> str:
    least = min(tried, key=lambda option: option.prediction.total)
    needed = math.ceil(least.prediction.total / 2**20)
    given = f"limits.memory is {recipe.limits.memory}" if recipe.limits.memory else "The machine's memory"
    return (
        f"{given} ({size(limit)}), and none of {count(len(tried), 'way')} to train {recipe.model.name} at batch "
        f"{recipe.training.batch_size} fits; the least needs {size(needed * 2**20)}, with "
        f"{_assignments(least.settings)}. Use --memory {needed}MiB, a smaller data.image_size, or a smaller network."
    )


def _assignments(settings: Mapping[str, Any]) -> str:
    """Such as "training.memory=recompute, data.in_memory=false"."""
    return ", ".join(f"{key}={str(value).lower()}" for key, value in settings.items())
