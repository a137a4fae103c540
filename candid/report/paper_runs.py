"""What a paper's table says beside what we count, and measured in finished runs."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from candid.errors import CandidError
from candid.paper_tables import COLUMNS, DATA_SETS, Paper
from candid.recipe import Recipe
from candid.recipe_parts import Augmentation

COLUMN_OF = {data: column for column, data in DATA_SETS.items()}


@dataclass(frozen=True)
class MeasuredRun:
    """The test error of one finished run, where the paper has a column for it."""

    folder: Path
    model: str
    column: str
    """One of the paper's `COLUMNS`."""
    epochs: int
    error: float
    """On the test split, in [0, 1], of the checkpoint that validation chose."""


def find_runs(folder: Path, paper: Paper) -> list[MeasuredRun]:
    """The runs in `folder` that the paper has a place for, by name; unfinished and damaged ones are passed over."""
    models = {row.model for row in paper.small_images}
    runs = (read_measured_run(path.parent) for path in sorted(folder.glob("*/result.json")))
    return [run for run in runs if run is not None and run.model in models]


def read_measured_run(folder: Path) -> MeasuredRun | None:
    """The run in `folder`; None where it has no test error for a column of the paper."""
    try:
        recipe = Recipe.from_toml(folder / "recipe.toml")
        accuracy = json.loads((folder / "result.json").read_text(encoding="utf-8"))["test_accuracy"]
    except (CandidError, OSError, ValueError, LookupError, TypeError):
        return None
    column = choose_column(recipe)
    if column is None or not isinstance(accuracy, float):
        return None
    return MeasuredRun(folder, recipe.model.name, column, recipe.training.epochs, 1 - accuracy)


def choose_column(recipe: Recipe) -> str | None:
    """The column for a recipe's data and augmentation: none at all, or shifts and mirroring, which is "+"."""
    name, augmentation = COLUMN_OF.get(recipe.data.name), recipe.augmentation
    if name is None or augmentation == Augmentation():
        return name
    plus = Augmentation(crop_padding=max(augmentation.crop_padding, 1), mirror=True)  # the paper's padding is 4
    return f"{name}+" if augmentation == plus and f"{name}+" in COLUMNS else None


def mean_errors(runs: Iterable[MeasuredRun]) -> dict[tuple[str, str], float]:
    """The mean test error in [0, 1] of the runs of each network in each column, by their names."""
    errors: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        errors.setdefault((run.model, run.column), []).append(run.error)
    return {key: mean(values) for key, values in errors.items()}
