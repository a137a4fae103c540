import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as theirs
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from candid.checkpoint import RunFolder, restore_network
from candid.data.catalog import open_data_set
from candid.data.decoding import decode_file
from candid.data.examples import StoredExamples
from candid.data.loading import EvaluationBatches
from candid.data.preprocessing import Preprocessing
from candid.errors import DataError
from candid.evaluation import Evaluation, evaluate_checkpoint, evaluate_model, explain_mistakes
from candid.explaining import explain, overlay
from candid.kept_evaluation import load_evaluation, save_evaluation
from candid.views import Views

CLASSES = tuple(f"class {k}" for k in range(7))


@pytest.fixture(scope="module")
def examples() -> StoredExamples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (301, 1, 6, 6), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 6, (301,), generator=generator)  # the last class has no example
    return StoredExamples(images, labels, tuple(f"test/{k}" for k in range(301)))


class Linear(nn.Module):
    """A network with dropout and batch normalisation, so that training mode would show."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Dropout(0.5), nn.Linear(36, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def batches(examples: StoredExamples) -> EvaluationBatches:
    preprocessing = Preprocessing(image_size=6, channels=1, fit="crop", mean=(0.5,), std=(0.3,))
    return EvaluationBatches(examples, preprocessing, torch.device("cpu"))


@pytest.fixture(scope="module")
def evaluation(examples: StoredExamples) -> Evaluation:
    return evaluate_model(Linear(), batches(examples), CLASSES, "test")


@pytest.fixture(scope="module")
def logits(examples: StoredExamples) -> torch.Tensor:
    """All examples in one batch, straight from the definition."""
    return logits_of(examples.images)


@torch.inference_mode()
def logits_of(images: torch.Tensor) -> torch.Tensor:
    return Linear().eval()((images.float() / 255 - 0.5) / 0.3)


def test_ragged_batches_give_the_numbers_of_one_large_batch(evaluation, examples, logits):
    assert evaluation.num_images == 301
    assert evaluation.accuracy == float((logits.argmax(1) == examples.labels).double().mean())
    assert evaluation.loss == pytest.approx(float(nn.functional.cross_entropy(logits, examples.labels)), rel=1e-6)
    assert torch.equal(evaluation.top_classes, logits.topk(5).indices)


def test_with_mirror_images_the_probabilities_are_averaged(examples):
    found = evaluate_model(Linear(), batches(examples), CLASSES, "test", views=Views(mirror=True))
    one, other = (logits_of(images).softmax(dim=1) for images in (examples.images, examples.images.flip(3)))
    assert not torch.allclose(one, other)
    expected = (one + other) / 2
    assert torch.allclose(found.top_probabilities, expected.topk(5).values)
    assert found.loss == pytest.approx(-expected.gather(1, examples.labels[:, None]).log().mean().item())


def test_a_temperature_changes_probabilities_and_neither_decisions_nor_the_loss(evaluation, examples, logits):
    found = evaluate_model(Linear(), batches(examples), CLASSES, "test", temperature=2.5)
    assert torch.equal(found.top_classes, evaluation.top_classes)
    assert found.loss == evaluation.loss
    assert torch.allclose(found.top_probabilities, (logits / 2.5).softmax(dim=1).topk(5).values)
    assert torch.equal(found.confidences, found.top_probabilities[:, 0])


def test_scores_equal_torchmetrics(evaluation, examples, logits):
    confusion = theirs.multiclass_confusion_matrix(logits, examples.labels, 7)
    assert torch.equal(evaluation.confusion, confusion)
    assert evaluation.top5_accuracy == pytest.approx(
        float(theirs.multiclass_accuracy(logits, examples.labels, 7, top_k=5, average="micro"))
    )
    scores = evaluation.per_class()
    for name, function in (
        ("recall", theirs.multiclass_recall),
        ("precision", theirs.multiclass_precision),
        ("f1", theirs.multiclass_f1_score),
    ):
        expected = function(logits, examples.labels, 7, average="none").tolist()
        ours = [getattr(score, name) for score in scores]
        assert [0.0 if math.isnan(value) else value for value in ours] == pytest.approx(expected)
    assert [score.images for score in scores] == confusion.sum(1).tolist()
    assert math.isnan(scores[6].recall)  # no example, no number


def test_evaluation_leaves_the_network_as_it_was(examples):
    model = Linear().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate_model(model, batches(examples), CLASSES, "test")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_mistakes_are_ordered_by_confidence(evaluation):
    mistakes = evaluation.most_confident_mistakes(10)
    confidence = [float(evaluation.top_probabilities[position, 0]) for position in mistakes]
    assert confidence == sorted(confidence, reverse=True)
    assert all(evaluation.top_classes[p, 0] != evaluation.labels[p] for p in mistakes)
    wrong = evaluation.top_classes[:, 0] != evaluation.labels
    assert confidence[0] == float(evaluation.top_probabilities[wrong, 0].max())


def test_what_was_saved_is_what_is_loaded(evaluation, examples, tmp_path: Path):
    evaluation = replace(evaluation, temperature=1.25)
    save_evaluation(evaluation, tmp_path / "evaluation-test", examples, {"checkpoint": "step-1"})
    again = load_evaluation(tmp_path / "evaluation-test")
    assert again.summary() == evaluation.summary() | {
        "calibration_error": pytest.approx(evaluation.calibration_error, abs=1e-6)
    }
    assert again.temperature == 1.25
    assert torch.equal(again.top_classes, evaluation.top_classes)
    assert (again.top_probabilities - evaluation.top_probabilities).abs().max() <= 1e-6
    with (tmp_path / "evaluation-test" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 301
    assert sum(int(row["correct"]) for row in rows) == evaluation.num_correct
    with (tmp_path / "evaluation-test" / "per_class.csv").open() as file:
        first = next(csv.DictReader(file))
    score = evaluation.per_class()[0]
    assert score.f1_interval is not None
    assert [float(first[key]) for key in ("recall", "f1", "f1_low")] == pytest.approx(
        [score.recall, score.f1, score.f1_interval[0]], abs=1e-6
    )
    shown = evaluation.shown()
    assert {*evaluation.grid(), *evaluation.most_confident_mistakes(), *evaluation.least_certain_hits()} < {*shown}
    assert {path.stem for path in (tmp_path / "evaluation-test" / "pictures").iterdir()} == set(map(str, shown))
    position = evaluation.grid()[0]
    with Image.open(tmp_path / "evaluation-test" / "pictures" / f"{position}.png") as image:
        assert list(image.tobytes()) == examples.images[position].flatten().tolist()


def test_five_classes_or_fewer_have_no_top5(examples):
    few = Evaluation(
        "test", ("a", "b"), ("1",), torch.tensor([0]), torch.tensor([[0, 1]]), torch.tensor([[0.9, 0.1]]), 0.1
    )
    assert few.top5_accuracy is None


def test_a_folder_without_evaluation_is_refused_in_words(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        load_evaluation(tmp_path / "evaluation-test")
    assert str(caught.value) == (
        f"{tmp_path}/evaluation-test holds no complete evaluation ([Errno 2] No such file or directory: "
        f"'{tmp_path}/evaluation-test/summary.json'). Run `candid evaluate {tmp_path}`."
    )


def test_what_spoke_for_mistakes_is_grad_cam_over_what_the_network_saw(run: Path, tmp_path: Path):
    checkpoint = RunFolder.open(run).load()
    examples = open_data_set(checkpoint.recipe.data.name).openers["test"]()
    evaluation = evaluate_checkpoint(checkpoint, examples, "test", torch.device("cpu"))
    evaluation = replace(evaluation, labels=(evaluation.labels + 1) % 3)  # whatever it says is a mistake now
    at_once: set[int] = set()
    watch = register_module_forward_pre_hook(lambda _, inputs: at_once.add(len(inputs[0])))
    explained = explain_mistakes(evaluation, checkpoint, examples, torch.device("cpu"))
    watch.remove()
    assert at_once == {1}  # the memory plan does not know how many mistakes there will be
    assert list(explained) == evaluation.most_confident_mistakes()
    position = list(explained)[-1]
    pixels = decode_file(Path(checkpoint.recipe.data.name) / evaluation.files[position], 3)
    inputs = checkpoint.preprocessing(pixels[None])
    [heat] = explain(restore_network(checkpoint), inputs, evaluation.top_classes[[position], 0])
    expected = overlay(checkpoint.preprocessing.make_square(pixels), heat)
    ours = explained[position]
    assert (ours.int() - expected.int()).abs().max() <= 1  # pixels went through the network's numbers and back
    save_evaluation(evaluation, tmp_path / "evaluation-test", examples, {}, explained)
    with Image.open(tmp_path / "evaluation-test" / "explained" / f"{position}.png") as image:
        assert np.array_equal(np.asarray(image), ours.permute(1, 2, 0).numpy())


def test_without_mistakes_nothing_is_explained(run: Path):
    checkpoint = RunFolder.open(run).load()
    examples = open_data_set(checkpoint.recipe.data.name).openers["test"]()
    evaluation = evaluate_checkpoint(checkpoint, examples, "test", torch.device("cpu"))
    evaluation = replace(evaluation, labels=evaluation.top_classes[:, 0])
    assert explain_mistakes(evaluation, checkpoint, examples, torch.device("cpu")) == {}
