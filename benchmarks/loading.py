"""Images per second of in-memory loading with pad-and-crop, mirror and normalisation, against the usual script.

Run: python -m benchmarks.loading
"""

import torch

from benchmarks.measuring import describe_machine, fastest
from benchmarks.usual import MEAN, STD, random_cifar, usual_loader
from candid.data.examples import StoredExamples
from candid.data.loading import TrainingBatches, TrainingData
from candid.data.preprocessing import Preprocessing
from candid.recipe import Recipe

NUM_IMAGES, BATCH_SIZE, ROUNDS = 20_000, 128, 5
VARIATIONS = {"augmentation.crop_padding": 4, "augmentation.mirror": True}


def candid_batches(images: torch.Tensor, labels: torch.Tensor, batch_size: int = BATCH_SIZE) -> TrainingBatches:
    """candid's batches of the same pictures with the same variations."""
    recipe = Recipe().replace({**VARIATIONS, "training.batch_size": batch_size})
    return TrainingBatches(candid_data(images, labels), recipe, 10, torch.device("cpu"))


def candid_data(images: torch.Tensor, labels: torch.Tensor) -> TrainingData:
    """The pictures as candid holds them, with nothing to validate on."""
    examples = StoredExamples(images, labels, tuple(map(str, range(len(labels)))))
    preprocessing = Preprocessing(image_size=32, channels=3, fit="crop", mean=MEAN, std=STD)
    return TrainingData(examples, None, preprocessing)


def main() -> None:
    """Print the table."""
    images, labels = random_cifar(NUM_IMAGES)
    batches = candid_batches(images, labels)
    loaders = {workers: usual_loader(images, labels, BATCH_SIZE, workers) for workers in (0, 2)}
    seconds = fastest(
        {
            "candid": lambda: consume(batches.epoch(0)),
            "torchvision + DataLoader, 0 workers": lambda: consume(loaders[0]),
            "torchvision + DataLoader, 2 workers": lambda: consume(loaders[2]),
        },
        ROUNDS,
    )
    print(f"Loading {NUM_IMAGES:,} pictures of 32x32, batches of {BATCH_SIZE}; fastest of {ROUNDS} rounds")
    print(describe_machine())
    for name, duration_s in seconds.items():
        print(
            f"  {name:<38} {NUM_IMAGES / duration_s:>10,.0f} images/s  {duration_s / seconds['candid']:6.1f}x the time"
        )


def consume(batches: object) -> None:
    """Fetch every batch and do nothing with it."""
    for _ in batches:  # pyright: ignore[reportGeneralTypeIssues]
        pass


if __name__ == "__main__":
    main()
