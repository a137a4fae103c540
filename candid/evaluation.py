"""A network and examples become an Evaluation: what was predicted for each, counted without rounding.

Evaluation runs in float32 whatever the training's precision was, so that the number does not depend on what
a machine's short formats do. Sums and counts are added up over examples and divided once, at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import PIL
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from candid.checkpoint import Checkpoint, restore_network
from candid.data.decoding import VERSION
from candid.data.examples import Examples
from candid.data.loading import EvaluationBatches
from candid.errors import InputError
from candid.explaining import explain, overlay
from candid.notebook import heat_map, paragraphs, table
from candid.randomness import generator_for
from candid.scores import (
    Bin,
    ClassScores,
    Interval,
    balanced_accuracy,
    calibration_error,
    find_suspects,
    reliability,
    score_classes,
    wilson_interval,
)
from candid.views import PLAIN, Views, prepare
from candid.words import interval, percent

NUM_TOP = 5
NUM_GRID_PICTURES = 64
NUM_MISTAKES_SHOWN = 24
NUM_HITS_SHOWN = 16
NUM_PAIRS, NUM_PAIR_PICTURES = 10, 4
MOST_CLASSES_MAPPED = 20
"""For more, a notebook gets no map of the confusion."""


@dataclass(frozen=True)
class ConfusedPair:
    """How often one class was taken for another."""

    truth: str
    prediction: str
    images: int
    share: float
    """Of the examples of `truth`."""
    positions: tuple[int, ...]
    """Of the examples with the highest confidence, at most four."""


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
    """float32 [N, K], matching `top_classes`, at the temperature."""
    loss: float
    """Mean cross-entropy in nats, at a temperature of 1: that of training."""
    temperature: float = 1.0
    """What the logits were divided by (see `candid.calibration`)."""

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def correct(self) -> Tensor:
        """Whether the best class is the truth, bool [N]."""
        return self.top_classes[:, 0] == self.labels

    @property
    def confidences(self) -> Tensor:
        """The probability of the best class, float32 [N]."""
        return self.top_probabilities[:, 0]

    @property
    def num_correct(self) -> int:
        """Examples whose best class is the truth."""
        return int(self.correct.sum())

    @property
    def accuracy(self) -> float:
        """Share of examples whose best class is the truth, in [0, 1]."""
        return self.num_correct / self.num_images

    @property
    def accuracy_interval(self) -> Interval:
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
        return score_classes(self.confusion, self.class_names)

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes, in [0, 1]."""
        return balanced_accuracy(self.per_class())

    def reliability(self) -> list[Bin]:
        """How often predictions are right, by how confident they are."""
        return reliability(self.confidences, self.correct)

    @property
    def calibration_error(self) -> float:
        """How far confidence and accuracy lie apart on average, in [0, 1]."""
        return calibration_error(self.reliability())

    def most_confident_mistakes(self, number: int = NUM_MISTAKES_SHOWN) -> list[int]:
        """Positions of the wrong predictions with the highest probability, worst first."""
        return self.by_confidence(~self.correct)[:number]

    def least_certain_hits(self, number: int = NUM_HITS_SHOWN) -> list[int]:
        """Positions of the right predictions with the lowest probability, lowest first."""
        return self.by_confidence(self.correct)[::-1][:number]

    def label_suspects(self) -> list[int]:
        """Positions of the pictures whose label is probably wrong, the most suspect first.

        The network did not learn from them; it judges by the best K classes, with 0 for all others.
        """
        own = torch.where(self.top_classes == self.labels[:, None], self.top_probabilities, 0.0).sum(dim=1)
        found = find_suspects(self.top_classes, self.top_probabilities, own, self.labels)
        return [position for position, _ in found]

    def confused_pairs(self, number: int = NUM_PAIRS) -> list[ConfusedPair]:
        """The pairs of different classes with the most mistakes, most first."""
        confusion, predictions = self.confusion, self.top_classes[:, 0]
        mistakes, present = confusion - confusion.diag().diag(), confusion.sum(dim=1).tolist()
        pairs: list[ConfusedPair] = []
        for index in mistakes.flatten().argsort(descending=True, stable=True)[:number].tolist():
            truth, prediction = divmod(index, len(self.class_names))
            images = int(mistakes[truth, prediction])
            if images:
                positions = self.by_confidence((self.labels == truth) & (predictions == prediction))
                names = self.class_names[truth], self.class_names[prediction]
                pairs.append(
                    ConfusedPair(*names, images, images / present[truth], tuple(positions[:NUM_PAIR_PICTURES]))
                )
        return pairs

    def by_confidence(self, chosen: Tensor) -> list[int]:
        """Positions of those that are chosen, bool [N], the most confident first."""
        positions = torch.nonzero(chosen).flatten()
        return positions[self.confidences[positions].argsort(descending=True, stable=True)].tolist()

    def grid(self) -> list[int]:
        """Positions of at most 64 examples, drawn at random but always the same, ascending."""
        order = torch.randperm(self.num_images, generator=generator_for("grid", self.num_images))
        return sorted(order[:NUM_GRID_PICTURES].tolist())

    def shown(self) -> list[int]:
        """Positions of all pictures that a report shows."""
        of_pairs = (position for pair in self.confused_pairs() for position in pair.positions)
        return sorted({*self.grid(), *self.most_confident_mistakes(), *self.least_certain_hits(), *of_pairs})

    def text(self, how: str = "") -> str:
        """The headline figures in a sentence; `how` is what is said of the way to measure, as in `Views.text`."""
        top5 = "" if self.top5_accuracy is None else f", top-5 {percent(self.top5_accuracy)}"
        return (
            f"{self.split.capitalize()} accuracy {percent(self.accuracy)}{how} (95 % interval "
            f"{interval(self.accuracy_interval)}, {self.num_images:,} pictures){top5}, "
            f"loss {self.loss:.4f}, balanced accuracy {percent(self.balanced_accuracy)}, calibration error "
            f"{100 * self.calibration_error:.1f} points"
        )

    def class_rows(self) -> list[tuple[str, ...]]:
        """The scores of each class as cells of a table, the headings first."""
        rows: list[tuple[str, ...]] = [("class", "pictures", "accuracy", "precision", "F1")]
        for scores in self.per_class():
            shares = map(percent, (scores.recall, scores.precision, scores.f1))
            rows.append((scores.class_name, f"{scores.images:,}", *shares))
        return rows

    def _repr_html_(self) -> str:
        """What a notebook shows: the headline figures, the classes, and, of few, which is taken for which."""
        shown = paragraphs([f"{self.text()}."]) + table(self.class_rows(), numbers=range(1, 5))
        if len(self.class_names) <= MOST_CLASSES_MAPPED:
            shown += paragraphs(["What the pictures of each class were taken for:"])
            shown += heat_map(self.class_names, self.confusion.tolist())
        return shown

    def summary(self) -> dict[str, object]:
        """The headline figures, ready for JSON."""
        return {
            "split": self.split,
            "images": self.num_images,
            "correct": self.num_correct,
            "accuracy": self.accuracy,
            "accuracy_interval": list(self.accuracy_interval),
            "balanced_accuracy": self.balanced_accuracy,
            "top5_accuracy": self.top5_accuracy,
            "loss": self.loss,
            "temperature": self.temperature,
            "calibration_error": self.calibration_error,
            "class_names": list(self.class_names),
        }


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    batches: EvaluationBatches,
    class_names: Sequence[str],
    split: str,
    after_batch: Callable[[], None] = lambda: None,
    *,
    views: Views = PLAIN,
    temperature: float = 1.0,
) -> Evaluation:
    """What `model` predicts for every example of `batches`; its training mode is left as it was.

    `after_batch` is called after each batch, and may raise to stop. `batches` are as `views` want them; `temperature`
    is as in `Evaluation`.
    """
    was_training = model.training
    model.eval()
    top_classes: list[Tensor] = []
    top_probabilities: list[Tensor] = []
    loss = torch.zeros((), dtype=torch.float64)
    apply = prepare(model, views)
    for inputs, labels in batches:
        logits = apply(inputs).float()
        loss += cross_entropy(logits, labels, reduction="sum").double().cpu()
        probabilities, classes = rank_classes(logits / temperature)
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
        temperature=temperature,
    )


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
    checkpoint: Checkpoint,
    examples: Examples,
    split: str,
    device: torch.device,
    *,
    views: Views = PLAIN,
    temperature: float = 1.0,
) -> Evaluation:
    """What a checkpoint predicts for `examples`."""
    model, batches = open_batches(checkpoint, examples, device, views)
    return evaluate_model(model, batches, checkpoint.class_names, split, views=views, temperature=temperature)


