"""candid with automatic settings, as the benchmarks run it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.usual import MEAN, STD, random_cifar
from candid.data.catalog import open_data_set
from candid.data.examples import DataSet, StoredExamples
from candid.data.loading import Batch, TrainingBatches, TrainingData, open_training_data
from candid.data.preprocessing import Preprocessing
from candid.device import keep_freed_memory
from candid.models import find_variant
from candid.recipe import Recipe
from candid.training.loop import Trainer, train_one_epoch
from candid.training.progress import Reporter
from candid.training.setup import resolve_recipe, use_settings
from candid.training.stopwatch import undisturbed
from candid.training.tuning import Effort, tune

CPU, NUM_CLASSES = torch.device("cpu"), 10
VARIATIONS = {"augmentation.crop_padding": 4, "augmentation.mirror": True}


def automatic_recipe(
    model: str, batch_size: int, side_px: int = 32, *, effort: Effort = "off", budget_s: float | None = None
) -> Recipe:
    """The network as candid trains it when nothing is asked for, with pad-and-crop and mirror."""
    wanted = Recipe().replace(
        {
            **VARIATIONS,
            "model.name": model,
            "data.validation": 0.0,
            "training.batch_size": batch_size,
            "optimizer.rate": 1e-3,  # low, so that no network's loss leaves the numbers
            "optimizer.nesterov": True,
            "optimizer.weight_decay": 5e-4,
        }
    )
    class_names = tuple(f"class{index}" for index in range(NUM_CLASSES))
    recipe = resolve_recipe(wanted, DataSet("noise", class_names, 3, side_px, openers={}), CPU)
    if effort == "off":
        return recipe
    return tune(recipe, wanted, NUM_CLASSES, CPU, effort=effort, budget_s=budget_s).recipe


def describe(recipe: Recipe) -> str:
    """The settings that were chosen, such as "bf16, channels-last"."""
    training = recipe.training
    memory = [training.memory] if find_variant(recipe.model.name).has_dense_block else []
    threads = ["1 thread"] * (training.threads == 1 < torch.get_num_threads())
    compiled = ["compiled"] * bool(training.compile)
    return ", ".join([training.precision, training.memory_format, *memory, *threads, *compiled])


def as_data(images: Tensor, labels: Tensor) -> TrainingData:
    """Pictures uint8 [N, 3, side, side] as candid holds them, with nothing to validate on."""
    examples = StoredExamples(images, labels, tuple(map(str, range(len(labels)))))
    preprocessing = Preprocessing(image_size=images.shape[-1], channels=3, fit="crop", mean=MEAN, std=STD)
    return TrainingData(examples, None, preprocessing)


@dataclass(frozen=True)
class Outcome:
    """What an epoch tells of itself."""

    settings: str
    waited_percent: float
    """The share of it that passed while its loop waited for a batch."""


@dataclass
class Epoch:
    """An epoch of candid's own loop, loading included."""

    trainer: Trainer
    batches: TrainingBatches

    def __call__(self) -> Outcome:
        """Train through it once, with the recipe's threads."""
        waited_before_s, began_at_s = self.batches.waited_s, time.perf_counter()
        with undisturbed(CPU):
            use_settings(self.trainer.recipe, CPU)
            self.train(self.batches.epoch(0))
        waited_s = self.batches.waited_s - waited_before_s
        return Outcome(describe(self.trainer.recipe), 100 * waited_s / (time.perf_counter() - began_at_s))

    def train(self, batches: Iterable[Batch]) -> None:
        """Train with batches of it; layers that are left out by chance are the same ones each time."""
        self.trainer.step = 0
        train_one_epoch(self.trainer, batches, [], Reporter.silent().advance)


def automatic_epoch(recipe: Recipe, data: TrainingData) -> Epoch:
    """The epoch of a recipe."""
    batches = TrainingBatches(data, recipe, NUM_CLASSES, CPU)
    return Epoch(Trainer(recipe, NUM_CLASSES, batches.steps_per_epoch, CPU), batches)


def measured_epoch(
    model: str, batch_size: int, steps: int, folder: Path | None = None, *, budget_s: float | None = None
) -> Epoch:
    """An epoch as a run of candid has it, settings measured: of so many steps on noise, or of a folder's pictures.

    Measuring takes at most `budget_s`, None for what a run takes.
    """
    keep_freed_memory()
    recipe = automatic_recipe(model, batch_size, effort="quick", budget_s=budget_s)
    if folder is None:
        return automatic_epoch(recipe, as_data(*random_cifar(batch_size * steps)))
    recipe = recipe.replace({"data.name": str(folder)})
    return automatic_epoch(recipe, open_training_data(open_data_set(str(folder)), recipe))
