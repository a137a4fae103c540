import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import call
from written_run import Page, write_run

from candid.data.examples import StoredExamples
from candid.errors import InputError
from candid.kept_evaluation import load_evaluation, save_evaluation
from candid.models import count_parameters
from candid.recipe import Recipe
from candid.report.comparison_figures import draw_overlaid
from candid.report.side_by_side import read_side_by_side
from candid.report.theme import LIGHT
from candid.scores import Pairing

CLASSES = ("circle", "cross", "<b>stripes")


def write_seed(run: Path, seed: int, wrong: tuple[int, ...]) -> Path:
    """A run of 12 pictures with a seed, which is wrong about some of them."""
    write_run(run, CLASSES)
    folder = run / "evaluation-test"
    evaluation = load_evaluation(folder)
    predictions = evaluation.labels.clone()
    predictions[list(wrong)] = (predictions[list(wrong)] + 1) % 3
    top = (predictions[:, None] + torch.arange(3)) % 3
    shutil.rmtree(folder)
    pictures = StoredExamples(torch.zeros(12, 1, 8, 8, dtype=torch.uint8), evaluation.labels, evaluation.files)
    save_evaluation(replace(evaluation, top_classes=top), folder, pictures, {"data": "shapes"})
    recipe = Recipe.from_toml(run / "recipe.toml").replace({"seed": seed, "data.channels": 1, "data.image_size": 28})
    (run / "recipe.toml").write_text(recipe.to_toml())
    result = json.loads((run / "result.json").read_text()) | {"test_accuracy": 1 - len(wrong) / 12}
    (run / "result.json").write_text(json.dumps(result))
    return run


@pytest.fixture
def seeds(tmp_path: Path) -> list[Path]:
    """Three runs that differ in the seed alone."""
    return [
        write_seed(tmp_path / "zero", 0, wrong=(0, 1, 2)),
        write_seed(tmp_path / "one", 1, wrong=(2, 3)),
        write_seed(tmp_path / "two", 2, wrong=(0, 1, 2, 5)),
    ]


def test_runs_that_differ_in_the_seed_have_a_spread(seeds: list[Path]):
    [spread] = read_side_by_side(seeds).spreads
    assert spread.labels == ("zero", "one", "two")
    assert (spread.split, spread.mean) == ("test", 0.75)
    assert spread.deviation == pytest.approx(1 / 12)  # of 9, 10 and 8 right among 12


def test_settings_that_were_measured_anew_make_no_other_recipe(seeds: list[Path]):
    recipe = Recipe.from_toml(seeds[1] / "recipe.toml")
    measured = {"training.memory_format": "contiguous", "training.threads": 2, "limits.save_every": "5m"}
    (seeds[1] / "recipe.toml").write_text(recipe.replace(measured).to_toml())
    assert [spread.labels for spread in read_side_by_side(seeds).spreads] == [("zero", "one", "two")]


def test_another_recipe_has_a_spread_of_its_own(seeds: list[Path], tmp_path: Path):
    recipe = Recipe.from_toml(seeds[2] / "recipe.toml").replace({"training.epochs": 9})
    (seeds[2] / "recipe.toml").write_text(recipe.to_toml())
    [spread] = read_side_by_side(seeds).spreads
    assert spread.labels == ("zero", "one")


def test_two_runs_are_paired_on_the_same_pictures(seeds: list[Path]):
    duels = read_side_by_side(seeds).duels
    assert [(duel.first, duel.second) for duel in duels] == [("zero", "one"), ("zero", "two"), ("one", "two")]
    assert duels[0].pairing == Pairing(8, 1, 2, 1)
    assert duels[0].only_first == ("shapes/3.png",)
    assert duels[0].only_second == ("shapes/0.png", "shapes/1.png")


def test_what_only_one_got_right_is_shown_with_the_others_answer(seeds: list[Path]):
    duel = read_side_by_side(seeds).duels[0]
    [shown] = duel.shown_first
    assert (shown.file, shown.truth, shown.prediction) == ("shapes/3.png", "circle", "cross")
    assert [picture.file for picture in duel.shown_second] == ["shapes/0.png", "shapes/1.png"]
    assert [(picture.truth, picture.prediction) for picture in duel.shown_second] == [
        ("circle", "cross"),
        ("cross", "<b>stripes"),
    ]


def test_the_surest_of_what_only_one_got_right_come_first(seeds: list[Path]):
    """The order is that of the other run's confidence in its wrong answers."""
    table = (seeds[0] / "evaluation-test" / "predictions.csv").read_text().splitlines()
    row = next(number for number, line in enumerate(table) if line.startswith("shapes/1.png"))
    table[row] = table[row].replace("0.900000", "0.950000")
    (seeds[0] / "evaluation-test" / "predictions.csv").write_text("\n".join(table) + "\n")
    assert read_side_by_side(seeds).duels[0].only_second == ("shapes/1.png", "shapes/0.png")


