"""Wrong labels: of those that are planted among the training pictures of Fashion-MNIST, how many `candid audit` finds.

Run: python -m benchmarks.audit
"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.measuring import describe_machine
from candid.audit import Suspect, audit
from candid.data.catalog import open_data_set
from candid.data.examples import StoredExamples
from candid.recipe import Recipe
from candid.training.progress import Reporter
from candid.words import duration, percent

DATA, MODEL, EPOCHS, FOLDS = "fashion-mnist", "lenet-relu", 5, 4
SHARE, PRECISION, RECALL = 0.05, 0.7, 0.7


def main() -> None:
    """Print what was planted, what was found, and at what precision."""
    data_set = open_data_set(DATA)
    examples = data_set.openers["train"]()
    assert isinstance(examples, StoredExamples)
    labels, is_planted = plant(examples.labels, len(data_set.class_names), SHARE)
    planted = replace(data_set, openers={"train": lambda: replace(examples, labels=labels)})
    recipe = Recipe().replace({"data.name": DATA, "model.name": MODEL, "training.epochs": EPOCHS})
    print(
        f"{int(is_planted.sum()):,} of {len(labels):,} labels of {DATA} changed at random; {MODEL}, {EPOCHS} epochs, "
        f"{FOLDS} folds\n{describe_machine()}",
        flush=True,
    )
    began_at_s = time.perf_counter()
    with TemporaryDirectory() as folder:
        suspects = audit(recipe, Path(folder) / "audit", FOLDS, data_set=planted, reporter=Reporter.silent())
    precision, recall, number = measure(suspects, is_planted)
    whole = sum(bool(is_planted[suspect.position]) for suspect in suspects)
    print(
        f"  first {number:,} of {len(suspects):,} suspects: precision {percent(precision)}, {percent(recall)} of what "
        f"was planted, bar {percent(RECALL)} at {percent(PRECISION)}\n"
        f"  all suspects: precision {percent(whole / len(suspects))}, {percent(whole / int(is_planted.sum()))}\n"
        f"  {duration(time.perf_counter() - began_at_s)}"
    )


def plant(labels: Tensor, num_classes: int, share: float) -> tuple[Tensor, Tensor]:
    """Labels [N] of which a share, chosen by chance, are those of another class; and which ones, bool [N]."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    changed, is_planted = labels.clone(), torch.zeros(len(labels), dtype=torch.bool)
    shift = torch.randint(1, num_classes, (len(chosen),), generator=generator)
    changed[chosen], is_planted[chosen] = (labels[chosen] + shift) % num_classes, True
    return changed, is_planted


def measure(suspects: list[Suspect], is_planted: Tensor) -> tuple[float, float, int]:
    """Precision, recall and length of the longest beginning of the list with at least the wanted precision."""
    hits = is_planted[[suspect.position for suspect in suspects]].cumsum(0)
    good = torch.nonzero(hits >= PRECISION * torch.arange(1, len(hits) + 1)).flatten()
    if not len(good):
        return 0.0, 0.0, 0
    number = int(good[-1]) + 1
    found = int(hits[number - 1])
    return found / number, found / int(is_planted.sum()), number


if __name__ == "__main__":
    main()
