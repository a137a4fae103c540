"""The run folder and its checkpoints: safetensors, JSON and a manifest of SHA-256; no pickle, ever.

A checkpoint is a folder. It is built under a temporary name, its manifest is written last, and only then does
it get its final name, so that a checkpoint that exists is complete. One that was changed later is found out
by its manifest.
"""

import csv
import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import load_file as map_tensors
from torch import Tensor, nn

from candid.data.preprocessing import Preprocessing
from candid.device import torch_memory_format
from candid.durable import append_line, new_folder, remove_folder, remove_partial, write_file
from candid.errors import CheckpointError, InputError, did_you_mean
from candid.locking import locked
from candid.manifest import REMEDY, Description, describe_files, read_verified, verify_file
from candid.models import build_model, find_variant
from candid.randomness import seed_for
from candid.recipe import Recipe, RecipeError
from candid.tensor_files import safetensors_in_pieces

NUM_RECENT_KEPT = 2
Which = Literal["best", "latest"]


@dataclass(frozen=True)
class Checkpoint:
    """All that turns a picture into a class name; no reader consults anything else."""

    weights: dict[str, Tensor]
    """The weights that were evaluated: the running average where the recipe asks for one."""
    recipe: Recipe
    """Resolved, as it was trained."""
    class_names: tuple[str, ...]
    """Position = index of the logit."""
    preprocessing: Preprocessing
    step: int
    """Optimizer steps taken."""
    epoch: int
    """Epochs finished."""
    validation_accuracy: float | None
    """Top-1 in [0, 1]; never from the test split; None when nothing was held out."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"step-{self.step:08d}"


@dataclass(frozen=True)
class TrainingState:
    """What training needs beside the checkpoint to go on as if it had never stopped."""

    tensors: dict[str, Tensor]
    """The optimizer's buffers and the totals of the epoch so far; the raw weights too where `Checkpoint.weights` is
    an average."""
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The rows of results.csv so far."""
    gradient_scaler: dict[str, float] = field(default_factory=dict[str, float])
    """Of fp16 training: the scale, and how many steps it has been good for."""
    epoch_seconds: float = 0.0
    """Time spent in the epoch that has begun."""


