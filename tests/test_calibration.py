"""Temperatures and thresholds, from the validation split to what prediction says."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import call

from candid.calibration import Calibration, Threshold, choose_threshold, judge_temperatures
from candid.checkpoint import RunFolder
from candid.errors import CheckpointError, InputError
from candid.kept_evaluation import load_evaluation
from candid.predict import load


def draw_guesses(sureness: float, number: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, 5] that are `sureness` times those by which the labels were drawn."""
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(number, 5, generator=generator)
    return sureness * logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()


def least_loss_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """By bisection: the slope of the loss over the inverse temperature rises through zero."""
    logits = logits.double()
    truth = logits.gather(1, labels[:, None]).squeeze(1)
    low, high = 0.0, 20.0
    for _ in range(60):
        inverse = (low + high) / 2
        slope = (((inverse * logits).softmax(dim=1) * logits).sum(dim=1) - truth).sum()
        low, high = (low, inverse) if slope > 0 else (inverse, high)
    return 1 / low


@pytest.mark.parametrize("sureness", [0.4, 1.0, 2.0, 5.5])
def test_the_temperature_is_the_one_with_the_least_loss(sureness: float):
    logits, labels = draw_guesses(sureness)
    batches = list(zip(logits.split(300), labels.split(300), strict=True))
    found = judge_temperatures(lambda inputs: inputs, batches).best_temperature
    assert found == pytest.approx(least_loss_temperature(logits, labels), rel=2e-3)
    assert found == pytest.approx(sureness, rel=0.1)


def test_temperatures_end_where_they_would_only_say_that_all_was_right():
    logits = torch.eye(5)
    assert judge_temperatures(lambda inputs: inputs, [(logits, torch.arange(5))]).best_temperature >= 0.25
    assert judge_temperatures(lambda inputs: inputs, [(logits, torch.arange(5).roll(1))]).best_temperature <= 8.0


@pytest.mark.parametrize("precision", [0.5, 0.8, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("digits", [1, 2, 6])
def test_the_threshold_answers_as_many_as_it_can(precision: float, digits: int):
    logits, labels = draw_guesses(1.0, number=400)
    confidences, classes = logits.softmax(dim=1).max(dim=1)
    confidences, correct = confidences.round(decimals=digits), classes == labels  # few digits: many are equal
    found = choose_threshold(confidences, correct, precision)
    candidates = {float(value): confidences >= value for value in confidences}
    good = {value: kept for value, kept in candidates.items() if correct[kept].double().mean() >= precision}
    if not good:
        assert found is None
        return
    assert found is not None
    assert found.confidence == min(good)
    assert found.coverage == pytest.approx(float(good[found.confidence].double().mean()))


def test_no_threshold_where_the_surest_are_wrong():
    confidences = torch.tensor([0.9, 0.9, 0.8])
    assert choose_threshold(confidences, torch.tensor([True, False, True]), 0.9) is None


CALIBRATION = Calibration(
    checkpoint="step-00000012",
    images=5000,
    mistakes=420,
    temperature=1.31,
    error_before=0.051,
    error_after=0.008,
    thresholds=(Threshold(0.95, 0.6234, 0.9321), Threshold(0.98, 0.81, 0.83), Threshold(0.99, 0.9, 0.7701)),
)


def test_what_was_saved_is_loaded_for_its_checkpoint_alone(tmp_path: Path):
    assert Calibration.load(tmp_path, "step-00000012") is None
    CALIBRATION.save(tmp_path)
    assert Calibration.load(tmp_path, "step-00000012") == Calibration.load(tmp_path) == CALIBRATION
    assert Calibration.load(tmp_path, "step-00000016") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"temperature": 1.31', '"temperature": "1.31"'),
        lambda text: text.replace('"temperature": 1.31', '"temperature": 0.0'),
        lambda text: text.replace('"temperature": 1.31', '"temperature": NaN'),
        lambda text: text.replace('"mistakes"', '"steaks"'),
        lambda text: text.replace('"coverage"', '"cover"'),
    ],
)
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, damage):
    CALIBRATION.save(tmp_path)
    file = tmp_path / "calibration.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(CheckpointError) as caught:
        Calibration.load(tmp_path)
    assert str(caught.value) == (
        f"{file} is damaged; expected what candid wrote. Remove it, and make it anew with "
        f"`candid evaluate {tmp_path} --split validation`."
    )


def test_it_is_told_in_words():
    assert CALIBRATION.text() == (
        "Logits are divided by a temperature of 1.31, fitted on 5,000 validation pictures; the calibration error there "
        "is 0.8 points, 5.1 without it. From a confidence of 62.34 % on, which 93.21 % of them have, 95 % of the "
        "answers are right. From a confidence of 90.00 % on, which 77.01 % of them have, 99 % of the answers are right."
    )


