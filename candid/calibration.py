"""What a probability is worth: the temperature and the thresholds that the validation split gives a network.

Networks are right less often than they say. One number, by which all logits are divided, mends most of it (Guo et al.
2017, arXiv:1706.04599) and changes no decision. Below a threshold on what is left of the confidence, the answer is
"unknown". Both are fitted on the validation split, which the network did not learn from, and never on the test split.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from candid.checkpoint import Checkpoint
from candid.data.examples import Examples
from candid.durable import write_file
from candid.errors import CheckpointError, InputError
from candid.evaluation import Evaluation, evaluate_model, open_batches
from candid.scores import calibration_error, reliability
from candid.views import prepare
from candid.words import count, percent

FILE_NAME = "calibration.json"
INVERSE_TEMPERATURES = torch.logspace(-3, 2, 61, base=2.0, dtype=torch.float64)
"""Those that are tried, from a temperature of 8 to a quarter."""
FEWEST_MISTAKES = 10
"""With fewer on the validation split, how often a network is wrong is hardly known: probabilities stay as they are."""
PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Those for which thresholds are kept."""
TOLD_PRECISIONS = (0.95, 0.99)


@dataclass(frozen=True)
class Threshold:
    """The confidence from which on answers are right so often, on the validation split."""

    precision: float
    """What was wanted."""
    confidence: float
    coverage: float
    """The share of the pictures with at least that confidence."""


@dataclass(frozen=True)
class Calibration:
    """What the validation split says about the probabilities of a checkpoint."""

    checkpoint: str
    images: int
    mistakes: int
    temperature: float
    error_before: float
    """The expected calibration error with a temperature of 1, in [0, 1]."""
    error_after: float
    thresholds: tuple[Threshold, ...]
    """Of those among PRECISIONS that can be had, ascending."""

    def threshold(self, precision: float) -> Threshold:
        """That of a precision.

        Raises:
            InputError: if there is none for it.
        """
        found = next((threshold for threshold in self.thresholds if threshold.precision == precision), None)
        if found is None:
            usable = ", ".join(f"{threshold.precision:g}" for threshold in self.thresholds) or "none"
            raise InputError(
                f"No confidence is known from which on {precision:g} of the answers are right; of the validation "
                f"split's {self.images:,} pictures, there is one for these precisions: {usable}. Choose one of them."
            )
        return found

    def text(self) -> str:
        """It in a few sentences for people."""
        pictures = f"{self.images:,} validation pictures"
        sentences = [
            f"Logits are divided by a temperature of {self.temperature:.2f}, fitted on {pictures}; the calibration "
            f"error there is {100 * self.error_after:.1f} points, {100 * self.error_before:.1f} without it."
            if self.mistakes >= FEWEST_MISTAKES
            else f"Probabilities are as the network gives them: {count(self.mistakes, 'mistake')} among {pictures} are "
            f"too few to calibrate by; expected at least {FEWEST_MISTAKES}."
        ]
        sentences += [
            f"From a confidence of {percent(threshold.confidence)} on, which {percent(threshold.coverage)} of them "
            f"have, {100 * threshold.precision:g} % of the answers are right."
            for threshold in self.thresholds
            if threshold.precision in TOLD_PRECISIONS
        ]
        return " ".join(sentences)

    def save(self, run: Path) -> None:
        """Write it into a run folder."""
        write_file(run / FILE_NAME, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, run: Path, checkpoint: str | None = None) -> "Calibration | None":
        """That in a run folder; None where none was made, or of another than the given checkpoint.

        Raises:
            CheckpointError: if the file is damaged.
        """
        path = run / FILE_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            thresholds = tuple(Threshold(**threshold) for threshold in values.pop("thresholds"))
            found = cls(**values, thresholds=thresholds)
            is_usable = math.isfinite(found.temperature) and found.temperature > 0
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            is_usable, found = False, None
        if found is None or not is_usable:
            raise CheckpointError(
                f"{path} is damaged; expected what candid wrote. Remove it, and make it anew with "
                f"`candid evaluate {run} --split validation`."
            )
        return found if checkpoint in (None, found.checkpoint) else None