@dataclass(frozen=True)
class RunFolder:
    """The one artefact of a run; `path` is runs/NAME."""

    path: Path

    @classmethod
    def create(cls, path: Path, recipe: Recipe, environment: Mapping[str, object]) -> "RunFolder":
        """A new run folder with its resolved recipe and environment."""
        refuse_existing(path)
        with new_folder(path) as partial:
            write_file(partial / "recipe.toml", recipe.to_toml())
            write_file(partial / "environment.json", json.dumps(environment, indent=2) + "\n")
            (partial / "checkpoints").mkdir()
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The run in an existing folder; InputError with the nearest names where there is none."""
        if not (path / "recipe.toml").is_file():
            runs = [entry.parent.name for entry in path.parent.glob("*/recipe.toml")]
            advice = did_you_mean(path.name, runs, "`candid train` makes runs in the folder runs/.")
            what = "is not a run (it has no recipe.toml)" if path.exists() else "does not exist"
            raise InputError(f"{path} {what}; expected a run folder. {advice}")
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        path = self.path / "recipe.toml"
        try:
            return Recipe.from_toml(path)
        except RecipeError as error:
            raise CheckpointError(
                f"{error}\n{path} holds no recipe of this version. Use the candid version that wrote it, or undo what "
                "was changed in it."
            ) from None

    @property
    def environment(self) -> dict[str, Any]:
        """What the run's bits depend on beside its recipe, as it was when the run began."""
        try:
            return json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path / 'environment.json'} cannot be read ({error}). {REMEDY}") from None

    @property
    def history(self) -> list[dict[str, str]]:
        """The rows of results.csv, as text; empty where no epoch is finished."""
        path = self.path / "results.csv"
        return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []

    @property
    def is_finished(self) -> bool:
        """Whether result.json tells of the last epoch in results.csv; a run with more epochs since is not finished."""
        try:
            result = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
            return result["steps"] == int(self.history[-1]["step"])
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes from training into this folder; see `locking.locked`."""
        return locked(self.path)

    def record_resume(self, recipe: Recipe, environment: Mapping[str, object]) -> None:
        """Note that the run goes on, with what, and where; its recipe is from now on `recipe`."""
        append_line(self.path / "resumes.jsonl", json.dumps({"time": _now(), **environment}))
        self.record_recipe(recipe)

    def record_recipe(self, recipe: Recipe) -> None:
        """The run goes on with `recipe`."""
        write_file(self.path / "recipe.toml", recipe.to_toml())

    def save(self, checkpoint: Checkpoint, state: TrainingState, *, is_best: bool) -> None:
        """Write a checkpoint, point latest.json and perhaps best.json to it, drop those no longer needed."""
        facts = {
            "recipe": checkpoint.recipe.model_dump(mode="json"),
            "class_names": checkpoint.class_names,
            "preprocessing": checkpoint.preprocessing.model_dump(mode="json"),
            "step": checkpoint.step,
            "epoch": checkpoint.epoch,
            "validation_accuracy": checkpoint.validation_accuracy,
            "is_best": is_best,
            "training": {
                "history": state.history,
                "gradient_scaler": state.gradient_scaler,
                "epoch_seconds": state.epoch_seconds,
            },
        }
        contents: dict[str, Iterable[bytes | memoryview]] = {
            "model.safetensors": safetensors_in_pieces(checkpoint.weights),
            "optimizer.safetensors": safetensors_in_pieces(state.tensors),
            "state.json": [(json.dumps(facts, indent=2) + "\n").encode()],
        }
        descriptions = {name: Description() for name in contents}
        with new_folder(self.checkpoints / checkpoint.name) as partial:
            for name, pieces in contents.items():
                write_file(partial / name, descriptions[name].of(pieces))
            write_file(partial / "manifest.json", describe_files(descriptions))
        self._point_to(checkpoint, is_best=is_best)
        self._drop_old()

    def load(self, which: Which | None = None) -> Checkpoint:
        """The best checkpoint (or, where nothing was held out to choose by, the latest), verified."""
        return self._read(self.checkpoints / self._pointed(which or self.chosen))

    @property
    def chosen(self) -> Which:
        """Which checkpoint the run's result speaks of."""
        return "best" if (self.path / "best.json").is_file() else "latest"

    def clear(self) -> None:
        """Clear away what a killed process left unfinished."""
        remove_partial(self.path)
        remove_partial(self.checkpoints)

    def load_to_resume(self) -> tuple[Checkpoint, TrainingState, list[str]]:
        """The newest checkpoint that verifies, and what is wrong with newer ones that had to be passed over."""
        self.clear()
        problems: list[str] = []
        for folder in sorted(self.checkpoints.glob("step-*"), reverse=True):
            try:
                checkpoint, state = self._read(folder), _read_training_state(folder)
                with _read_facts(folder) as facts:
                    is_best = bool(facts["is_best"])
            except CheckpointError as error:
                problems.append(str(error))
            else:  # killed between a save and its pointers, the process left them pointing to the one before
                self._point_to(checkpoint, is_best=is_best)
                return checkpoint, state, problems
        reasons = "".join(f"\n  {problem}" for problem in problems)
        raise CheckpointError(
            f"{self.path} has no checkpoint to go on from. Use another --out, and train from the start.{reasons}"
        )

    def record_test_look(self, checkpoint: str, images: int, accuracy: float, command: str) -> None:
        """Note that the test split was looked at."""
        look = {
            "time": _now(),
            "checkpoint": checkpoint,
            "images": images,
            "accuracy": accuracy,
            "command": command,
        }
        append_line(self.path / "test_looks.jsonl", json.dumps(look))

    def verify(self) -> dict[str, str | None]:
        """For each checkpoint's name what is wrong with it; None where every file is as it was saved.

        Also, what is wrong with latest.json and best.json.
        """
        findings: dict[str, str | None] = {}
        for folder in sorted(self.checkpoints.glob("step-*")):
            try:
                self._read(folder, is_kept=False)
                _read_training_state(folder, is_kept=False)
                findings[folder.name] = None
            except CheckpointError as error:
                findings[folder.name] = str(error)
        for pointer in (path for path in (self.path / "latest.json", self.path / "best.json") if path.is_file()):
            try:
                name = self._pointed("latest" if pointer.stem == "latest" else "best")
                if name not in findings:
                    findings[pointer.name] = f"{pointer} names {name}, which is missing. {REMEDY}"
            except CheckpointError as error:
                findings[pointer.name] = str(error)
        return findings

    def _read(self, folder: Path, *, is_kept: bool = True) -> Checkpoint:
        checkpoint, recipe = _read_checkpoint(folder, is_kept=is_kept), self.recipe
        if checkpoint.name != folder.name:
            raise CheckpointError(f"{folder} holds {checkpoint.name}; expected what its name says. Name it so again.")
        if (checkpoint.recipe.model.name, checkpoint.recipe.data.name) != (recipe.model.name, recipe.data.name):
            raise CheckpointError(
                f"{folder} is of {checkpoint.recipe.model.name} on {checkpoint.recipe.data.name}; expected "
                f"{recipe.model.name} on {recipe.data.name}, as the run's recipe says. Move it to its own run."
            )
        return checkpoint

    def _point_to(self, checkpoint: Checkpoint, *, is_best: bool) -> None:
        pointer = {"checkpoint": checkpoint.name, "validation_accuracy": checkpoint.validation_accuracy}
        for which in ("latest", "best") if is_best else ("latest",):
            write_file(self.path / f"{which}.json", json.dumps(pointer) + "\n")

    def _pointed(self, which: Which) -> str:
        path = self.path / f"{which}.json"
        try:
            name = json.loads(path.read_text())["checkpoint"]
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.path} has no finished epoch yet ({which}.json is missing). "
                f"Run `candid train --resume --out {self.path}`."
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{path} is damaged; expected the name of a checkpoint. Delete it.") from None
        return str(name)

    def _drop_old(self) -> None:
        names = sorted(folder.name for folder in self.checkpoints.glob("step-*"))
        kept = {*names[-NUM_RECENT_KEPT:], self._pointed(self.chosen)}
        for name in set(names) - kept:
            remove_folder(self.checkpoints / name)