def test_runs_on_other_pictures_are_not_paired(seeds: list[Path], tmp_path: Path):
    other = write_run(tmp_path / "other", CLASSES, num_images=9)
    assert read_side_by_side([seeds[0], other]).duels == ()


def test_parameters_are_those_of_the_network(seeds: list[Path]):
    expected = count_parameters("lenet", num_classes=3, in_channels=1, image_size=28)
    assert {contender.parameters for contender in read_side_by_side(seeds).contenders} == {expected}


def test_the_command_prints_numbers_and_writes_a_page(
    seeds: list[Path], here: Path, capsys: pytest.CaptureFixture[str]
):
    code, said, _ = call(capsys, "compare", *seeds)
    lines = said.splitlines()
    assert code == 0
    assert lines[-5:] == [
        "3 runs that differ in the seed alone (zero, one, two): 75.00 % on the test split, "
        "standard deviation 8.33 points.",
        "zero and one: of 12 pictures, 1 only the first got right, 2 only the second; McNemar's test gives p = 1.000.",
        "zero and two: of 12 pictures, 1 only the first got right, 0 only the second; McNemar's test gives p = 1.000.",
        "one and two: of 12 pictures, 3 only the first got right, 1 only the second; McNemar's test gives p = 0.625.",
        "Page: comparison.html",
    ]
    page = Page((here / "comparison.html").read_text())
    assert "3 runs side by side" in page.text
    assert page.text.count("p = 0.625") == 1
    assert "1 picture that of zero and one only zero got right" in page.text
    assert "shapes/3.png" in page.text
    assert not page.all("script")
    assert not [tag for tag in page.all("b")]
    images = page.all("img")
    figures = [image for image in images if (image["src"] or "").startswith("data:image/svg+xml;base64,")]
    pictures = [image for image in images if (image["src"] or "").startswith("data:image/png;base64,")]
    assert (len(figures), len(pictures), len(images)) == (4, 8, 12)  # 1 + 2, 1 + 0 and 3 + 1 that one got right
    assert all(image["alt"] for image in images)


def test_the_page_replaces_itself_and_no_other_file(seeds: list[Path], here: Path, capsys: pytest.CaptureFixture[str]):
    assert [call(capsys, "compare", *seeds)[0] for _ in range(2)] == [0, 0]
    mine = here / "mine.html"
    mine.write_text("<p>mine</p>")
    assert call(capsys, "compare", *seeds, "--out", mine)[::2] == (
        2,
        f"{mine} is no comparison that candid wrote, so it stays as it is. Give another --out FILE.\n",
    )
    assert mine.read_text() == "<p>mine</p>"


def test_a_run_of_one_epoch_is_a_point_among_the_curves(seeds: list[Path]):
    results = seeds[0] / "results.csv"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:2]))
    lines = draw_overlaid(LIGHT, read_side_by_side(seeds).contenders, "train_loss").axes[0].lines
    assert [len(line.get_xdata()) == 1 for line in lines] == [True, False, False]
    assert [line.get_marker() == "" for line in lines] == [False, True, True]


def test_one_run_has_nothing_to_be_compared_with(seeds: list[Path]):
    for runs in ([seeds[0]], [seeds[0], seeds[0] / "."]):
        with pytest.raises(InputError) as caught:
            read_side_by_side(runs)
        assert str(caught.value) == "There is one run to compare; expected two or more run folders. Name another one."


def test_runs_of_one_name_are_called_by_their_paths(seeds: list[Path], tmp_path: Path):
    copy = Path(shutil.copytree(seeds[0], tmp_path / "elsewhere" / "zero"))
    labels = [contender.label for contender in read_side_by_side([seeds[0], copy]).contenders]
    assert labels == [str(seeds[0]), str(copy)]


def test_an_unfinished_run_stands_among_the_others(seeds: list[Path], here: Path, capsys: pytest.CaptureFixture[str]):
    (seeds[1] / "result.json").unlink()
    shutil.rmtree(seeds[1] / "evaluation-test")
    code, said, _ = call(capsys, "compare", *seeds)
    assert code == 0
    assert "zero and two" in said
    assert "one and two" not in said


def test_exactly_two_runs_are_compared_exactly(seeds: list[Path], capsys: pytest.CaptureFixture[str]):
    assert call(capsys, "compare", "--exact", *seeds)[::2] == (
        2,
        "--exact compares two runs, and 3 were given. Name two run folders.\n",
    )