def find_temperature(run: Path, checkpoint: str) -> float:
    """What the logits of a checkpoint are divided by; 1 where it was not calibrated."""
    calibration = Calibration.load(run, checkpoint)
    return 1.0 if calibration is None else calibration.temperature


def calibrate(checkpoint: Checkpoint, validation: Examples, device: torch.device) -> tuple[Calibration, Evaluation]:
    """The calibration of a checkpoint on its validation split, and the evaluation there with it."""
    model, batches = open_batches(checkpoint, validation, device)
    plain = judge_temperatures(prepare(model.eval()), batches)
    mistakes = int((~plain.correct).sum())
    temperature = plain.best_temperature if mistakes >= FEWEST_MISTAKES else 1.0
    evaluation = evaluate_model(model, batches, checkpoint.class_names, "validation", temperature=temperature)
    thresholds = (choose_threshold(evaluation.confidences, evaluation.correct, precision) for precision in PRECISIONS)
    return Calibration(
        checkpoint=checkpoint.name,
        images=evaluation.num_images,
        mistakes=mistakes,
        temperature=temperature,
        error_before=calibration_error(reliability(plain.confidences, plain.correct)),
        error_after=evaluation.calibration_error,
        thresholds=tuple(threshold for threshold in thresholds if threshold is not None),
    ), evaluation


@dataclass(frozen=True)
class Judgement:
    """What one pass over N pictures says about temperatures."""

    best_temperature: float
    """The one with the least cross-entropy, within about a thousandth."""
    confidences: Tensor
    """float64 [N], the probability of the best class at a temperature of 1."""
    correct: Tensor
    """bool [N]."""


@torch.inference_mode()
def judge_temperatures(network: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Judgement:
    """The best temperature for the network's logits, by those of all pictures.

    The loss is convex in the inverse temperature: a parabola through the best three of those tried has its minimum.
    """
    losses = torch.zeros(len(INVERSE_TEMPERATURES), dtype=torch.float64)
    confidences: list[Tensor] = []
    correct: list[Tensor] = []
    for inputs, labels in batches:
        logits, labels = network(inputs).cpu().double(), labels.cpu()
        for place, inverse in enumerate(INVERSE_TEMPERATURES.tolist()):
            losses[place] += cross_entropy(inverse * logits, labels, reduction="sum")
        best = logits.softmax(dim=1).max(dim=1)
        confidences.append(best.values)
        correct.append(best.indices == labels)
    return Judgement(_least(losses), torch.cat(confidences), torch.cat(correct))


def _least(losses: Tensor) -> float:
    """The temperature with the least loss, by those of INVERSE_TEMPERATURES."""
    best = int(losses.argmin().clamp(1, len(losses) - 2))
    below, least, above = losses[best - 1 : best + 2].tolist()
    step = INVERSE_TEMPERATURES[1].log2() - INVERSE_TEMPERATURES[0].log2()
    curvature = below - 2 * least + above
    shift = min(1.0, max(-1.0, 0.5 * (below - above) / curvature)) if curvature > 0 else 0.0
    return float(2 ** -(INVERSE_TEMPERATURES[best].log2() + shift * step))


def choose_threshold(confidences: Tensor, correct: Tensor, precision: float) -> Threshold | None:
    """The lowest confidence among [N] from which on at least `precision` of the predictions are right; None if none is.

    Pictures of the same confidence stand or fall together.
    """
    ordered, order = confidences.sort(descending=True, stable=True)
    number = torch.arange(1, len(order) + 1)
    is_last_of_its_kind = torch.cat([ordered[1:] != ordered[:-1], torch.tensor([True])])
    fits = torch.nonzero(is_last_of_its_kind & (correct[order].cumsum(0) >= precision * number)).flatten()
    if not len(fits):
        return None
    last = int(fits[-1])
    return Threshold(precision, float(ordered[last]), (last + 1) / len(order))
