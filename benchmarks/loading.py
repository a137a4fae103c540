"""Images per second of in-memory loading with pad-and-crop, mirror and normalisation, against the usual script.

Run: python -m benchmarks.loading
"""

from benchmarks.automatic import CPU, VARIATIONS, as_data
from benchmarks.measuring import describe_machine, fastest
from benchmarks.usual import random_cifar, usual_loader
from candid.data.loading import TrainingBatches
from candid.recipe import Recipe

NUM_IMAGES, BATCH_SIZE, ROUNDS = 12_800, 128, 3


def main() -> None:
    """Print the table."""
    images, labels = random_cifar(NUM_IMAGES)
    recipe = Recipe().replace({**VARIATIONS, "data.image_size": 32, "training.batch_size": BATCH_SIZE})
    batches = TrainingBatches(as_data(images, labels), recipe, 10, CPU)
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
