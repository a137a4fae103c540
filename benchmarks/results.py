"""docs/results.md out of run folders, so that no figure in it was typed by hand.

Run: python -m benchmarks.results RUN... (runs of one recipe that differ only in the seed become one row)
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from candid.durable import write_file
from candid.evaluation import wilson_interval
from candid.recipe import Recipe
from candid.words import duration, interval, percent

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
HEADING = """# Results

Generated from run folders by `python -m benchmarks.results`. Validation chose each checkpoint; test was looked at
once. Pictures are those of the test split, time is that of training. Accuracy is the mean over the seeds, with the
standard deviation where there are several; the interval is Wilson's 95 % for so many pictures, whatever the seeds.

| network | data | pictures | seeds | test accuracy | 95 % interval | epochs | time | machine | commit | command |
|---|---|--:|--:|--:|---|--:|--:|---|---|---|
"""


@dataclass(frozen=True)
class FinishedRun:
    """What the page needs of one run folder."""

    recipe: Recipe
    result: dict[str, Any]
    environment: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> "FinishedRun":
        """The run in `path`."""
        result, environment = (json.loads((path / name).read_text()) for name in ("result.json", "environment.json"))
        return cls(Recipe.from_toml(path / "recipe.toml"), result, environment)


def write_page(runs: list[FinishedRun]) -> str:
    """The page as Markdown: a row for each recipe, its runs gathered over their seeds."""
    by_recipe: dict[Recipe, list[FinishedRun]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe.replace({"seed": 0}), []).append(run)
    return HEADING + "".join(f"| {' | '.join(describe_row(recipe, group))} |\n" for recipe, group in by_recipe.items())


def describe_row(recipe: Recipe, runs: list[FinishedRun]) -> list[str]:
    """The cells of one row."""
    accuracies = [run.result["test_accuracy"] for run in runs]
    pictures: int = runs[0].result["test_images"]
    spread = f" ± {100 * stdev(accuracies):.2f}" if len(runs) > 1 else ""
    first = runs[0].environment
    return [
        recipe.model.name,
        Path(recipe.data.name).name,
        f"{pictures:,}",
        ", ".join(str(run.recipe.seed) for run in runs),
        percent(mean(accuracies)).replace(" %", f"{spread} %"),
        # the seeds were tested on the same pictures, so more seeds do not make more of them
        interval(wilson_interval(round(mean(accuracies) * pictures), pictures)),
        str(recipe.training.epochs),
        duration(mean(run.result["train_seconds"] for run in runs)),
        f"{first['processor']}, {first['device']}, torch {first['versions']['torch']}",
        (first["git_commit"] or "-")[:10],
        f"`{first['command']}`",
    ]


def main() -> None:
    """Write the page from the run folders on the command line."""
    write_file(PAGE, write_page([FinishedRun.read(Path(path)) for path in sys.argv[1:]]))


if __name__ == "__main__":
    main()
