import math
from fractions import Fraction

import pytest
import torch
import torchmetrics.functional.classification as theirs

from candid.scores import (
    ClassScores,
    Pairing,
    balanced_accuracy,
    calibration_error,
    find_suspects,
    pair,
    reliability,
    score_classes,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [  # closed form of Wilson 1927, computed with fractions by hand; 0 and n of n are the edge cases
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (866, 1000, 0.8435, 0.8857),
    ],
)
def test_wilson_interval(correct: int, images: int, low: float, high: float):
    assert wilson_interval(correct, images) == pytest.approx((low, high), abs=5e-5)


def test_scores_of_classes_have_intervals_around_them():
    scores = ClassScores("cat", images=40, predicted=50, found=30)
    assert (scores.recall, scores.precision, scores.f1) == (0.75, 0.6, pytest.approx(2 / 3))
    assert scores.recall_interval == wilson_interval(30, 40)
    assert scores.precision_interval == wilson_interval(30, 50)
    assert scores.f1_interval is not None
    low, high = scores.f1_interval
    assert low < scores.f1 < high
    either = [value / (2 - value) for value in (low, high)]  # F1 as the share of the 60 that are cats or called so
    assert either == pytest.approx(wilson_interval(30, 60))


def test_a_class_without_examples_or_predictions_has_no_number():
    scores = ClassScores("dodo", images=0, predicted=0, found=0)
    assert all(math.isnan(value) for value in (scores.recall, scores.precision, scores.f1))
    assert scores.recall_interval is scores.precision_interval is scores.f1_interval is None


@pytest.fixture(scope="module")
def guesses() -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [1000, 4] that are too sure of themselves, and labels that follow milder ones."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 4, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()
    return (3 * logits).softmax(dim=1), labels


def test_balanced_accuracy_and_calibration_error_are_torchmetrics(guesses):
    probabilities, labels = guesses
    confusion = theirs.multiclass_confusion_matrix(probabilities, labels, 4)
    scores = score_classes(confusion, "abcd")
    expected = theirs.multiclass_accuracy(probabilities, labels, 4, average="macro")
    assert balanced_accuracy(scores) == pytest.approx(float(expected))
    confidences, classes = probabilities.max(dim=1)
    error = calibration_error(reliability(confidences, classes == labels))
    assert error == pytest.approx(float(theirs.multiclass_calibration_error(probabilities, labels, 4)), rel=1e-5)
    assert error > 0.1  # they are too sure


def test_balanced_accuracy_leaves_out_classes_without_examples():
    assert (
        balanced_accuracy([ClassScores("a", 90, 90, 90), ClassScores("b", 10, 10, 5), ClassScores("c", 0, 0, 0)])
        == 0.75
    )


def test_reliability_has_the_bins_that_hold_something():
    confidences = torch.tensor([0.0, 0.05, 0.31, 1.0, 1.0])
    correct = torch.tensor([False, True, True, True, False])
    bins = reliability(confidences, correct, num_bins=10)
    assert [part.images for part in bins] == [2, 1, 2]
    assert [part.confidence for part in bins] == pytest.approx([0.025, 0.31, 1.0])
    assert [part.accuracy for part in bins] == [0.5, 1.0, 0.5]
    assert calibration_error(bins) == pytest.approx((2 * 0.475 + 0.69 + 2 * 0.5) / 5)


def test_two_networks_are_paired_picture_by_picture():
    first = torch.tensor([True] * 7 + [False] * 3)
    second = torch.tensor([True] * 4 + [False] * 3 + [True] + [False] * 2)
    assert pair(first, second) == Pairing(both_right=4, only_first=3, only_second=1, both_wrong=2)
    assert pair(first, second).images == 10


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 3), (2, 9), (40, 12), (700, 600)])
def test_mcnemars_test_is_exact(only_first: int, only_second: int):
    differing, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(Fraction(math.comb(differing, k), 2**differing) for k in range(fewer + 1))
    found = Pairing(100, only_first, only_second, 50).p_value
    assert found == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-9)


def test_suspects_are_those_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (200,), generator=generator)
    probabilities = (2 * torch.randn(200, 4, generator=generator)).softmax(dim=1)
    usual = [float(probabilities[labels == k, k].mean()) for k in range(4)]
    expected: list[tuple[float, int, int]] = []
    for position, (row, label) in enumerate(zip(probabilities.tolist(), labels.tolist(), strict=True)):
        likely = [k for k in range(4) if row[k] >= usual[k]]
        best = max(likely, key=lambda k: row[k], default=label)
        if best != label and row[best] > row[label]:
            expected.append((row[label] - row[best], position, best))
    own = probabilities[torch.arange(200), labels]
    found = find_suspects(torch.arange(4).expand(200, 4), probabilities, own, labels)
    assert found == [(position, best) for _, position, best in sorted(expected)]
    best_two = probabilities.topk(2)
    assert find_suspects(best_two.indices, best_two.values, own, labels) == found  # no third class is sure enough here
    assert 10 < len(expected) < 190
