"""An evaluation in a folder: figures, tables and the pictures that a report shows, written once and read again."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from candid.data.decoding import decode_file, to_image
from candid.data.examples import Examples, StoredExamples
from candid.durable import new_folder, write_file
from candid.errors import DataError
from candid.evaluation import NUM_TOP, Evaluation

PICTURES, EXPLAINED = "pictures", "explained"
"""Folders of `<position>.png`: thumbnails, and what speaks for the most confident mistakes."""
THUMBNAIL_SIDE_PX = 112


def save_evaluation(
    evaluation: Evaluation,
    folder: Path,
    examples: Examples,
    provenance: Mapping[str, object],
    explained: Mapping[int, Tensor] | None = None,
) -> None:
    """Write summary.json, predictions.csv, per_class.csv, confusion.csv and the pictures a report shows.

    `examples` are those that were evaluated; `provenance` (checkpoint, data set) joins the summary, as do the files
    that were left out; `explained` are pictures uint8 [3, side, side] by position. The folder appears complete or not
    at all.
    """
    names = evaluation.class_names
    with new_folder(folder) as partial:
        summary = {**evaluation.summary(), **provenance, "unreadable": examples.unreadable}
        write_file(partial / "summary.json", json.dumps(summary, indent=2) + "\n")
        write_table(partial / "predictions.csv", _prediction_rows(evaluation))
        write_table(partial / "per_class.csv", _per_class_rows(evaluation))
        confusion = [[name, *row] for name, row in zip(names, evaluation.confusion.tolist(), strict=True)]
        write_table(partial / "confusion.csv", [["truth", *names], *confusion])
        (partial / PICTURES).mkdir()
        for position in evaluation.shown():
            make_thumbnail(examples, position).save(partial / PICTURES / f"{position}.png")
        (partial / EXPLAINED).mkdir()
        for position, pixels in (explained or {}).items():
            to_image(pixels).save(partial / EXPLAINED / f"{position}.png")


def load_evaluation(folder: Path) -> Evaluation:
    """The evaluation that `save_evaluation` wrote.

    Raises:
        DataError: if it is not there, or not whole.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"{folder} holds no complete evaluation ({error}). Run `candid evaluate {folder.parent}`."
        ) from None
    class_names = tuple(summary["class_names"])
    index = {name: position for position, name in enumerate(class_names)}
    ranks = range(1, min(NUM_TOP, len(class_names)) + 1)
    return Evaluation(
        split=summary["split"],
        class_names=class_names,
        files=tuple(row["file"] for row in rows),
        labels=torch.tensor([index[row["truth"]] for row in rows]),
        top_classes=torch.tensor([[index[row[f"class_{k}"]] for k in ranks] for row in rows]),
        top_probabilities=torch.tensor([[float(row[f"probability_{k}"]) for k in ranks] for row in rows]),
        loss=summary["loss"],
        temperature=summary.get("temperature", 1.0),  # older runs have none
    )


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Rows as a CSV file, the headings first."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def make_thumbnail(examples: Examples, position: int) -> Image.Image:
    """One of the examples as a small picture."""
    if isinstance(examples, StoredExamples):
        pixels = examples.images[position]
    else:
        pixels = decode_file(examples.root / examples.files[position], 3)
    image = to_image(pixels)
    image.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX))
    return image


def _prediction_rows(evaluation: Evaluation) -> list[list[object]]:
    names, ranks = evaluation.class_names, range(1, evaluation.top_classes.shape[1] + 1)
    header: list[object] = ["file", "truth", "correct"]
    header += [column for k in ranks for column in (f"class_{k}", f"probability_{k}")]
    rows = [header]
    for file, label, classes, probabilities in zip(
        evaluation.files,
        evaluation.labels.tolist(),
        evaluation.top_classes.tolist(),
        evaluation.top_probabilities.tolist(),
        strict=True,
    ):
        row: list[object] = [file, names[label], int(classes[0] == label)]
        for k, probability in zip(classes, probabilities, strict=True):
            row += [names[k], f"{probability:.6f}"]
        rows.append(row)
    return rows


def _per_class_rows(evaluation: Evaluation) -> list[list[object]]:
    header: list[object] = ["class_name", "images", "accuracy"]
    header += [name + end for name in ("precision", "recall", "f1") for end in ("", "_low", "_high")]
    rows = [header]
    for s in evaluation.per_class():
        row: list[object] = [s.class_name, s.images, f"{s.recall:.6f}"]
        for value, bounds in (
            (s.precision, s.precision_interval),
            (s.recall, s.recall_interval),
            (s.f1, s.f1_interval),
        ):
            row += [f"{number:.6f}" for number in (value, *(bounds or (math.nan, math.nan)))]
        rows.append(row)
    return rows
