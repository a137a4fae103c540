from pathlib import Path

import pytest
import torch
from conftest import CLASSES, NO_PICTURE, draw

import candid
from candid.checkpoint import RunFolder
from candid.data.catalog import open_data_set
from candid.data.decoding import decode_file
from candid.data.loading import EvaluationBatches, open_training_data
from candid.errors import DataError
from candid.evaluation import Evaluation


def test_the_shapes_are_recognised(run: Path, pictures: Path):
    predictions = candid.load(run).predict(pictures)
    right = [prediction.classes[0] == Path(prediction.file).parent.name for prediction in predictions]
    assert len(predictions) == 72
    assert sum(right) >= 65
    assert all(abs(sum(prediction.probabilities) - 1) < 1e-5 for prediction in predictions)
    assert all(set(prediction.classes) == set(CLASSES) for prediction in predictions)


def test_prediction_sees_the_pixels_that_were_evaluated(run: Path, pictures: Path):
    """Bit for bit the same input on the way of training's evaluation and on that of prediction."""
    checkpoint = RunFolder(run).load()
    data = open_training_data(open_data_set(str(pictures)), checkpoint.recipe)
    assert data.preprocessing == checkpoint.preprocessing
    inputs, _ = next(iter(EvaluationBatches(data.validation, data.preprocessing, torch.device("cpu"))))
    for row, file in enumerate(data.validation.files):
        alone = checkpoint.preprocessing(decode_file(pictures / file, checkpoint.preprocessing.channels)[None])
        assert torch.equal(alone[0], inputs[row])


def test_prediction_repeats_the_test_evaluation(run: Path, pictures: Path):
    evaluation = Evaluation.load(run / "evaluation-test")
    predictions = candid.load(run).predict([pictures / file for file in evaluation.files])
    for position, prediction in enumerate(predictions):
        best = evaluation.class_names[int(evaluation.top_classes[position, 0])]
        assert prediction.classes[0] == best
        assert prediction.probabilities[0] == pytest.approx(float(evaluation.top_probabilities[position, 0]), abs=1e-5)


def test_a_file_that_is_no_picture_is_reported_and_the_rest_is_done(run: Path, tmp_path: Path):
    draw("circle", 3).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    draw("cross", 3).save(tmp_path / "c.png")
    first, second, third = candid.load(run).predict(tmp_path)
    assert (first.problem, third.problem) == (None, None)
    assert second.problem == f"{tmp_path}/b.png cannot be decoded: {NO_PICTURE}"
    assert second.classes == ()


def test_any_size_and_mode_is_taken(run: Path, tmp_path: Path):
    draw("circle", 3, side=200).resize((300, 120)).save(tmp_path / "wide.jpg")
    draw("circle", 3).convert("L").save(tmp_path / "grey.png")
    draw("circle", 3).convert("RGBA").resize((1, 1)).save(tmp_path / "dot.png")
    assert [prediction.problem for prediction in candid.load(run).predict(tmp_path)] == [None, None, None]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda folder: folder / "none.png",
            "{0}/none.png does not exist; expected a picture file or a folder of pictures.",
        ),
        (
            lambda folder: folder,
            "{0} holds no pictures; expected at least one. Choose a file, or a folder with pictures in it.",
        ),
    ],
)
def test_sources_without_pictures_are_refused(run: Path, tmp_path: Path, make, text: str):
    with pytest.raises(DataError) as caught:
        candid.load(run).predict(make(tmp_path))
    assert str(caught.value) == text.format(tmp_path)


def test_fewer_classes_than_asked_for_is_no_error(run: Path, pictures: Path):
    one = candid.load(run).predict(pictures / "circle" / "00.png", top=1)
    assert len(one) == 1
    assert len(one[0].classes) == 1
