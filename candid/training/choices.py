"""Choices that were measured once for a network on this machine, kept so that the same command takes them again.

Each is a JSON file in the user's cache, named after everything that it depends on. One that is damaged is as good as
none: it is measured again and replaced.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from candid.device import describe_device, describe_processor
from candid.durable import cache_folder, write_file
from candid.recipe import Recipe, RecipeError
from candid.training.ranks import Ranks
from candid.training.stopwatch import SETTINGS, Timing, settings_of, with_settings
from candid.training.tuning import SHARE, Effort, Tuning, list_open, tune

LEAST_STEPS = 8
"""Measuring takes as many at least: two each of four ways."""


def choose_settings(
    recipe: Recipe,
    wanted: Recipe,
    num_classes: int,
    device: torch.device,
    num_steps: int,
    ranks: Ranks,
    *,
    effort: Effort = "quick",
    fits: Callable[[Recipe], bool] = lambda recipe: True,
) -> Tuning | None:
    """What `tune` gives for a resolved recipe of a run of `num_steps`, or gave before; None where it would not pay.

    All ranks measure at once, each its part of a batch; what the first one chose counts.
    """
    too_short = effort == "quick" and SHARE * num_steps < LEAST_STEPS
    if effort == "off" or too_short or not list_open(wanted):
        return None
    facts = _list_facts(recipe, wanted, num_classes, device, effort, ranks)
    for_this_length = {**facts, "steps": num_steps}  # what is too short to be measured stays so, whatever else ran
    tuning = _load(for_this_length, recipe, wanted, fits) or _load(facts, recipe, wanted, fits)
    if tuning is None:
        tuning = tune(recipe, wanted, num_classes, device, num_steps=num_steps, num_ranks=ranks.number,
                      effort=effort, fits=fits)  # fmt: skip
        if ranks.is_first and not tuning.busy_cores:
            _keep(facts if len(tuning.timings) > 1 else for_this_length, tuning)
    return ranks.gather(tuning)[0]


def _list_facts(
    recipe: Recipe, wanted: Recipe, num_classes: int, device: torch.device, effort: Effort, ranks: Ranks
) -> dict[str, Any]:
    """All that a choice depends on: what is trained, what may be chosen, and on what machine."""
    training = recipe.training.model_dump(exclude={"epochs"})
    return {
        "model": recipe.model.model_dump(exclude={"weights", "new_head"}),
        "pictures": [recipe.data.channels, recipe.data.image_size, num_classes],
        "training": training,
        "optimizer": recipe.optimizer.name,
        "memory": recipe.limits.memory,
        "open": list_open(wanted),
        "effort": effort,
        "ranks": ranks.number,
        "device": describe_device(device),
        "machine": [describe_processor(), str(torch.cpu.get_capabilities())],
        "versions": [version("candid-vision"), torch.__version__],
    }


def _place(facts: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "tuning" / f"{digest[:32]}.json"


def _load(facts: Mapping[str, Any], recipe: Recipe, wanted: Recipe, fits: Callable[[Recipe], bool]) -> Tuning | None:
    """What was kept for these facts; None where nothing was, or not in one piece, or it does not fit any more."""
    try:
        kept = json.loads(_place(facts).read_text(encoding="utf-8"))
        timings = [Timing(dict(row["settings"]), float(row["step_s"])) for row in kept["timings"]]
        chosen = with_settings(recipe, kept["chosen"])
        tuning = Tuning(chosen, tuple(timings), float(kept["seconds"]), is_cached=True)
        is_whole = kept["facts"] == facts and settings_of(chosen) in [timing.settings for timing in timings]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecipeError):
        return None
    closed = set(SETTINGS) - set(list_open(wanted))
    keeps = all(getattr(chosen.training, key) == getattr(recipe.training, key) for key in closed)
    return tuning if is_whole and keeps and fits(chosen) else None


def _keep(facts: Mapping[str, Any], tuning: Tuning) -> None:
    """Write it down; where that cannot be, the next run measures again."""
    rows = [{"settings": dict(timing.settings), "step_s": timing.step_s} for timing in tuning.timings]
    kept = {"facts": facts, "chosen": settings_of(tuning.recipe), "timings": rows, "seconds": tuning.seconds}
    place = _place(facts)
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_file(place, json.dumps(kept, indent=2) + "\n")
