import csv
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.request import urlopen

import matplotlib
import pytest
import torch
from PIL import Image

from candid.data.examples import StoredExamples
from candid.errors import CheckpointError, DataError, InputError
from candid.evaluation import Evaluation
from candid.recipe import Recipe
from candid.report.figures import classes_to_draw, worst_first
from candid.report.headline import write_headline
from candid.report.page import flatten, render_page
from candid.report.pictures import Picture, gather_pictures
from candid.report.reading import read_run
from candid.report.writing import write_report
from candid.scores import ClassScores
from candid.words import duration, moment, percent, shorten, showable

ODD_NAMES = ("<script>alert(1)</script>", "猫", "$\\frac")
FIGURES = ["calibration.png", "confusion.png", "curves.png", "examples.png", "mistakes.png", "per_class.png"]
RESULT = {
    "test_accuracy": 0.75,
    "test_accuracy_interval": [0.4677, 0.9111],
    "test_images": 12,
    "validation_accuracy": 0.8,
    "best_step": 20,
    "best_epoch": 2,
    "last_test_accuracy": 0.5,
    "steps": 30,
    "train_seconds": 133.2,
    "images_per_second": 4321.5,
    "peak_memory_mib": None,
}
LOOK = {
    "time": "2025-03-01T12:34:56+00:00",
    "checkpoint": "step-00000020",
    "images": 12,
    "accuracy": 0.75,
    "command": "candid train --data shapes",
}
CHOSEN = "Validation chose the checkpoint of epoch 2 (80.00 % there)."
NOTHING_CHOSEN = "No validation split was held out, so nothing was chosen: the last checkpoint is the result."
ONE_LOOK = "The test split was looked at once, 2025-03-01 12:34 UTC."
CHANCE = (
    "The interval covers the chance in drawing 12 pictures; training again with another seed varies the number too."
)
OPTIMISTIC = "The number is the accuracy on validation, which chose the checkpoint, so it is optimistic."
NO_TEST = "There is no number on a test split: the data set has none, or it has not been looked at."


class Page(HTMLParser):
    """The tags of a page with their attributes, and its visible text on one line."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.html = html
        self.feed(self.html)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._part(tag)

    def handle_endtag(self, tag: str) -> None:
        self._part(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def _part(self, tag: str) -> None:
        """Words of different blocks do not run together."""
        if tag not in ("bdi", "span"):
            self.words.append(" ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def evaluate(folder: Path, class_names: tuple[str, ...], num_images: int, split: str = "test") -> Evaluation:
    """An evaluation with every fourth prediction wrong, saved in `folder`."""
    labels = torch.arange(num_images) % len(class_names)
    predictions = torch.where(torch.arange(num_images) % 4 == 3, (labels + 1) % len(class_names), labels)
    num_top = min(5, len(class_names))
    evaluation = Evaluation(
        split=split,
        class_names=class_names,
        files=tuple(f"shapes/{position}.png" for position in range(num_images)),
        labels=labels,
        top_classes=(predictions[:, None] + torch.arange(num_top)) % len(class_names),
        top_probabilities=torch.linspace(0.9, 0.02, num_top).repeat(num_images, 1),
        loss=0.6931,
    )
    pixels = torch.arange(num_images * 64, dtype=torch.int64).view(num_images, 1, 8, 8) % 256
    evaluation.save(folder, StoredExamples(pixels.to(torch.uint8), labels, evaluation.files), {"data": "shapes"})
    return evaluation


def write_run(run: Path, class_names: tuple[str, ...] = ODD_NAMES, num_images: int = 12) -> Path:
    """A finished run folder."""
    run.mkdir()
    evaluate(run / "evaluation-test", class_names, num_images)
    recipe = Recipe().replace({"data.name": "shapes", "model.name": "lenet", "training.epochs": 3})
    (run / "recipe.toml").write_text(recipe.to_toml())
    environment = {"device": "cpu", "versions": {"torch": "2.9"}, "git": None, "command": ["candid", "a b"]}
    (run / "environment.json").write_text(json.dumps(environment))
    write_epochs(run, validation=True)
    (run / "result.json").write_text(json.dumps(RESULT))
    (run / "test_looks.jsonl").write_text(json.dumps(LOOK) + "\n")
    return run


def write_epochs(run: Path, validation: bool) -> None:
    columns = ["epoch", "step", "learning_rate", "train_loss", "train_accuracy"]
    columns += ["validation_loss", "validation_accuracy"]
    with (run / "results.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for epoch, accuracy in ((1, 0.6), (2, 0.8), (3, 0.7)):
            measured = [1 - accuracy, accuracy] if validation else ["", ""]
            table.writerow([epoch, 10 * epoch, 0.1 / epoch, 0.5 / epoch, 0.9, *measured])


def write_result(run: Path, **changes: object) -> None:
    (run / "result.json").write_text(json.dumps(RESULT | changes))


def page_of(run: Path) -> Page:
    """The page alone, without the PNG figures, which take as long again."""
    record = read_run(run)
    return Page(render_page(record, gather_pictures(record)))


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
    evaluation = Evaluation.load(finished / "evaluation-test")
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


def test_large_thumbnails_become_jpegs(tmp_path):
    path = tmp_path / "0.png"
    noise = torch.randint(0, 256, (112, 112, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(path)
    data, tiny = Picture(path, "0", "cat", "cat", 0.5).as_data()
    assert data.startswith("data:image/jpeg;base64,")
    assert len(data) < path.stat().st_size
    assert not tiny


def test_most_confused_pairs_are_sorted_and_shared_by_truth(finished):
    pairs = Evaluation.load(finished / "evaluation-test").confused_pairs()
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


def test_numbers_are_written_for_people():
    assert [percent(share) for share in (0.873, 1.0, None, float("nan"))] == ["87.30 %", "100.00 %", "–", "–"]
    assert [duration(seconds) for seconds in (45.4, 133.2, 11100)] == ["45 s", "2 min 13 s", "3 h 5 min"]
    assert moment("yesterday") == "yesterday"


@pytest.mark.parametrize(
    ("name", "width", "short"),
    [
        ("cat", 9, "cat"),
        ("golden retriever", 9, "gold…ever"),
        ("非常に長い名前", 9, "非常…名前"),
        ("bell\x07\nand", 20, "bell��and"),
    ],
)
def test_names_are_shortened_in_the_middle(name, width, short):
    assert shorten(name, width) == short


def test_characters_without_a_picture_are_replaced():
    assert showable("a\ud800b") == "a�b"
