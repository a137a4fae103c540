"""candid with automatic settings, as the benchmarks run it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.usual import MEAN, STD
from candid.data.examples import DataSet, StoredExamples
from candid.data.loading import Batch, TrainingBatches, TrainingData
from candid.data.preprocessing import Preprocessing
from candid.models import find_variant
from candid.recipe import Recipe
from candid.training.loop import Trainer, train_one_epoch
from candid.training.progress import Reporter
from candid.training.setup import resolve_recipe

CPU, NUM_CLASSES = torch.device("cpu"), 10
VARIATIONS = {"augmentation.crop_padding": 4, "augmentation.mirror": True}


def automatic_recipe(model: str, batch_size: int, side_px: int = 32) -> Recipe:
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
    return resolve_recipe(wanted, DataSet("noise", class_names, 3, side_px, openers={}), CPU)


def describe(recipe: Recipe) -> str:
    """The settings that were chosen, such as "bf16, channels-last"."""
    training = recipe.training
    memory = [training.memory] if find_variant(recipe.model.name).has_dense_block else []
    return ", ".join([training.precision, training.memory_format, *memory, *["compiled"] * bool(training.compile)])


def as_data(images: Tensor, labels: Tensor) -> TrainingData:
    """Pictures uint8 [N, 3, side, side] as candid holds them, with nothing to validate on."""
    examples = StoredExamples(images, labels, tuple(map(str, range(len(labels)))))
    preprocessing = Preprocessing(image_size=images.shape[-1], channels=3, fit="crop", mean=MEAN, std=STD)
    return TrainingData(examples, None, preprocessing)


@dataclass
class Epoch:
    """An epoch of candid's own loop, loading included, over pictures in memory."""

    trainer: Trainer
    batches: TrainingBatches

    def __call__(self) -> None:
        """Train through it once."""
        self.train(self.batches.epoch(0))

    def train(self, batches: Iterable[Batch]) -> None:
        """Train with batches of it; layers that are left out by chance are the same ones each time."""
        self.trainer.step = 0
        train_one_epoch(self.trainer, batches, [], Reporter.silent().advance)


def automatic_epoch(recipe: Recipe, data: TrainingData) -> Epoch:
    """The epoch of a recipe."""
    batches = TrainingBatches(data, recipe, NUM_CLASSES, CPU)
    return Epoch(Trainer(recipe, NUM_CLASSES, batches.steps_per_epoch, CPU), batches)
