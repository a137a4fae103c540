"""What a run folder tells, read once; older and unfinished runs lack files, and that is told too."""

import csv
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar, cast

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from candid.calibration import Calibration
from candid.durable import whole_lines
from candid.errors import CheckpointError, InputError
from candid.evaluation import Evaluation
from candid.kept_evaluation import PICTURES, load_evaluation

T = TypeVar("T")


class Epoch(BaseModel):
    """A row of results.csv; losses in nats, accuracies in [0, 1]."""

    epoch: int
    learning_rate: float | None = None
    """Of the epoch's last step."""
    train_loss: float | None = None
    train_accuracy: float | None = None
    validation_loss: float | None = None
    """None where the recipe holds nothing out."""
    validation_accuracy: float | None = None


class Result(BaseModel):
    """result.json, written when the run is finished; accuracies in [0, 1], None where nothing was measured."""

    test_accuracy: float | None = None
    test_accuracy_interval: tuple[float, float] | None = None
    test_images: int | None = None
    validation_accuracy: float | None = None
    best_step: int | None = None
    best_epoch: int | None = None
    last_test_accuracy: float | None = None
    """Of the last checkpoint, where that is not the best."""
    steps: int | None = None
    train_seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_mib: float | None = None


class Look(BaseModel):
    """A line of test_looks.jsonl: one evaluation on the test split."""

    time: str
    """ISO 8601."""
    checkpoint: str = ""
    images: int | None = None
    accuracy: float | None = None
    command: str = ""

    @field_validator("command", mode="before")
    @classmethod
    def _as_typed(cls, command: object) -> str:
        return command_text(command)


class Part(BaseModel):
    """What the report needs to know of a part of the recipe."""

    name: str = ""
    epochs: int | None = None


class Gist(BaseModel):
    """What the report needs to know of the recipe; read leniently, so that an older candid's runs can be reported."""

    data: Part = Part()
    model: Part = Part()
    training: Part = Part()


class Sizes(BaseModel):
    """Least, median and greatest side in px of some training pictures."""

    images: int
    heights_px: tuple[int, int, int]
    widths_px: tuple[int, int, int]


class DataSummary(BaseModel):
    """data.json: what there was to learn from and to validate on."""

    classes: tuple[str, ...]
    images: dict[str, tuple[int, ...]]
    """Of each split, how many pictures each class has."""
    sizes: Sizes | None = None
    """None where all have the same, or an older candid did not measure them."""
    copies: dict[str, int] | None = None
    """Of each split, how many pictures equal another one to learn from; None where nobody counted."""


class SeenPicture(BaseModel):
    """A row of training-pictures/pictures.json."""

    file: str
    truth: str = Field(alias="class")


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds; what is missing there is empty or None here."""

    name: str
    recipe_text: str
    recipe: Gist
    environment: dict[str, Any]
    epochs: tuple[Epoch, ...]
    result: Result | None
    looks: tuple[Look, ...]
    evaluation: Evaluation | None
    """On the test split if there is one, else on validation."""
    calibration: Calibration | None
    """Of the checkpoint that was chosen."""
    data: DataSummary | None
    seen: tuple[SeenPicture, ...]
    """What the first step learned from, after all variations."""
    seen_pictures: Path
    """Folder of them, `<position>.png`."""
    pictures: Path
    """Folder of the evaluation's thumbnails, `<position>.png`."""

    @property
    def data_set(self) -> str:
        """Its name; of a folder, only its own."""
        return PurePath(self.recipe.data.name).name

    @property
    def was_imported(self) -> bool:
        """Whether the weights came from elsewhere."""
        return "imported" in self.environment

    @property
    def best_epoch(self) -> int | None:
        """The epoch that validation chose; None while nothing is chosen."""
        chosen = self.result is not None and self.result.validation_accuracy is not None
        return self.result.best_epoch if self.result and chosen else None


def read_run(folder: Path) -> RunRecord:
    """What lies in the run folder; a CandidError where there is nothing to report."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give a run folder, one that `candid train` wrote.")
    recipe_text = _read_text(folder / "recipe.toml")
    evaluations = [folder / f"evaluation-{split}" for split in ("test", "validation")]
    evaluated = next((path for path in evaluations if (path / "summary.json").exists()), None)
    record = RunRecord(
        name=folder.resolve().name,
        recipe_text=recipe_text,
        recipe=_parse_recipe(folder / "recipe.toml", recipe_text),
        environment=_read_environment(folder / "environment.json"),
        epochs=_read_epochs(folder / "results.csv"),
        result=_read_json(folder / "result.json", Result),
        looks=_read_looks(folder / "test_looks.jsonl"),
        evaluation=load_evaluation(evaluated) if evaluated else None,
        calibration=Calibration.load(folder),
        data=_read_json(folder / "data.json", DataSummary),
        seen=_read_json(folder / "training-pictures" / "pictures.json", tuple[SeenPicture, ...]) or (),
        seen_pictures=folder / "training-pictures",
        pictures=(evaluated or folder) / PICTURES,
    )
    if not (record.epochs or record.result or record.evaluation):
        raise CheckpointError(
            f"{folder} holds nothing to report: no finished epoch in results.csv, no result.json and no "
            "evaluation. Give a run folder that `candid train` has worked on for at least one epoch."
        )
    return record


def command_text(command: object) -> str:
    """A command as one would type it, whether it was written down as text or as a list of words."""
    if isinstance(command, list):
        return shlex.join(map(str, cast("list[object]", command)))
    return "" if command is None else str(command)


def _read_text(path: Path) -> str:
    """The file's text; empty when there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None


def _parse_recipe(path: Path, text: str) -> Gist:
    try:
        return Gist.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise _damaged(path, error) from None


def _read_environment(path: Path) -> dict[str, Any]:
    try:
        return TypeAdapter(dict[str, Any]).validate_json(_read_text(path) or "{}")
    except ValidationError as error:
        raise _damaged(path, error) from None


def _read_epochs(path: Path) -> tuple[Epoch, ...]:
    rows = csv.DictReader(_read_text(path).splitlines())
    try:
        return tuple(Epoch.model_validate({key: value or None for key, value in row.items()}) for row in rows)
    except (ValidationError, csv.Error) as error:
        raise _damaged(path, error) from None


def _read_json(path: Path, kind: type[T]) -> T | None:
    """The file's value; None when there is no such file."""
    text = _read_text(path)
    try:
        return TypeAdapter(kind).validate_json(text) if text else None
    except ValidationError as error:
        raise _damaged(path, error) from None


def _read_looks(path: Path) -> tuple[Look, ...]:
    try:
        return tuple(map(Look.model_validate_json, whole_lines(_read_text(path))))
    except ValidationError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        reason = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    else:
        reason = str(error)
    return CheckpointError(
        f"{path} is damaged ({reason}). Restore it from a copy of the run folder, or move it away to report the rest."
    )
