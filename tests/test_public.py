"""What `import candid` offers is documented, and five lines in a notebook are enough."""

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import draw

import candid

ERRORS = {"CandidError", "CheckpointError", "DataError", "InputError"}
TEN = sorted(set(candid.__all__) - ERRORS)
FUNCTIONS = [name for name in TEN if inspect.isfunction(getattr(candid, name))]

# What the docstring of a name says of shapes, units and sources.
SAID = {
    "Evaluation": ("N examples", "K = min(5, classes)"),
    "Recipe": ("unit",),
    "build_model": ("[N, in_channels, image_size, image_size]", "[N, num_classes]", "px", "The paper"),
    "compare": ("[0, 1]", "McNemar's exact test (1947)"),
    "evaluate": ("[0, 1]", "nats", "Wilson 1927"),
    "list_models": ("paper",),
    "load": ("[0, 1]", "arXiv:1706.04599"),
    "plan": ("bytes", "seconds"),
    "report": ("report.html",),
    "train": ("20 s", "3 %", "minutes"),
}


def documentation(name: str) -> str:
    return inspect.getdoc(getattr(candid, name)) or ""


def raised_by(name: str) -> set[str]:
    """The errors that a docstring names under Raises."""
    return set(re.findall(r"^    (\w+): ", documentation(name).partition("Raises:\n")[2], flags=re.MULTILINE))


def test_there_are_ten_names_and_the_errors():
    assert len(TEN) == 10
    assert candid.__all__ == sorted(candid.__all__)
    for name in candid.__all__:
        assert getattr(candid, name).__name__ == name
        assert re.search(rf"`{name}\b", str(candid.__doc__)), f"{name} is not told of in candid's docstring"
    assert all(issubclass(getattr(candid, name), candid.CandidError) for name in ERRORS)


def test_another_name_is_answered_with_those_that_there_are():
    with pytest.raises(AttributeError) as caught:
        _ = candid.trian
    assert str(caught.value) == f"module 'candid' has no attribute 'trian'; it has {', '.join(candid.__all__)}"


@pytest.mark.parametrize("name", TEN)
def test_every_name_says_shapes_units_and_source(name: str):
    for words in SAID[name]:
        assert words in documentation(name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_says_what_its_parameters_are(name: str):
    for parameter in inspect.signature(getattr(candid, name)).parameters:
        assert re.search(rf"\b{parameter}\b", documentation(name)), f"{name} does not say what {parameter} is"


def recipe(*assignments: str) -> candid.Recipe:
    return candid.Recipe().override(assignments)


MISTAKES: list[tuple[str, Callable[[Path], object], type[candid.CandidError]]] = [
    ("Recipe", lambda _: recipe("training.epoch=1"), candid.InputError),
    ("Recipe", lambda _: candid.Recipe.from_mapping({"seed": -1}), candid.InputError),
    ("Recipe", lambda _: candid.Recipe.from_toml(Path("nowhere.toml")), candid.InputError),
    ("build_model", lambda _: candid.build_model("lenett", 10), candid.InputError),
    ("train", lambda _: candid.train(recipe("model.name=lenett")), candid.InputError),
    ("train", lambda _: candid.train(recipe("data.name=empty")), candid.DataError),
    ("train", lambda _: candid.train(out="stopped", resume=True), candid.CheckpointError),
    ("plan", lambda _: candid.plan(recipe("limits.memory=1MiB")), candid.InputError),
    ("plan", lambda _: candid.plan(recipe("data.name=empty")), candid.DataError),
    ("evaluate", lambda run: candid.evaluate(run, "tset"), candid.InputError),
    ("evaluate", lambda run: candid.evaluate(run, data="empty"), candid.DataError),
    ("evaluate", lambda _: candid.evaluate("stopped"), candid.CheckpointError),
    ("report", lambda _: candid.report("nowhere"), candid.InputError),
    ("report", lambda _: candid.report("stopped"), candid.CheckpointError),
    ("compare", lambda run: candid.compare([run]), candid.InputError),
    ("compare", lambda run: candid.compare([run, "stopped"]), candid.CheckpointError),
    ("load", lambda _: candid.load("nowhere"), candid.InputError),
    ("load", lambda _: candid.load("stopped"), candid.CheckpointError),
]


@pytest.mark.parametrize(("name", "make", "kind"), MISTAKES)
def test_what_a_name_raises_is_documented(
    name: str, make: Callable[[Path], object], kind: type[candid.CandidError], run: Path, here: Path
):
    (here / "empty").mkdir()
    (here / "stopped").mkdir()
    (here / "stopped" / "recipe.toml").write_text(candid.Recipe().to_toml())  # of a run that ended before it saved
    with pytest.raises(kind):
        make(run)
    assert kind.__name__ in raised_by(name)


def test_no_error_is_documented_that_was_not_seen():
    seen = {(name, kind.__name__) for name, _, kind in MISTAKES} | {
        ("train", "Stopped")
    }  # tests/training/test_stops.py
    assert {(name, error) for name in TEN for error in raised_by(name)} == seen


def test_a_predictor_says_what_it_raises(run: Path, here: Path):
    predictor = candid.load(run)
    assert "Raises:\n    DataError:" in str(inspect.getdoc(predictor.predict))
    with pytest.raises(candid.DataError):
        predictor.predict("nowhere.png")


@pytest.mark.parametrize("first", ["candid.report.page", "candid.workflow", "candid.predict"])
def test_report_is_the_function_whatever_was_imported_before(first: str):
    code = f"import {first}\nimport candid\nprint(candid.report.__module__, candid.report.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "candid.workflow report\n"


def test_five_lines_are_enough(here: Path):
    """Those of candid's docstring, as a notebook runs them: what a line gives is shown."""
    code = re.findall(r"^    (.+)$", str(candid.__doc__), flags=re.MULTILINE)
    assert code[0] == "import candid"
    assert len(code) == 5
    draw("cross", 99, side=60).save(here / "holiday.jpg")
    names: dict[str, object] = {}
    exec("\n".join(code[:2]), names)
    evaluation, page, predictions = (eval(line, names) for line in code[2:])
    assert names["run"] == Path("runs/mlp-relu-fashion-mnist-mini")
    assert page == Path("runs/mlp-relu-fashion-mnist-mini/report.html")
    assert page.is_file()
    assert evaluation.accuracy > 0.5
    assert predictions[0].file == "holiday.jpg"
    assert all("<table>" in shown._repr_html_() for shown in (evaluation, predictions))
