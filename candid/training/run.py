"""A run from recipe to result: train, validate and save each epoch, then look at the test split once."""

import math
import time
from pathlib import Path
from typing import Any

import torch

from candid.checkpoint import Checkpoint, RunFolder, TrainingState, refuse_existing
from candid.data.catalog import open_data_set
from candid.data.examples import DataSet
from candid.data.loading import EvaluationBatches, TrainingBatches, TrainingData, open_training_data
from candid.device import choose_device, describe_device, peak_memory_mib
from candid.durable import write_file
from candid.errors import CandidError, CheckpointError, DataError, InputError
from candid.evaluation import Evaluation, evaluate_model
from candid.recipe import Recipe
from candid.training.loop import Trainer, train_one_epoch
from candid.training.progress import Reporter, table_text
from candid.training.result import finish_run
from candid.training.setup import describe_environment, hash_examples, load_start, resolve_recipe
from candid.weights import Loaded


def train_run(
    recipe: Recipe, out: Path, *, data_dir: Path | None = None, device: str = "auto", reporter: Reporter
) -> RunFolder:
    """Train `recipe` into the new run folder `out`, and look at the test split once at the end."""
    refuse_existing(out)
    chosen_device = choose_device(device)
    data_set = open_data_set(recipe.data.name, data_dir)
    recipe = resolve_recipe(recipe, data_set, chosen_device)
    data = open_training_data(data_set, recipe)
    start = load_start(recipe, len(data_set.class_names))
    environment = describe_environment(chosen_device, data.train) | {"weights_sha256": _sha256(start)}
    run = RunFolder.create(out, recipe, environment)
    session = _Session(run, recipe, data_set, data, chosen_device, reporter)
    session.begin(start)
    session.train()
    return run


def resume_run(out: Path, *, data_dir: Path | None = None, device: str = "auto", reporter: Reporter) -> RunFolder:
    """Go on with the run in `out` from its newest good checkpoint."""
    run = RunFolder.open(out)
    if (out / "result.json").is_file():
        raise InputError(
            f"{out} is finished; there is nothing to resume. "
            f"Use another --out to train again; `candid report {out}` shows it."
        )
    recipe, chosen_device = run.recipe, choose_device(device)
    data_set = open_data_set(recipe.data.name, data_dir)
    data = open_training_data(data_set, recipe)
    if hash_examples(data.train) != run.environment["training_data_sha256"]:
        raise DataError(
            f"The training pictures of {data_set.name} are not those that {out} began with; expected the same ones. "
            "Bring them back, or train a new run with another --out."
        )
    session = _Session(run, recipe, data_set, data, chosen_device, reporter)
    if any(run.checkpoints.glob("step-*")):
        session.restore()
    else:
        start = load_start(recipe, len(data_set.class_names))
        if _sha256(start) != run.environment.get("weights_sha256"):
            raise CheckpointError(
                f"{recipe.model.weights} is not the file that {out} began with (its SHA-256 differs); expected the "
                "same weights. Bring them back, or train a new run with another --out."
            )
        session.begin(start)
    session.train()
    return run


def _sha256(start: Loaded | None) -> str | None:
    return None if start is None else start.report.sha256


