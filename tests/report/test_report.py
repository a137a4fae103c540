import json
import shutil
from pathlib import Path
from urllib.request import urlopen

import matplotlib
import pytest
import torch
from PIL import Image
from written_run import LOOK, ODD_NAMES, Page, evaluate, page_of, write_epochs, write_result, write_run

from candid.errors import CheckpointError, DataError, InputError
from candid.kept_evaluation import load_evaluation
from candid.report.figures import classes_to_draw, worst_first
from candid.report.headline import write_headline
from candid.report.page import flatten
from candid.report.reading import read_run
from candid.report.writing import write_report
from candid.scores import ClassScores

FIGURES = ["calibration.png", "confusion.png", "curves.png", "examples.png", "mistakes.png", "per_class.png"]
CHOSEN = "Validation chose the checkpoint of epoch 2 (80.00 % there)."
NOTHING_CHOSEN = "No validation split was held out, so nothing was chosen: the last checkpoint is the result."
ONE_LOOK = "The test split was looked at once, 2025-03-01 12:34 UTC."
CHANCE = (
    "The interval covers the chance in drawing 12 pictures; training again with another seed varies the number too."
)
OPTIMISTIC = "The number is the accuracy on validation, which chose the checkpoint, so it is optimistic."
NO_TEST = "There is no number on a test split: the data set has none, or it has not been looked at."


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "finished")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(finished) -> Page:
    return Page((finished / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A run of one's own to change."""
    return shutil.copytree(finished, tmp_path / "run")


def test_headline_has_number_interval_split_and_count(page):
    assert (
        "lenet on shapes 75.00 % accuracy on the test split, 12 pictures 95 % Wilson interval 46.77 % to 91.11 % "
        f"{CHOSEN} {ONE_LOOK} {CHANCE}"
    ) in page.text


def test_facts_stand_beside_the_headline(page):
    assert (
        "Network lenet Data set shapes Split test Checkpoint best on validation, epoch 2, step 20 "
        "Last checkpoint 50.00 % on the test split Validation 80.00 % Balanced 75.00 % "
        "Loss 0.6931 nats Training 2 min 13 s Speed 4,322 pictures/s Training"
    ) in page.text


def test_page_asks_nobody_for_anything(page):
    addresses = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "srcset", "href")
    ]
    assert addresses
    assert all(address and address.startswith("data:image/") for address in addresses)
    assert "url(" not in page.html
    assert "@import" not in page.html
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_every_picture_has_data_that_opens_and_an_alternative_text(page):
    images = page.all("img")
    assert (
        len(images) == 3 + 1 + 1 + 1 + 12 + 3 + 9 + 3
    )  # curves, bars, matrix, calibration, grid, mistakes, hits, pairs
    for image in images:
        assert image["alt"]
        data = urlopen(image["src"]).read()
        assert data.startswith((b"\x89PNG", b"<?xml"))


def test_tables_have_headers_and_headings_do_not_skip_a_level(page):
    assert all(header["scope"] in ("col", "row") for header in page.all("th"))
    headings = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert headings == ["h1"] + ["h2"] * (len(headings) - 1)


def test_class_names_are_text_and_never_markup(page):
    assert "<script" not in page.html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.html


def test_pictures_say_prediction_and_truth_with_colour_and_mark(page, finished):
    figures = page.all("figure")
    evaluation = load_evaluation(finished / "evaluation-test")
    right = [position % 4 != 3 for position in range(12)]
    assert [figure["class"] for figure in figures] == ["right" if r else "wrong" for r in right] + ["wrong"] * 3 + [
        "right"
    ] * 9
    assert [figure["title"] for figure in figures[:12]] == list(evaluation.files)
    assert "✓ 猫 (猫)" in page.text
    assert "✗ 猫 (<script>a…/script>)" in page.text
    assert "✗ $\\frac (猫) 90.00 % sure shapes/7.png" in page.text


def test_worst_class_comes_first_in_the_table(page):
    assert (
        "Class Recall 95 % interval Precision 95 % interval F1 95 % interval Pictures "
        "<script>alert(1)</script> 75.00 % 30.06 % to 95.44 % 75.00 % 30.06 % to 95.44 % 75.00 % 37.49 % to 93.75 % 4 "
        "猫 75.00 % 30.06 % to 95.44 % 75.00 % 30.06 % to 95.44 % 75.00 % 37.49 % to 93.75 % 4"
    ) in page.text


