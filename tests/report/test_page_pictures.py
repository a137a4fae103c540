"""The pictures of a report, and what it says of them."""

import json
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from written_run import page_of, write_run

from candid.data.examples import StoredExamples
from candid.kept_evaluation import load_evaluation, save_evaluation
from candid.report.pictures import Picture


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_large_thumbnails_become_jpegs():
    png = BytesIO()
    noise = torch.randint(0, 256, (112, 112, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(png, "PNG")
    data, tiny = Picture(png.getvalue(), "0", "cat", "cat", 0.5).as_data()
    assert data.startswith("data:image/jpeg;base64,")
    assert len(data) < len(png.getvalue())
    assert not tiny


def test_suspected_labels_are_marked_and_listed(run: Path):
    page = page_of(run)
    assert page.text.count("label suspected") == 3  # each of the mistakes, all as sure as the hits
    assert "of 3 pictures the network, which did not learn from them, is as sure of another class" in page.text
    assert "3 suspected labels, the most suspect first shapes/3.png shapes/7.png shapes/11.png" in page.text


def test_where_no_label_is_suspected_nothing_is_said(run: Path):
    folder = run / "evaluation-test"
    evaluation = load_evaluation(folder)
    unsure = evaluation.top_probabilities.clone()
    unsure[~evaluation.correct, 0] = 0.4
    shutil.rmtree(folder)
    pixels = torch.zeros(evaluation.num_images, 1, 8, 8, dtype=torch.uint8)
    examples = StoredExamples(pixels, evaluation.labels, evaluation.files)
    save_evaluation(replace(evaluation, top_probabilities=unsure), folder, examples, {"data": "shapes"})
    assert "suspect" not in page_of(run).text


def test_what_spoke_for_mistakes_is_beside_them(run: Path):
    assert "Grad-CAM" not in page_of(run).text
    for position, color in ((3, "red"), (11, "blue")):
        Image.new("RGB", (8, 8), color).save(run / "evaluation-test" / "explained" / f"{position}.png")
    page = page_of(run)
    assert "Beside each, bright is what spoke for the prediction (Grad-CAM)." in page.text
    alts = [image["alt"] for image in page.all("img") if (image["alt"] or "").startswith("What spoke for")]
    assert alts == ["What spoke for 猫", "What spoke for <script>alert(1)</script>"]


DATA = {"classes": ["a", "b"], "images": {"train": [40, 30], "validation": [4, 3]}}


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "in 2 classes with 30 to 40 each. Pictures of each class"),
        (
            {"sizes": {"images": 70, "heights_px": [20, 48, 300], "widths_px": [64, 64, 64]}},
            "each. They are 64 px wide and 20 to 300 (median 48) px high. Pictures of each class",
        ),
        (
            {"copies": {"train": 0, "validation": 0}},
            "each. No two of the pictures to train and to validate on are equal. Pictures",
        ),
        (
            {"copies": {"train": 1, "validation": 2}},
            "each. 1 picture to train on is a copy of others. 2 pictures to validate on can be trained on too, which "
            "flatters validation. Pictures",
        ),
        ({"copies": {"train": 3}}, "each. 3 pictures to train on are copies of others. Pictures"),
    ],
)
def test_what_is_known_of_the_pictures(run: Path, known: dict[str, object], said: str):
    (run / "data.json").write_text(json.dumps(DATA | known))
    assert said in page_of(run).text
