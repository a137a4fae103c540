"""Counts and confidences become figures: scores of classes, calibration, and how two networks compare.

All shares are in [0, 1], all intervals are of 95 % unless another confidence is asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean

import torch
from torch import Tensor

NUM_BINS = 15
"""Of a reliability diagram, as Guo et al. 2017 (arXiv:1706.04599) draw them."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassScores:
    """How one class fared; `nan` where there was nothing to divide by, and no interval then."""

    class_name: str
    images: int
    """Examples whose truth is this class."""
    predicted: int
    """Examples that were taken for this class."""
    found: int
    """Examples that are both."""

    @property
    def recall(self) -> float:
        """Share of the class's examples that were found: the accuracy on this class."""
        return _share(self.found, self.images)

    @property
    def precision(self) -> float:
        """Share of the predictions of this class that were right."""
        return _share(self.found, self.predicted)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 when nothing of the class was found."""
        return _share(2 * self.found, self.images + self.predicted)

    @property
    def recall_interval(self) -> Interval | None:
        """Of `recall`."""
        return wilson_interval(self.found, self.images) if self.images else None

    @property
    def precision_interval(self) -> Interval | None:
        """Of `precision`."""
        return wilson_interval(self.found, self.predicted) if self.predicted else None

    @property
    def f1_interval(self) -> Interval | None:
        """Of `f1`, which grows with the share of the examples of either kind that are both: F1 = 2 J / (1 + J)."""
        either = self.images + self.predicted - self.found
        if not either:
            return None
        low, high = wilson_interval(self.found, either)
        return 2 * low / (1 + low), 2 * high / (1 + high)


def score_classes(confusion: Tensor, class_names: Sequence[str]) -> list[ClassScores]:
    """The scores of each class, in class order, from counts int64 [classes, classes] with a row for each truth."""
    found = confusion.diagonal().tolist()
    present, predicted = confusion.sum(dim=1).tolist(), confusion.sum(dim=0).tolist()
    return [ClassScores(*counts) for counts in zip(class_names, present, predicted, found, strict=True)]


def balanced_accuracy(scores: Sequence[ClassScores]) -> float:
    """The mean recall of the classes that have examples: each class weighs the same, however many pictures it has."""
    return mean(score.recall for score in scores if score.images)


@dataclass(frozen=True)
class Bin:
    """Predictions of nearly the same confidence."""

    images: int
    confidence: float
    """Its mean."""
    accuracy: float


def reliability(confidences: Tensor, correct: Tensor, num_bins: int = NUM_BINS) -> list[Bin]:
    """The bins of equal width that hold predictions, from confidences [N] in [0, 1] and bool [N]."""
    places = (confidences.double() * num_bins).long().clamp(max=num_bins - 1)
    images = torch.bincount(places, minlength=num_bins)
    sums = [torch.bincount(places, values.double(), num_bins) for values in (confidences, correct)]
    filled = images > 0
    means = [(total[filled] / images[filled]).tolist() for total in sums]
    return [Bin(*row) for row in zip(images[filled].tolist(), *means, strict=True)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: how far confidence and accuracy lie apart, on average over predictions."""
    total = sum(part.images for part in bins)
    return sum(part.images * abs(part.confidence - part.accuracy) for part in bins) / total


@dataclass(frozen=True)
class Pairing:
    """Two networks on the same pictures."""

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int

    @property
    def images(self) -> int:
        """All of them."""
        return self.both_right + self.only_first + self.only_second + self.both_wrong

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test (1947): how likely so uneven a split of the differing pictures is by chance alone."""
        differing = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        logs = (_log_choose(differing, k) - differing * math.log(2) for k in range(fewer + 1))
        return min(1.0, 2 * sum(map(math.exp, logs)))


def pair(first: Tensor, second: Tensor) -> Pairing:
    """Count which of two networks was right, bool [N] each."""
    return Pairing(*(int(both.sum()) for both in (first & second, first & ~second, ~first & second, ~first & ~second)))


def find_suspects(classes: Tensor, probabilities: Tensor, own: Tensor, labels: Tensor) -> list[tuple[int, int]]:
    """Positions of labels that are probably wrong, with the class to put there, the most suspect first.

    From what a network that did not learn from N pictures says of them: for each, K `classes` (int64 [N, K]) and their
    `probabilities` [N, K], the probability of its label (`own` [N]) and the label (int64 [N]). Where the network is as
    sure of another class as it is on average of pictures with that label, and surer of it than of the picture's own,
    the label is suspected; of several such classes, the most probable is meant: confident learning (Northcutt et al.
    2021, arXiv:1911.00068, section 3). The order is that of the distance between both probabilities.
    """
    number = 1 + int(torch.cat([classes.flatten(), labels]).max())
    usual = torch.zeros(number).index_add_(0, labels, own) / torch.bincount(labels, minlength=number)
    strength, place = torch.where(probabilities >= usual[classes], probabilities, 0.0).max(dim=1)
    suggestion = classes.gather(1, place[:, None]).squeeze(1)
    distance = torch.where(suggestion == labels, 0.0, strength - own)
    suspects = torch.nonzero(distance > 0).flatten()
    suspects = suspects[distance[suspects].argsort(descending=True, stable=True)]
    return list(zip(suspects.tolist(), suggestion[suspects].tolist(), strict=True))


def wilson_interval(correct: int, images: int, confidence: float = 0.95) -> Interval:
    """Score interval of a share (Wilson 1927), in [0, 1]; it stays sensible near 0 and 1 and for few images."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * (share * (1 - share) / images + z**2 / (4 * images**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