def test_a_precision_without_threshold_is_refused_in_words():
    assert CALIBRATION.threshold(0.98).confidence == 0.81
    with pytest.raises(InputError) as caught:
        CALIBRATION.threshold(0.999)
    assert str(caught.value) == (
        "No confidence is known from which on 0.999 of the answers are right; of the validation split's 5,000 "
        "pictures, there is one for these precisions: 0.95, 0.98, 0.99. Choose one of them."
    )


def test_a_run_ends_calibrated(run: Path):
    folder = RunFolder.open(run)
    found = Calibration.load(run, folder.load().name)
    assert found is not None
    validation = load_evaluation(run / "evaluation-validation")
    assert (found.images, found.mistakes) == (validation.num_images, validation.num_images - validation.num_correct)
    assert found.temperature == validation.temperature == 1.0  # eight pictures or so tell nothing
    assert found.text().startswith("Probabilities are as the network gives them: ")


@pytest.fixture
def tempered(run: Path, tmp_path: Path) -> Path:
    """A copy of the run whose network is known to be too sure."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    checkpoint = RunFolder.open(copy).load().name
    values = json.loads((copy / "calibration.json").read_text())
    Calibration(**values | {"checkpoint": checkpoint, "temperature": 3.0, "thresholds": ()}).save(copy)
    return copy


def test_prediction_and_evaluation_divide_by_the_temperature(run: Path, tempered: Path, pictures: Path, capsys):
    plain, milder = (load(path).predict(pictures / "cross") for path in (run, tempered))
    for one, other in zip(plain, milder, strict=True):
        assert one.classes == other.classes
        logits = torch.tensor(one.probabilities, dtype=torch.float64).log()  # but for a constant
        assert other.probabilities == pytest.approx((logits / 3).softmax(dim=0).tolist(), abs=1e-5)
    assert call(capsys, "evaluate", tempered, "--split", "train")[0] == 0
    evaluation = load_evaluation(tempered / "evaluation-train")
    assert evaluation.temperature == 3.0
    by_file = {file: float(value) for file, value in zip(evaluation.files, evaluation.confidences, strict=True)}
    common = [p for p in milder if f"cross/{Path(p.file).name}" in by_file]
    assert len(common) > 10
    for prediction in common:
        expected = by_file[f"cross/{Path(prediction.file).name}"]
        assert math.isclose(prediction.probabilities[0], expected, abs_tol=2e-5)


def test_evaluating_the_validation_split_calibrates(tempered: Path, capsys):
    expected = json.loads((tempered / "calibration.json").read_text()) | {"temperature": 1.0}
    code, said, _ = call(capsys, "evaluate", tempered)
    found = Calibration.load(tempered)
    assert code == 0
    assert found is not None
    assert found.temperature == expected["temperature"]
    assert found.text() in said.splitlines()


def with_threshold(run: Path, confidence: float) -> None:
    """Let 95 % of the answers of a run be right from a confidence on."""
    values = json.loads((run / "calibration.json").read_text())
    found = Calibration(**values | {"thresholds": (Threshold(0.95, confidence, 0.5),)})
    found.save(run)


def test_below_the_threshold_the_answer_is_unknown(run: Path, tempered: Path, pictures: Path, capsys, here: Path):
    confidences = sorted(p.probabilities[0] for p in load(tempered).predict(pictures / "circle"))
    middle = confidences[len(confidences) // 2]
    with_threshold(tempered, middle)
    predictions = load(tempered, precision=0.95).predict(pictures / "circle")
    assert [p.answer for p in predictions] == [
        p.classes[0] if p.probabilities[0] >= middle else "unknown" for p in predictions
    ]
    assert {p.answer for p in load(tempered).predict(pictures / "circle")} == {p.classes[0] for p in predictions}
    code, said, _ = call(capsys, "predict", tempered, pictures / "circle", "--precision", 0.95)
    assert code == 0
    assert sum(" unknown " in line for line in said.splitlines()) == sum(c < middle for c in confidences)
    assert call(capsys, "predict", tempered, pictures / "circle", "--precision", 0.95, "--csv", "out.csv")[0] == 0
    rows = (here / "out.csv").read_text().splitlines()
    assert rows[0].startswith("file,answer,class_1,probability_1,")
    assert [row.split(",")[1] for row in rows[1:]] == [p.answer for p in predictions]
    _, lines, _ = call(capsys, "predict", tempered, pictures / "circle", "--precision", 0.95, "--json")
    assert [json.loads(line)["answer"] for line in lines.splitlines()] == [p.answer for p in predictions]


def test_a_run_that_was_never_calibrated_knows_no_unknown(tempered: Path, pictures: Path, capsys):
    (tempered / "calibration.json").unlink()
    assert call(capsys, "predict", tempered, pictures, "--precision", 0.95) == (
        2,
        "",
        f"{tempered} was not calibrated, so no confidence is known from which on 0.95 of its answers are right; "
        f"expected calibration.json in it. Run `candid evaluate {tempered}`, which needs a validation split.\n",
    )
