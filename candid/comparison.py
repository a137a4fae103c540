"""Whether two runs are equal to the last bit, and if not, from where on they differ."""

from dataclasses import dataclass
from itertools import zip_longest

from candid.checkpoint import RunFolder
from candid.errors import CheckpointError
from candid.manifest import verify_folder
from candid.recipe import list_differences

TIME_COLUMNS = ("seconds", "images_per_second", "peak_memory_mib")
TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common."""

    recipe_differences: dict[str, tuple[object, object]]
    """Keys of the recipes with both values; limits of time do not count."""
    first_different_epoch: int | None
    """The first row in which their results.csv differ, time and memory apart; None where none does."""
    different_checkpoints: list[str]
    equal_checkpoints: list[str]
    """Names of checkpoints that both runs kept, by whether weights and optimizer are equal in every bit."""

    @property
    def are_equal(self) -> bool:
        """Whether nothing was found in which they differ."""
        return self.first_different_epoch is None and not self.different_checkpoints


def compare_runs(first: RunFolder, second: RunFolder) -> Comparison:
    """Compare the recipes, the rows of results.csv and the checkpoints that both kept.

    Raises:
        CheckpointError: if a checkpoint is damaged, or there is nothing to compare.
    """
    differences = list_differences(first.recipe, second.recipe)
    names = sorted({p.name for p in first.checkpoints.glob("step-*")} & {p.name for p in second.checkpoints.glob("*")})
    if not (names or first.history or second.history):
        raise CheckpointError(
            f"{first.path} and {second.path} have nothing to compare: no finished epoch, and no checkpoint that both "
            "kept. Train them on."
        )
    equal = [name for name in names if _fingerprint(first, name) == _fingerprint(second, name)]
    return Comparison(
        recipe_differences={key: pair for key, pair in differences.items() if not key.startswith("limits.")},
        first_different_epoch=_first_difference(first, second),
        different_checkpoints=[name for name in names if name not in equal],
        equal_checkpoints=equal,
    )


def _first_difference(first: RunFolder, second: RunFolder) -> int | None:
    tables = [[_without_times(row) for row in run.history] for run in (first, second)]
    pairs = enumerate(zip_longest(*tables), start=1)
    return next((epoch for epoch, (one, other) in pairs if one != other), None)


def _without_times(row: dict[str, str]) -> dict[str, str]:
    return {column: value for column, value in row.items() if column not in TIME_COLUMNS}


def _fingerprint(run: RunFolder, checkpoint: str) -> list[object]:
    files = verify_folder(run.checkpoints / checkpoint)
    return [files[name] for name in TENSOR_FILES]