def test_recipe_command_and_environment_are_shown(page, finished):
    assert " ".join((finished / "recipe.toml").read_text().split()) in page.text
    assert "Command candid 'a b' Recipe" in page.text
    assert "Environment Name Value device cpu versions.torch 2.9 git –" in page.text
    assert str(finished.parent) not in page.html


def test_figures_are_pictures_of_a_sensible_size(finished):
    assert sorted(path.name for path in (finished / "figures").iterdir()) == FIGURES
    for name in FIGURES:
        with Image.open(finished / "figures" / name) as image:
            image.load()
            assert image.format == "PNG"
            assert 400 < image.width < 2500
            assert 200 < image.height < 2500


def test_same_run_gives_the_same_bytes_and_leaves_matplotlib_alone(run):
    before, settings = (run / "report.html").read_bytes(), dict(matplotlib.rcParams)
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").read_bytes() == before
    assert dict(matplotlib.rcParams) == settings


def test_without_validation_the_last_checkpoint_is_the_result(run):
    write_result(run, validation_accuracy=None, best_epoch=3, last_test_accuracy=None)
    write_epochs(run, validation=False)
    page = page_of(run)
    assert f"{NOTHING_CHOSEN} {ONE_LOOK} {CHANCE}" in page.text
    assert "Checkpoint last, epoch 3, step 20" in page.text
    assert "Validation 80" not in page.text


def test_without_a_test_split_validation_is_called_optimistic(run):
    write_result(run, test_accuracy=None, test_accuracy_interval=None, test_images=None, last_test_accuracy=None)
    (run / "test_looks.jsonl").unlink()
    shutil.rmtree(run / "evaluation-test")
    evaluate(run / "evaluation-validation", ODD_NAMES, 12, split="validation")
    page = page_of(run)
    assert "75.00 % accuracy on the validation split, 12 pictures 95 % Wilson interval" in page.text
    assert f"{CHOSEN} {NO_TEST} {OPTIMISTIC} {CHANCE}" in page.text
    assert "Measured on the validation split, which chose the checkpoint, so these numbers are optimistic." in page.text
    assert "test split 12" not in page.text


def test_second_look_at_the_test_split_is_told(run):
    (run / "test_looks.jsonl").write_text(f"{json.dumps(LOOK)}\n{json.dumps(LOOK | {'time': '2025-03-02T08:00:00'})}\n")
    page = page_of(run)
    assert (
        "The test split was looked at 2 times, first 2025-03-01 12:34 UTC, last 2025-03-02 08:00: the test number "
        "is no longer a single look, and whoever chose by it made it optimistic."
    ) in page.text
    assert "2025-03-02 08:00 step-00000020 candid train --data shapes 12 75.00 %" in page.text


def test_unfinished_run_shows_what_there_is(run):
    (run / "result.json").unlink()
    (run / "test_looks.jsonl").unlink()
    shutil.rmtree(run / "evaluation-test")
    page = page_of(run)
    assert (
        "No accuracy yet Nothing was measured on pictures that were held out. "
        "This run is not finished: it has no result.json. Its last complete epoch is 3 of 3. "
        "The highest accuracy on validation so far is 80.00 %, in epoch 2. "
        "The test split has not been looked at."
    ) in page.text
    assert len(page.all("img")) == 3
    assert "The run folder holds no evaluation" in page.text


def test_headline_without_an_evaluation_comes_from_the_result(run):
    shutil.rmtree(run / "evaluation-test")
    headline = write_headline(read_run(run))
    assert headline.number == "75.00 %"
    assert headline.meaning == "accuracy on the test split, 12 pictures"
    assert headline.uncertainty == "95 % Wilson interval 46.77 % to 91.11 %"


def test_unrecorded_look_and_contradicting_result_are_told(run):
    (run / "test_looks.jsonl").unlink()
    write_result(run, test_accuracy=0.8)
    assert write_headline(read_run(run)).story == (
        CHOSEN,
        "No look at the test split is recorded, so how often it was looked at is not known.",
        "When training ended, result.json recorded 80.00 %; the predictions shown here are of another evaluation.",
        CHANCE,
    )


