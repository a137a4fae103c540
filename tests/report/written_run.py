"""A run folder written by hand, and its page taken apart."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import torch

from candid.data.examples import StoredExamples
from candid.evaluation import Evaluation
from candid.kept_evaluation import save_evaluation
from candid.recipe import Recipe
from candid.report.page import render_page
from candid.report.pictures import gather_pictures
from candid.report.reading import read_run

ODD_NAMES = ("<script>alert(1)</script>", "猫", "$\\frac")
RESULT = {
    "test_accuracy": 0.75,
    "test_accuracy_interval": [0.4677, 0.9111],
    "test_images": 12,
    "validation_accuracy": 0.8,
    "best_step": 20,
    "best_epoch": 2,
    "last_test_accuracy": 0.5,
    "steps": 30,
    "train_seconds": 133.2,
    "images_per_second": 4321.5,
    "peak_memory_mib": None,
}
LOOK = {
    "time": "2025-03-01T12:34:56+00:00",
    "checkpoint": "step-00000020",
    "images": 12,
    "accuracy": 0.75,
    "command": "candid train --data shapes",
}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its visible text on one line."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.html = html
        self.feed(self.html)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._part(tag)

    def handle_endtag(self, tag: str) -> None:
        self._part(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def _part(self, tag: str) -> None:
        """Words of different blocks do not run together."""
        if tag not in ("bdi", "span"):
            self.words.append(" ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def evaluate(folder: Path, class_names: tuple[str, ...], num_images: int, split: str = "test") -> Evaluation:
    """An evaluation with every fourth prediction wrong, saved in `folder`."""
    labels = torch.arange(num_images) % len(class_names)
    predictions = torch.where(torch.arange(num_images) % 4 == 3, (labels + 1) % len(class_names), labels)
    num_top = min(5, len(class_names))
    evaluation = Evaluation(
        split=split,
        class_names=class_names,
        files=tuple(f"shapes/{position}.png" for position in range(num_images)),
        labels=labels,
        top_classes=(predictions[:, None] + torch.arange(num_top)) % len(class_names),
        top_probabilities=torch.linspace(0.9, 0.02, num_top).repeat(num_images, 1),
        loss=0.6931,
    )
    pixels = torch.arange(num_images * 64, dtype=torch.int64).view(num_images, 1, 8, 8) % 256
    save_evaluation(
        evaluation, folder, StoredExamples(pixels.to(torch.uint8), labels, evaluation.files), {"data": "shapes"}
    )
    return evaluation


def write_run(run: Path, class_names: tuple[str, ...] = ODD_NAMES, num_images: int = 12) -> Path:
    """A finished run folder."""
    run.mkdir()
    evaluate(run / "evaluation-test", class_names, num_images)
    recipe = Recipe().replace({"data.name": "shapes", "model.name": "lenet", "training.epochs": 3})
    (run / "recipe.toml").write_text(recipe.to_toml())
    environment = {"device": "cpu", "versions": {"torch": "2.9"}, "git": None, "command": ["candid", "a b"]}
    (run / "environment.json").write_text(json.dumps(environment))
    write_epochs(run, validation=True)
    (run / "result.json").write_text(json.dumps(RESULT))
    (run / "test_looks.jsonl").write_text(json.dumps(LOOK) + "\n")
    return run


def write_epochs(run: Path, validation: bool) -> None:
    columns = ["epoch", "step", "learning_rate", "train_loss", "train_accuracy"]
    columns += ["validation_loss", "validation_accuracy"]
    with (run / "results.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for epoch, accuracy in ((1, 0.6), (2, 0.8), (3, 0.7)):
            measured = [1 - accuracy, accuracy] if validation else ["", ""]
            table.writerow([epoch, 10 * epoch, 0.1 / epoch, 0.5 / epoch, 0.9, *measured])


def write_result(run: Path, **changes: object) -> None:
    (run / "result.json").write_text(json.dumps(RESULT | changes))


def page_of(run: Path) -> Page:
    """The page alone, without the PNG figures, which take as long again."""
    record = read_run(run)
    return Page(render_page(record, gather_pictures(record)))
