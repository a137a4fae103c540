"""What a run keeps of its data for the report: how many pictures of each class, and some as the network saw them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import torch

from candid.data.decoding import read_size, to_image
from candid.data.examples import DataSet, Examples, FileExamples, StoredExamples, pick_evenly
from candid.data.loading import Batch, TrainingData
from candid.durable import new_folder, write_file

NUM_SEEN, NUM_MEASURED = 24, 500
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
    inputs = batch.inputs[:NUM_SEEN]
    indices = batch.indices[: len(inputs)].tolist()  # of a rank's part, it has the first ones
    with new_folder(folder) as partial:
        seen = [
            {"file": data.train.files[index], "class": class_names[int(data.train.labels[index])]} for index in indices
        ]
        write_file(partial / "pictures.json", json.dumps(seen, indent=2) + "\n")
        for position, pixels in enumerate(data.preprocessing.as_pixels(inputs)):
            to_image(pixels).save(partial / f"{position}.png")


def write_summary(data: TrainingData, data_set: DataSet, run: Path) -> None:
    """Write data.json: what there is to learn from and to validate on."""
    splits = _splits(data)
    summary = {
        "classes": list(data_set.class_names),
        "images": {
            name: torch.bincount(examples.labels, minlength=len(data_set.class_names)).tolist()
            for name, examples in splits.items()
        },
        "sizes": measure_sizes(data_set),
        "copies": count_copies(splits),
    }
    write_file(run / SUMMARY, json.dumps(summary, indent=2) + "\n")


def measure_sizes(data_set: DataSet) -> dict[str, object] | None:
    """Least, median and greatest height and width in px of some training pictures; None where no file has a size."""
    examples = None if data_set.image_size is not None else data_set.openers["train"]()
    if not isinstance(examples, FileExamples):
        return None
    sample = pick_evenly(examples, NUM_MEASURED)
    sizes = [size for file in sample.files if (size := read_size(examples.root / file)) is not None]
    if not sizes:
        return None
    heights, widths = (sorted(lengths) for lengths in zip(*sizes, strict=True))
    return {"images": len(sizes), "heights_px": _span(heights), "widths_px": _span(widths)}


def count_copies(splits: Mapping[str, Examples]) -> dict[str, int] | None:
    """Of each split, how many pictures equal another one to learn from in every pixel; None where they are on disk.

    Of several that are equal among themselves, one is no copy.
    """
    digests: dict[str, list[bytes]] = {}
    for name, examples in splits.items():
        if not isinstance(examples, StoredExamples):
            return None
        digests[name] = [blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in examples.images]
    learned = set(digests["train"])
    return {
        name: len(found) - len(learned) if name == "train" else sum(digest in learned for digest in found)
        for name, found in digests.items()
    }


def _splits(data: TrainingData) -> dict[str, Examples]:
    return {"train": data.train} | ({} if data.validation is None else {"validation": data.validation})


def _span(lengths: Sequence[int]) -> list[int]:
    return [lengths[0], lengths[len(lengths) // 2], lengths[-1]]