def explain_mistakes(
    evaluation: Evaluation, checkpoint: Checkpoint, examples: Examples, device: torch.device
) -> dict[int, Tensor]:
    """By position, what spoke for each of the most confident mistakes of a plain view: uint8 [3, side, side].

    Empty where the network has no maps that could show it (see `candid.explaining`).
    """
    positions = evaluation.most_confident_mistakes()
    if not positions:
        return {}
    model, preprocessing = restore_network(checkpoint).to(device).requires_grad_(False), checkpoint.preprocessing
    # One at a time: a graph of several pictures may take more memory than the training did.
    batches = EvaluationBatches(examples.select(torch.tensor(positions)), preprocessing, device, 1)
    explained: dict[int, Tensor] = {}
    for position, (inputs, _) in zip(positions, batches, strict=True):
        try:
            [heat] = explain(model, inputs, evaluation.top_classes[position, :1].to(device)).cpu()
        except InputError:
            return {}
        [pixels] = preprocessing.as_pixels(inputs)
        explained[position] = overlay(pixels, heat)
    return explained


def open_batches(
    checkpoint: Checkpoint, examples: Examples, device: torch.device, views: Views = PLAIN
) -> tuple[nn.Module, EvaluationBatches]:
    """A checkpoint's network and the examples as it sees them, on the device."""
    batch_size = checkpoint.recipe.limits.evaluation_batch_size
    batches = EvaluationBatches(examples, views.enlarge(checkpoint.preprocessing), device, batch_size)
    return restore_network(checkpoint).to(device), batches


def describe_measurement(checkpoint: Checkpoint, data: str, views: Views = PLAIN) -> dict[str, object]:
    """What an evaluation's number depends on beside the pictures: checkpoint, data, and how pixels came about."""
    return {
        "checkpoint": checkpoint.name,
        "data": data,
        **asdict(views),
        "preprocessing": views.enlarge(checkpoint.preprocessing).model_dump(),
        "resizing": "bilinear, antialiased",
        "decoder": f"candid {VERSION}, Pillow {PIL.__version__}",
    }


def rank_classes(logits: Tensor, number: int = NUM_TOP) -> tuple[Tensor, Tensor]:
    """Probabilities and classes of the best `number` classes, [N, number] each on the CPU, best first."""
    probabilities = logits.softmax(dim=1)
    top = probabilities.topk(min(number, logits.shape[1]), dim=1)
    return top.values.cpu(), top.indices.cpu()
