"""Training throughput of ResNet-18 (CIFAR form), batch 128, loading included, against the usual script.

Run: python -m benchmarks.training
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from benchmarks.loading import candid_batches
from benchmarks.measuring import describe_machine, fastest
from benchmarks.usual import random_cifar, usual_loader
from candid.device import choose_memory_format, choose_precision
from candid.models import build_model
from candid.recipe import Recipe
from candid.training.loop import Trainer, train_one_epoch
from candid.training.progress import Reporter

MODEL, BATCH_SIZE, STEPS, ROUNDS = "resnet18-cifar", 128, 6, 4
CPU = torch.device("cpu")


def main() -> None:
    """Print the table."""
    images, labels = random_cifar(BATCH_SIZE * STEPS)
    trainer = Trainer(automatic_recipe(), 10, STEPS, CPU)
    batches, silent = candid_batches(images, labels, BATCH_SIZE), Reporter.silent()
    usual = usual_script(usual_loader(images, labels, BATCH_SIZE, workers=2))
    seconds = fastest(
        {
            f"candid ({trainer.recipe.training.precision}, {trainer.recipe.training.memory_format})": lambda: (
                train_one_epoch(trainer, batches.epoch(0), [], silent.advance)
            ),
            "the usual script (fp32, NCHW)": usual,
        },
        ROUNDS,
    )
    print(f"Training {MODEL}, {STEPS} steps of {BATCH_SIZE} with loading; fastest of {ROUNDS} rounds")
    print(describe_machine())
    fastest_s = min(seconds.values())
    for name, duration_s in seconds.items():
        print(f"  {name:<38} {len(images) / duration_s:>8,.0f} images/s  {duration_s / fastest_s:6.2f}x the time")


def automatic_recipe() -> Recipe:
    """The network as candid trains it when nothing is asked for."""
    return Recipe().replace(
        {
            "model.name": MODEL,
            "data.image_size": 32,
            "data.channels": 3,
            "training.batch_size": BATCH_SIZE,
            "training.memory_format": choose_memory_format("auto"),
            "training.precision": choose_precision("auto", CPU, build_model(MODEL, 10)),
            "optimizer.nesterov": True,
            "optimizer.weight_decay": 5e-4,
        }
    )


def usual_script(loader: DataLoader[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """The same network and optimizer, as the usual script trains them."""
    model = build_model(MODEL, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def epoch() -> None:
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()

    return epoch


if __name__ == "__main__":
    main()
