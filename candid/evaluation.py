"""A network and examples become an Evaluation: what was predicted for each, counted without rounding.

Evaluation runs in float32 whatever the training's precision was, so that the number does not depend on what
a machine's short formats do. Sums and counts are added up over examples and divided once, at the end.
"""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from candid.checkpoint import Checkpoint, restore_network
from candid.data.decoding import decode_file
from candid.data.examples import Examples, StoredExamples
from candid.data.loading import EvaluationBatches
from candid.durable import new_folder, write_file
from candid.errors import DataError
from candid.models.fusion import fuse_norms
from candid.out_of_memory import WithinMemory
from candid.randomness import generator_for

NUM_TOP = 5
NUM_GRID_PICTURES = 64
NUM_MISTAKES_SHOWN = 24
THUMBNAIL_SIDE_PX = 112


@dataclass(frozen=True)
class ClassScores:
    """How one class fared; all shares in [0, 1], `nan` where there was nothing to divide by."""

    class_name: str
    images: int
    """Examples whose truth is this class."""
    recall: float
    """Share of the class's examples that were found: the accuracy on this class."""
    precision: float
    """Share of the predictions of this class that were right."""
    f1: float
    """Harmonic mean of precision and recall; 0 when nothing of the class was found."""


@dataclass(frozen=True)
class Evaluation:
    """What a network predicted for each example of a split, and the counts that follow from it.

    N examples in the split's order; K = min(5, classes) best classes for each.
    """

    split: str
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    """What a person calls each example, [N]."""
    labels: Tensor
    """int64 [N], the truth."""
    top_classes: Tensor
    """int64 [N, K], best first."""
    top_probabilities: Tensor
    """float32 [N, K], matching `top_classes`."""
    loss: float
    """Mean cross-entropy in nats."""

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def num_correct(self) -> int:
        """Examples whose best class is the truth."""
        return int((self.top_classes[:, 0] == self.labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of examples whose best class is the truth, in [0, 1]."""
        return self.num_correct / self.num_images

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return wilson_interval(self.num_correct, self.num_images)

    @property
    def top5_accuracy(self) -> float | None:
        """Share of examples with the truth among the best five; None where there are at most five classes."""
        if len(self.class_names) <= NUM_TOP:
            return None
        return int((self.top_classes == self.labels[:, None]).sum()) / self.num_images

    @property
    def confusion(self) -> Tensor:
        """Counts, int64 [classes, classes]; row = truth, column = prediction."""
        classes = len(self.class_names)
        pairs = self.labels * classes + self.top_classes[:, 0]
        return torch.bincount(pairs, minlength=classes * classes).view(classes, classes)

    def per_class(self) -> list[ClassScores]:
        """The scores of each class, in class order."""
        confusion = self.confusion
        found = confusion.diagonal().tolist()
        present, predicted = confusion.sum(dim=1).tolist(), confusion.sum(dim=0).tolist()
        return [
            ClassScores(
                class_name=name,
                images=present[k],
                recall=_share(found[k], present[k]),
                precision=_share(found[k], predicted[k]),
                f1=_share(2 * found[k], present[k] + predicted[k]),
            )
            for k, name in enumerate(self.class_names)
        ]

    def most_confident_mistakes(self, number: int = NUM_MISTAKES_SHOWN) -> list[int]:
        """Positions of the wrong predictions with the highest probability, worst first."""
        wrong = torch.nonzero(self.top_classes[:, 0] != self.labels).flatten()
        by_confidence = self.top_probabilities[wrong, 0].argsort(descending=True, stable=True)
        return wrong[by_confidence[:number]].tolist()

    def grid(self) -> list[int]:
        """Positions of at most 64 examples, drawn at random but always the same, ascending."""
        order = torch.randperm(self.num_images, generator=generator_for("grid", self.num_images))
        return sorted(order[:NUM_GRID_PICTURES].tolist())

    def summary(self) -> dict[str, object]:
        """The headline figures, ready for JSON."""
        return {
            "split": self.split,
            "images": self.num_images,
            "correct": self.num_correct,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "class_names": list(self.class_names),
        }

    def save(self, folder: Path, examples: Examples, provenance: dict[str, object]) -> None:
        """Write summary.json, predictions.csv, per_class.csv, confusion.csv and the pictures a report shows.

        `examples` are those that were evaluated; `provenance` (checkpoint, data set) joins the summary.
        The folder appears complete or not at all.
        """
        with new_folder(folder) as partial:
            write_file(partial / "summary.json", json.dumps({**self.summary(), **provenance}, indent=2) + "\n")
            _write_table(partial / "predictions.csv", self._prediction_rows())
            _write_table(partial / "per_class.csv", self._per_class_rows())
            confusion = [[name, *row] for name, row in zip(self.class_names, self.confusion.tolist(), strict=True)]
            _write_table(partial / "confusion.csv", [["truth", *self.class_names], *confusion])
            (partial / "pictures").mkdir()
            for position in {*self.grid(), *self.most_confident_mistakes()}:
                _save_thumbnail(examples, position, partial / "pictures" / f"{position}.png")

    @classmethod
    def load(cls, folder: Path) -> "Evaluation":
        """The evaluation that `save` wrote."""
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
        return cls(
            split=summary["split"],
            class_names=class_names,
            files=tuple(row["file"] for row in rows),
            labels=torch.tensor([index[row["truth"]] for row in rows]),
            top_classes=torch.tensor([[index[row[f"class_{k}"]] for k in ranks] for row in rows]),
            top_probabilities=torch.tensor([[float(row[f"probability_{k}"]) for k in ranks] for row in rows]),
            loss=summary["loss"],
        )

    def _prediction_rows(self) -> list[list[object]]:
        ranks = range(1, self.top_classes.shape[1] + 1)
        header: list[object] = ["file", "truth", "correct"]
        header += [column for k in ranks for column in (f"class_{k}", f"probability_{k}")]
        rows = [header]
        for file, label, classes, probabilities in zip(
            self.files,
            self.labels.tolist(),
            self.top_classes.tolist(),
            self.top_probabilities.tolist(),
            strict=True,
        ):
            row: list[object] = [file, self.class_names[label], int(classes[0] == label)]
            for k, probability in zip(classes, probabilities, strict=True):
                row += [self.class_names[k], f"{probability:.6f}"]
            rows.append(row)
        return rows

    def _per_class_rows(self) -> list[list[object]]:
        header: list[object] = ["class_name", "images", "accuracy", "precision", "recall", "f1"]
        return [header] + [
            [s.class_name, s.images, *(f"{value:.6f}" for value in (s.recall, s.precision, s.recall, s.f1))]
            for s in self.per_class()
        ]


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    batches: EvaluationBatches,
    class_names: Sequence[str],
    split: str,
    after_batch: Callable[[], None] = lambda: None,
    *,
    mirror: bool = False,
) -> Evaluation:
    """What `model` predicts for every example of `batches`; its training mode is left as it was.

    `after_batch` is called after each batch, and may raise to stop. `mirror` is as in `prepare`.
    """
    was_training = model.training
    model.eval()
    top_classes: list[Tensor] = []
    top_probabilities: list[Tensor] = []
    loss = torch.zeros((), dtype=torch.float64)
    apply = prepare(model, mirror=mirror)
    for inputs, labels in batches:
        logits = apply(inputs).float()
        loss += cross_entropy(logits, labels, reduction="sum").double().cpu()
        probabilities, classes = rank_classes(logits)
        top_classes.append(classes)
        top_probabilities.append(probabilities)
        after_batch()
    model.train(was_training)
    return Evaluation(
        split=split,
        class_names=tuple(class_names),
        files=batches.examples.files,
        labels=batches.examples.labels,
        top_classes=torch.cat(top_classes),
        top_probabilities=torch.cat(top_probabilities),
        loss=float(loss) / len(batches.examples),
    )


def prepare(model: nn.Module, *, mirror: bool = False) -> WithinMemory:
    """A network in evaluation mode as validation, evaluation and prediction alike apply it.

    `model` stays as it is; what is prepared has the weights that it has now. `mirror` averages over mirror images.
    """
    fused = fuse_norms(model)
    return WithinMemory(WithMirrorImages(fused) if mirror else fused)


class WithMirrorImages(nn.Module):
    """A network that looks at each picture and at its mirror image, which takes twice the time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:  # x [N, C, H, W]
        """Logarithms of the mean probabilities [N, classes], which do as logits."""
        both = torch.stack([self.network(view).float().log_softmax(dim=1) for view in (x, x.flip(3))])
        return both.logsumexp(dim=0) - math.log(2)


def join_evaluations(parts: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of consecutive parts of a split as one."""
    num_images = sum(part.num_images for part in parts)
    return replace(
        parts[0],
        files=tuple(file for part in parts for file in part.files),
        labels=torch.cat([part.labels for part in parts]),
        top_classes=torch.cat([part.top_classes for part in parts]),
        top_probabilities=torch.cat([part.top_probabilities for part in parts]),
        loss=sum(part.loss * part.num_images for part in parts) / num_images,
    )


def evaluate_checkpoint(
    checkpoint: Checkpoint, examples: Examples, split: str, device: torch.device, *, mirror: bool = False
) -> Evaluation:
    """What a checkpoint predicts for `examples`, with `mirror` from each picture and its mirror image."""
    batch_size = checkpoint.recipe.limits.evaluation_batch_size
    batches = EvaluationBatches(examples, checkpoint.preprocessing, device, batch_size)
    model = restore_network(checkpoint).to(device)
    return evaluate_model(model, batches, checkpoint.class_names, split, mirror=mirror)


def rank_classes(logits: Tensor, number: int = NUM_TOP) -> tuple[Tensor, Tensor]:
    """Probabilities and classes of the best `number` classes, [N, number] each on the CPU, best first."""
    probabilities = logits.softmax(dim=1)
    top = probabilities.topk(min(number, logits.shape[1]), dim=1)
    return top.values.cpu(), top.indices.cpu()


def wilson_interval(correct: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927), in [0, 1]; it stays sensible near 0 and 1 and for few images."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * (share * (1 - share) / images + z**2 / (4 * images**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _write_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _save_thumbnail(examples: Examples, position: int, path: Path) -> None:
    if isinstance(examples, StoredExamples):
        pixels = examples.images[position]
    else:
        pixels = decode_file(examples.root / examples.files[position], 3)
    image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())
    image.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX))
    image.save(path)