def test_run_without_anything_held_out_has_no_accuracy(run):
    write_result(run, test_accuracy=None, validation_accuracy=None)
    (run / "test_looks.jsonl").unlink()
    shutil.rmtree(run / "evaluation-test")
    headline = write_headline(read_run(run))
    assert headline.number == "No accuracy"
    assert headline.story == (NOTHING_CHOSEN, NO_TEST)


def test_two_classes(tmp_path):
    page = page_of(write_run(tmp_path / "run", ("no", "yes")))
    assert "An empty cell is 0." in page.text
    assert "Top five" not in page.text


def test_many_classes_fold_the_table_and_draw_the_most_confused(tmp_path):
    names = tuple(f"class number {number}" for number in range(120))
    page = page_of(write_run(tmp_path / "run", names, num_images=360))
    assert "The figure has the 40 classes with the lowest recall out of 120; the table has all." in page.text
    assert "120 classes are too many to draw: these are the 30 with the most mistakes." in page.text
    assert "All 120 classes as a table" in page.text
    assert len(page.html) < 3_000_000


def test_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        write_report(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"{tmp_path / 'nowhere'} is not a folder. Give a run folder, one that `candid train` wrote."
    )


def test_folder_with_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        write_report(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds nothing to report: no finished epoch in results.csv, no result.json and no "
        "evaluation. Give a run folder that `candid train` has worked on for at least one epoch."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("result.json", '{"steps": "many"}', "steps: Input should be a valid integer, "
         "unable to parse string as an integer"),
        ("environment.json", "[1]", "Input should be an object"),
        ("results.csv", "epoch,train_loss\n1,low\n", "train_loss: Input should be a valid number, "
         "unable to parse string as a number"),
        ("test_looks.jsonl", "{}\n", "time: Field required"),
        ("recipe.toml", "name 1", "Expected '=' after a key in a key/value pair (at line 1, column 6)"),
    ],
)  # fmt: skip
def test_damaged_file_is_named(run, name, content, reason):
    (run / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        read_run(run)
    assert str(caught.value) == (
        f"{run / name} is damaged ({reason}). "
        "Restore it from a copy of the run folder, or move it away to report the rest."
    )


def test_incomplete_evaluation_is_refused(run):
    (run / "evaluation-test" / "predictions.csv").unlink()
    with pytest.raises(DataError) as caught:
        write_report(run)
    missing = run / "evaluation-test" / "predictions.csv"
    assert str(caught.value) == (
        f"{run / 'evaluation-test'} holds no complete evaluation "
        f"([Errno 2] No such file or directory: '{missing}'). Run `candid evaluate {run}`."
    )


def test_most_confused_pairs_are_sorted_and_shared_by_truth(finished):
    pairs = load_evaluation(finished / "evaluation-test").confused_pairs()
    assert [(pair.truth, pair.prediction, pair.images, pair.share, pair.positions) for pair in pairs] == [
        ("<script>alert(1)</script>", "猫", 1, 0.25, (3,)),
        ("猫", "$\\frac", 1, 0.25, (7,)),
        ("$\\frac", "<script>alert(1)</script>", 1, 0.25, (11,)),
    ]


def test_matrix_of_many_classes_keeps_those_with_mistakes():
    confusion = torch.eye(101, dtype=torch.int64)
    confusion[50, 7] = 3
    drawn = classes_to_draw(confusion)
    assert len(drawn) == 30
    assert {7, 50} <= set(drawn)
    assert drawn == sorted(drawn)


def test_classes_without_examples_come_last():
    absent, good, bad = ClassScores("absent", 0, 0, 0), ClassScores("good", 2, 2, 2), ClassScores("bad", 2, 1, 1)
    assert worst_first([absent, good, bad]) == [bad, good, absent]


def test_nested_environment_becomes_rows():
    nested = {"a": {"b": [1, True]}, "c": [{"d": None}, 2], "e": []}
    assert list(flatten(nested)) == [("a.b", "1, yes"), ("c.0.d", "–"), ("c.1", "2"), ("e", "")]