class _Session:
    """One process's work on a run."""

    def __init__(
        self,
        run: RunFolder,
        recipe: Recipe,
        data_set: DataSet,
        data: TrainingData,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        self.run, self.recipe, self.data_set, self.data = run, recipe, data_set, data
        self.device, self.reporter = device, reporter
        num_classes = len(data_set.class_names)
        self.batches = TrainingBatches(data, recipe, num_classes, device)
        self.trainer = Trainer(recipe, num_classes, self.batches.steps_per_epoch, device)
        self.history: list[dict[str, Any]] = []
        self._announce()

    def begin(self, start: Loaded | None) -> None:
        """Begin from weights, and say what they are; from random ones where there are none."""
        if start is not None:
            self.trainer.begin(start.state)
            self.reporter.say(start.report.text())

    def restore(self) -> None:
        """Go to where the newest good checkpoint stands."""
        checkpoint, state, problems = self.run.load_to_resume()
        for problem in problems:
            self.reporter.say(f"Passed over: {problem}")
        self.trainer.restore(checkpoint, state)
        self.history = state.history
        self.reporter.say(f"Resumed after epoch {checkpoint.epoch} (step {checkpoint.step}).")

    def train(self) -> None:
        """The remaining epochs, then the result."""
        epochs, first = self.recipe.training.epochs, len(self.history)
        with self.reporter.watch(epochs, first, self.batches.num_examples):
            for epoch in range(first, epochs):
                self._train_epoch(epoch)
        self.reporter.say(finish_run(self.run, self.data_set, self.data.validation, self.device, self.history))

    def _train_epoch(self, epoch: int) -> None:
        started_at_s = time.perf_counter()
        losses = [row["train_loss"] for row in self.history]
        tally = train_one_epoch(self.trainer, self.batches.epoch(epoch), losses, self.reporter)
        seconds = time.perf_counter() - started_at_s
        train_loss = float(tally.loss) / tally.images
        if not math.isfinite(train_loss):
            raise CandidError(
                f"Training diverged in epoch {epoch + 1}: the loss is {train_loss}. Nothing of this epoch was "
                f"saved. Lower optimizer.rate (now {self.recipe.optimizer.rate:g}), or set schedule.warmup."
            )
        validation = self._validate()
        row = {
            "epoch": epoch + 1,
            "step": self.trainer.step,
            "images": tally.images,
            "learning_rate": self.trainer.schedule.rate(self.trainer.step - 1, losses),
            "train_loss": train_loss,
            "train_accuracy": int(tally.correct) / tally.images,
            "validation_loss": None if validation is None else validation.loss,
            "validation_accuracy": None if validation is None else validation.accuracy,
            "seconds": round(seconds, 3),
            "images_per_second": round(tally.images / seconds, 1),
            "peak_memory_mib": round(peak_memory_mib(self.device), 1),
        }
        self._save(row)
        self.reporter.epoch_line(row)

    def _validate(self) -> Evaluation | None:
        if self.data.validation is None:
            return None
        batches = EvaluationBatches(self.data.validation, self.data.preprocessing, self.device)
        return evaluate_model(self.trainer.evaluated_model, batches, self.data_set.class_names, "validation")

    def _save(self, row: dict[str, Any]) -> None:
        accuracy = row["validation_accuracy"]
        earlier = [past["validation_accuracy"] for past in self.history]
        self.history.append(row)
        checkpoint = Checkpoint(
            weights=self.trainer.evaluated_model.state_dict(),
            recipe=self.recipe,
            class_names=self.data_set.class_names,
            preprocessing=self.data.preprocessing,
            step=self.trainer.step,
            epoch=row["epoch"],
            validation_accuracy=accuracy,
        )
        scale = self.trainer.scaler.get_scale() if self.trainer.scaler.is_enabled() else None
        state = TrainingState(self.trainer.state_tensors(), self.history, scale)
        is_best = accuracy is not None and all(accuracy > past for past in earlier)
        self.run.save(checkpoint, state, is_best=is_best)
        write_file(self.run.path / "results.csv", table_text(self.history))

    def _announce(self) -> None:
        """Say what is about to be trained, on what, and where."""
        parameters = sum(parameter.numel() for parameter in self.trainer.model.parameters())
        validation = 0 if self.data.validation is None else len(self.data.validation)
        self.reporter.say(
            f"{self.recipe.model.name} ({parameters:,} parameters) on {self.recipe.data.name}: "
            f"{len(self.data.train):,} pictures to train, {validation:,} to validate, "
            f"{len(self.data_set.class_names)} classes, {self.recipe.data.image_size} px"
        )
        self.reporter.say(
            f"{describe_device(self.device)}, {self.recipe.training.precision}, "
            f"{self.recipe.training.memory_format}; run folder {self.run.path}"
        )
