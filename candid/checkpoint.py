"""The run folder and its checkpoints: safetensors, JSON and a manifest of SHA-256; no pickle, ever.

A checkpoint is a folder. It is built under a temporary name, its manifest is written last, and only then does
it get its final name, so that a checkpoint that exists is complete. One that was changed later is found out
by its manifest.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as bytes_from_tensors
from torch import Tensor, nn

from candid.data.preprocessing import Preprocessing
from candid.device import torch_memory_format
from candid.durable import append_line, new_folder, remove_partial, write_file
from candid.errors import CheckpointError, InputError, did_you_mean
from candid.models import build_model
from candid.randomness import seed_for
from candid.recipe import Recipe, RecipeError

FORMAT_VERSION = 1
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
    """The optimizer's buffers; the raw weights too where `Checkpoint.weights` is an average."""
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The rows of results.csv so far."""
    gradient_scale: float | None = None
    """Of fp16 training."""


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
        return Recipe.from_toml(self.path / "recipe.toml")

    @property
    def environment(self) -> dict[str, Any]:
        """What the run's bits depend on beside its recipe, as it was when the run began."""
        return json.loads((self.path / "environment.json").read_text(encoding="utf-8"))

    def save(self, checkpoint: Checkpoint, state: TrainingState, *, is_best: bool) -> None:
        """Write a checkpoint, point latest.json and perhaps best.json to it, drop those no longer needed."""
        facts = {
            "format_version": FORMAT_VERSION,
            "recipe": checkpoint.recipe.model_dump(mode="json"),
            "class_names": checkpoint.class_names,
            "preprocessing": checkpoint.preprocessing.model_dump(mode="json"),
            "step": checkpoint.step,
            "epoch": checkpoint.epoch,
            "validation_accuracy": checkpoint.validation_accuracy,
            "training": {"history": state.history, "gradient_scale": state.gradient_scale},
        }
        contents = {
            "model.safetensors": bytes_from_tensors(_storable(checkpoint.weights)),
            "optimizer.safetensors": bytes_from_tensors(_storable(state.tensors)),
            "state.json": (json.dumps(facts, indent=2) + "\n").encode(),
        }
        with new_folder(self.checkpoints / checkpoint.name) as partial:
            for name, data in contents.items():
                write_file(partial / name, data)
            manifest = {name: _describe(data) for name, data in contents.items()}
            write_file(partial / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        pointer = {"checkpoint": checkpoint.name, "validation_accuracy": checkpoint.validation_accuracy}
        for which in ("latest", "best") if is_best else ("latest",):
            write_file(self.path / f"{which}.json", json.dumps(pointer) + "\n")
        self._drop_old()

    def load(self, which: Which | None = None) -> Checkpoint:
        """The best checkpoint (or, where nothing was held out to choose by, the latest), verified."""
        return _read_checkpoint(self.checkpoints / self._pointed(which or self.chosen))

    @property
    def chosen(self) -> Which:
        """Which checkpoint the run's result speaks of."""
        return "best" if (self.path / "best.json").is_file() else "latest"

    def load_to_resume(self) -> tuple[Checkpoint, TrainingState, list[str]]:
        """The newest checkpoint that verifies, and what is wrong with newer ones that had to be passed over."""
        remove_partial(self.path)
        remove_partial(self.checkpoints)
        problems: list[str] = []
        for folder in sorted(self.checkpoints.glob("step-*"), reverse=True):
            try:
                return _read_checkpoint(folder), _read_training_state(folder), problems
            except CheckpointError as error:
                problems.append(str(error))
        reasons = "".join(f"\n  {problem}" for problem in problems)
        raise CheckpointError(
            f"{self.path} has no checkpoint to go on from. Use another --out, and train from the start.{reasons}"
        )

    def record_test_look(self, checkpoint: str, images: int, accuracy: float, command: str) -> None:
        """Note that the test split was looked at."""
        look = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "checkpoint": checkpoint,
            "images": images,
            "accuracy": accuracy,
            "command": command,
        }
        append_line(self.path / "test_looks.jsonl", json.dumps(look))

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
            shutil.rmtree(self.checkpoints / name)


def build_network(recipe: Recipe, num_classes: int) -> nn.Module:
    """A resolved recipe's network on the CPU, in its memory format, initialised from the recipe's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        model = build_model(
            recipe.model.name,
            num_classes=num_classes,
            in_channels=recipe.data.channels,
            image_size=recipe.data.image_size,
            dropout=recipe.model.dropout,
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


def refuse_existing(path: Path) -> None:
    """Raise an InputError where a new run would land on something that is there."""
    if path.exists():
        raise InputError(f"{path} exists; a run never overwrites another. Give another --out, or go on with --resume.")


def _read_checkpoint(folder: Path) -> Checkpoint:
    facts = _read_facts(folder)
    try:
        return Checkpoint(
            weights=_read_tensors(folder, "model.safetensors"),
            recipe=Recipe.from_mapping(facts["recipe"]),
            class_names=tuple(facts["class_names"]),
            preprocessing=Preprocessing.model_validate(facts["preprocessing"]),
            step=facts["step"],
            epoch=facts["epoch"],
            validation_accuracy=facts["validation_accuracy"],
        )
    except (KeyError, TypeError, ValueError, RecipeError) as error:
        raise CheckpointError(
            f"{folder / 'state.json'} does not describe a checkpoint of this version ({error}). "
            "Use the candid version that wrote it."
        ) from None


def _read_training_state(folder: Path) -> TrainingState:
    training = _read_facts(folder)["training"]
    return TrainingState(
        tensors=_read_tensors(folder, "optimizer.safetensors"),
        history=training["history"],
        gradient_scale=training["gradient_scale"],
    )


def _read_facts(folder: Path) -> dict[str, Any]:
    facts = json.loads(_read_verified(folder, "state.json"))
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format version {version}; expected version {FORMAT_VERSION}. Install a newer candid."
        )
    return facts


def _read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    return tensors_from_bytes(_read_verified(folder, name))


def _read_verified(folder: Path, name: str) -> bytes:
    """The bytes of a file, after its size and SHA-256 were found to be those of the manifest."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        expected = manifest[name]
        data = (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing. Use a good copy of the run, or train it again.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{folder / 'manifest.json'} is damaged. Use a good copy of the run, or train it again."
        ) from None
    if _describe(data) != expected:
        raise CheckpointError(
            f"{folder / name} is not what was saved (its SHA-256 differs). "
            "Use a good copy of the run, or train it again."
        )
    return data


def _describe(data: bytes) -> dict[str, object]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU and contiguous, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
