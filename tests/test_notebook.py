import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, call, make_pictures, silent, small_recipe

import candid
from candid.evaluation import MOST_CLASSES_MAPPED, Evaluation
from candid.notebook import figure, heat_map, paragraphs, table
from candid.predict import Prediction, Predictions
from candid.report.side_by_side import read_side_by_side
from candid.training.run import train_run
from candid.workflow import plan as make_plan

HOSTILE = '<script>"&\n'
ATTRIBUTES = {"style", "src", "alt"}


class Shown(HTMLParser):
    """What a reader sees of HTML: the cells of its rows, its paragraphs and its pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, ...]] = []
        self.paragraphs: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"table", "tr", "th", "td", "p", "img"}, tag
        assert {name for name, _ in attrs} <= ATTRIBUTES
        if tag == "img":
            self.pictures.append(dict(attrs))
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append(())
        elif tag in ("th", "td"):
            self.rows[-1] += ("",)
        elif tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] == "p":
            self.paragraphs[-1] += data
        else:
            self.rows[-1] = (*self.rows[-1][:-1], self.rows[-1][-1] + data)


def shown(result: object) -> Shown:
    """What a notebook shows of a result; pictures are within the text, so that nothing is fetched."""
    html = result._repr_html_()
    assert not re.search(r"url\(|(?<!\w)on\w+=", html)
    found = Shown(html)
    assert all(str(picture["src"]).startswith("data:image/") for picture in found.pictures)
    return found


def evaluation_of(class_names: tuple[str, ...]) -> Evaluation:
    """Two pictures of the first class, one of them taken for the second, and one right one of the second."""
    return Evaluation(
        split="test",
        class_names=class_names,
        files=("a", "b", "c"),
        labels=torch.tensor([0, 0, 1]),
        top_classes=torch.tensor([[0, 1], [1, 0], [1, 0]]),
        top_probabilities=torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]]),
        loss=0.5,
    )


def test_a_table_is_escaped_and_numbers_stand_to_the_right():
    assert table([("name", "pictures"), (HOSTILE, "3")], numbers=(1,)) == (
        '<table><tr><th style="text-align:left">name</th><th style="text-align:right">pictures</th></tr>'
        '<tr><td style="text-align:left">&lt;script&gt;&quot;&amp;�</td><td style="text-align:right">3</td></tr>'
        "</table>"
    )
    assert paragraphs([HOSTILE, "b"]) == "<p>&lt;script&gt;&quot;&amp;�</p><p>b</p>"
    assert figure('data:"', HOSTILE) == '<img src="data:&quot;" alt="&lt;script&gt;&quot;&amp;�">'


def test_a_heat_map_is_as_blue_as_the_share_of_the_row():
    html = heat_map(["cat", "a golden retriever", "none"], [[3, 1, 0], [0, 1200, 0], [0, 0, 0]])
    assert Shown(html).rows == [
        ("truth \\ answer", "cat", "a golden…triever", "none"),
        ("cat", "3", "1", ""),
        ("a golden…triever", "", "1,200", ""),
        ("none", "", "", ""),
    ]
    assert [f"{share:.2f}" for share in (0.45, 0.15, 0, 0, 0.6, 0, 0, 0, 0)] == re.findall(r"180,(\d\.\d\d)\)", html)


def test_an_evaluation_shows_its_figures_classes_and_confusion():
    found = shown(evaluation_of(("cat", HOSTILE)))
    assert found.paragraphs == [
        "Test accuracy 66.67 % (95 % interval 20.77 % to 93.85 %, 3 pictures), loss 0.5000, balanced accuracy 75.00 %, "
        "calibration error 30.0 points.",
        "What the pictures of each class were taken for:",
    ]
    assert found.rows == [
        ("class", "pictures", "accuracy", "precision", "F1"),
        ("cat", "2", "50.00 %", "100.00 %", "66.67 %"),
        ('<script>"&�', "1", "100.00 %", "50.00 %", "66.67 %"),
        ("truth \\ answer", "cat", '<script>"&�'),
        ("cat", "1", "1"),
        ('<script>"&�', "", "1"),
    ]


@pytest.mark.parametrize(("number", "is_mapped"), [(MOST_CLASSES_MAPPED, True), (MOST_CLASSES_MAPPED + 1, False)])
def test_the_confusion_of_many_classes_is_left_to_the_report(number: int, is_mapped: bool):
    rows = shown(evaluation_of(tuple(f"class {k}" for k in range(number)))).rows
    assert len(rows) == 1 + number + is_mapped * (1 + number)


def test_predictions_are_a_list_and_show_answers_and_problems():
    sure = Prediction("somewhere/a.png", ("cat", HOSTILE), (0.9, 0.1))
    unsure = Prediction("b.png", ("cat", "dog"), (0.6, 0.4), threshold=0.7)
    bad = Prediction("c.txt", (), (), "c.txt is no picture.")
    assert Predictions([sure, bad])[1] is bad
    found = shown(Predictions([sure, bad]))
    assert found.rows == [("picture", "1.", "2."), ("a.png", "cat 90.00 %", '<script>"&� 10.00 %')]
    assert found.paragraphs == ["c.txt is no picture."]
    assert shown(Predictions([sure, unsure])).rows == [
        ("picture", "answer", "1.", "2."),
        ("a.png", "cat", "cat 90.00 %", '<script>"&� 10.00 %'),
        ("b.png", "unknown", "cat 60.00 %", "dog 40.00 %"),
    ]
    assert shown(Predictions([])).rows == [("picture",)]


def test_what_predict_returns_shows_what_the_command_prints(run: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    make_pictures(here / "pictures", per_class=1)
    (here / "pictures" / "notes.png").write_text("no picture")
    found = shown(candid.load(run).predict("pictures"))
    printed = call(capsys, "predict", run, "pictures")
    assert found.rows[0] == ("picture", "1.", "2.", "3.")
    for row in found.rows:
        assert "  ".join(row).split() in [line.split() for line in printed[1].splitlines()]
    assert found.paragraphs == printed[2].splitlines()


def test_a_plan_shows_what_the_command_prints(pictures: Path):
    plan = make_plan(small_recipe(pictures))
    found, lines = shown(plan), plan.text().splitlines()
    assert [row.split() for row in (lines[1], *lines[3:-1])] == [" ".join(row).split() for row in found.rows]
    assert found.paragraphs == [lines[0], lines[-1]]
    assert found.rows[1][0] == ">"


def test_runs_side_by_side_show_what_the_command_prints_and_the_figures(
    run: Path, pictures: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    train_run(small_recipe(pictures, seed=1, training__epochs=1), here / "other", reporter=silent())
    found = shown(read_side_by_side([run, here / "other"]))
    printed = call(capsys, "compare", run, here / "other")[1].splitlines()
    for row in found.rows:
        assert " ".join(row).split() in [line.split() for line in printed]
    assert found.rows[1][:3] == ("shapes", "lenet-relu", "test")
    assert len(found.paragraphs) == 1
    assert found.paragraphs[0] in printed
    assert found.pictures[0]["alt"] == "Validation accuracy over the epochs of shapes, other."


def test_an_evaluation_of_a_run_shows_what_the_command_prints(
    run: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(run, here / "shapes")
    found = shown(candid.evaluate("shapes"))
    printed = call(capsys, "evaluate", "shapes")[1].splitlines()
    assert found.paragraphs[0] == f"{printed[0]}."
    for row in found.rows[: 1 + len(CLASSES)]:
        assert " ".join(row).split() in [line.split() for line in printed]