def build_network(recipe: Recipe, num_classes: int) -> nn.Module:
    """A resolved recipe's network on the CPU, in its memory format, initialised from the recipe's seed alone."""
    has_blocks = find_variant(recipe.model.name).has_dense_block
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        model = build_model(
            recipe.model.name,
            num_classes=num_classes,
            in_channels=recipe.data.channels,
            image_size=recipe.data.image_size,
            dropout=recipe.model.dropout,
            memory=recipe.training.memory if has_blocks else "plain",  # others are recomputed from outside
        )
    return model.to(memory_format=torch_memory_format(recipe.training.memory_format))


def restore_network(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's network with its weights, in evaluation mode on the CPU."""
    model = build_network(checkpoint.recipe, len(checkpoint.class_names))
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint.name} does not hold the weights of {checkpoint.recipe.model.name} ({error}). "
            "Use the candid version that trained it."
        ) from None
    return model.to(memory_format=torch.channels_last).eval()


def is_finite(tensor: Tensor) -> bool:
    """Whether no value of it is infinite or no number.

    Such a value makes the sum one too, and a sum takes a tenth of the time; a sum may also be too large by itself.
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def refuse_existing(path: Path) -> None:
    """Raise an InputError where a new run would land on something that is there."""
    if path.exists():
        raise InputError(f"{path} exists; a run never overwrites another. Give another --out, or go on with --resume.")


def _read_checkpoint(folder: Path, *, is_kept: bool) -> Checkpoint:
    with _read_facts(folder) as facts:
        return Checkpoint(
            weights=_read_tensors(folder, "model.safetensors", is_kept=is_kept),
            recipe=Recipe.from_mapping(facts["recipe"]),
            class_names=tuple(facts["class_names"]),
            preprocessing=Preprocessing.model_validate(facts["preprocessing"]),
            step=facts["step"],
            epoch=facts["epoch"],
            validation_accuracy=facts["validation_accuracy"],
        )


def _read_training_state(folder: Path, *, is_kept: bool = True) -> TrainingState:
    with _read_facts(folder) as facts:
        training = facts["training"]
        return TrainingState(
            tensors=_read_tensors(folder, "optimizer.safetensors", is_kept=is_kept),
            history=training["history"],
            gradient_scaler=training["gradient_scaler"],
            epoch_seconds=training["epoch_seconds"],
        )


@contextmanager
def _read_facts(folder: Path) -> Generator[dict[str, Any]]:
    """What state.json holds; the block that uses it may find that it is not what it should be."""
    data = read_verified(folder, "state.json")
    try:
        yield json.loads(data)
    except (KeyError, TypeError, ValueError, RecursionError, RecipeError) as error:
        raise CheckpointError(
            f"{folder / 'state.json'} does not describe a checkpoint of this version ({error}). "
            "Use the candid version that wrote it."
        ) from None


def _read_tensors(folder: Path, name: str, *, is_kept: bool) -> dict[str, Tensor]:
    """A file's tensors, verified; those not to be kept stay in the file, which takes half the time and no memory."""
    try:
        tensors = tensors_from_bytes(read_verified(folder, name)) if is_kept else map_tensors(verify_file(folder, name))
    except SafetensorError as error:  # though it is what the manifest says: somebody wrote both
        raise CheckpointError(f"{folder / name} is no safetensors file ({error}). {REMEDY}") from None
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(
                f"{folder / name} holds values that are not finite, in {key}; expected numbers. {REMEDY}"
            )
    return tensors


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
