"""What a run keeps of its data for the report: how many pictures of each class, and some as the network saw them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from candid.data.decoding import to_image
from candid.data.loading import Batch, TrainingData
from candid.data.preprocessing import Preprocessing
from candid.durable import new_folder, write_file

NUM_SEEN = 24
SEEN, SUMMARY = "training-pictures", "data.json"


def keep_first_pictures(
    batches: Iterable[Batch], data: TrainingData, class_names: Sequence[str], run: Path
) -> Iterator[Batch]:
    """The same batches; some pictures of the first one, after all variations, go to the run's training-pictures."""
    for number, batch in enumerate(batches):
        if number == 0:
            _save(batch, data, class_names, run / SEEN)
        yield batch


def _save(batch: Batch, data: TrainingData, class_names: Sequence[str], folder: Path) -> None:
    inputs = batch.inputs[:NUM_SEEN].detach().cpu()
    indices = batch.indices[: len(inputs)].tolist()  # of a rank's part, it has the first ones
    with new_folder(folder) as partial:
        seen = [
            {"file": data.train.files[index], "class": class_names[int(data.train.labels[index])]} for index in indices
        ]
        write_file(partial / "pictures.json", json.dumps(seen, indent=2) + "\n")
        for position, pixels in enumerate(as_pixels(inputs, data.preprocessing)):
            to_image(pixels).save(partial / f"{position}.png")


def as_pixels(inputs: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """The pictures uint8 [N, C, H, W] of a network's inputs: `Preprocessing.normalise` undone."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return ((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def write_summary(data: TrainingData, class_names: Sequence[str], run: Path) -> None:
    """Write data.json: for the training and the validation split, the number of pictures of each class."""
    splits = {"train": data.train, "validation": data.validation}
    counts = {
        name: torch.bincount(examples.labels, minlength=len(class_names)).tolist()
        for name, examples in splits.items()
        if examples is not None
    }
    write_file(run / SUMMARY, json.dumps({"classes": list(class_names), "images": counts}, indent=2) + "\n")
