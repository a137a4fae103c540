"""CONTRIBUTING.md is followed to the letter, in a copy of the tree."""

import filecmp
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from documents import Block, find_blocks, patched

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
COPIED = ("candid", "benchmarks", "tests", "docs", "pyproject.toml")
BY_HAND = {"candid/models/toy.py", "candid/models/__init__.py", "tests/models/test_toy.py"}
GENERATED = {"candid/models/table.csv", "docs/models.md"}


def blocks(heading: str) -> list[Block]:
    """The blocks of a section."""
    return find_blocks(TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0])


def place_of(before: str) -> str:
    """The file that the text before a block names last."""
    return re.findall(r"`([\w/]+\.py)`", before)[-1]


def files_of(tree: Path) -> set[str]:
    """The files of a tree that are kept, those of runs and caches aside."""
    found = (path.relative_to(tree) for name in COPIED for path in [tree / name, *(tree / name).rglob("*")])
    return {path.as_posix() for path in found if (tree / path).is_file() and not {"__pycache__"} & set(path.parts)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which the toy was added as the text says, up to its commands."""
    copy = tmp_path_factory.mktemp("contributor") / "candid"
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    for before, language, content in blocks("Add a network in fifteen minutes"):
        if language in ("python", "diff"):
            path = copy / place_of(before)
            path.write_text(content if language == "python" else patched(path.read_text(), content))
    return copy


def run(command: str, tree: Path) -> str:
    """What a command prints, with the candid of the tree."""
    program, *arguments = command.split()
    module = ["-m", "candid"] if program == "candid" else []
    assert module or program == "python"
    environment = {key: value for key, value in os.environ.items() if key != "CANDID_CACHE_OWNER"}  # see conftest.py
    environment["PYTHONPATH"] = str(tree)
    done = subprocess.run(
        [sys.executable, *module, *arguments], cwd=tree, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_network_is_added_in_three_files(tree: Path):
    tables, models, train, tests = blocks("Add a network in fifteen minutes")[-1][2].splitlines()
    assert run(tables, tree).endswith("networks: candid/models/table.csv, docs/models.md\n")
    assert run(models, tree).startswith("toy: Toy: two convolutions, the mean of each map, and a linear layer;")
    assert "\n  toy " in run("candid models", tree)
    run(train, tree)
    assert (tree / "runs" / "toy" / "result.json").is_file()
    assert re.search(r"= \d+ passed, \d+ deselected in ", run(tests, tree))
    ours, theirs = files_of(ROOT), files_of(tree)
    changed = {name for name in ours & theirs if not filecmp.cmp(ROOT / name, tree / name, shallow=False)}
    assert changed | (ours ^ theirs) == BY_HAND | GENERATED


def test_what_is_written_passes_the_linter(tree: Path):
    for command in ("format --check", "check"):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command.split(), *sorted(BY_HAND)], cwd=tree, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_a_network_whose_count_is_nowhere_is_noticed(tree: Path):
    own = tree / "tests" / "models" / "test_toy.py"
    text = own.read_text()
    own.write_text(text.replace("1_418", "1418"))
    with pytest.raises(AssertionError, match=r"test_toy\.py does not say that toy has 1_418 trained values"):
        run("python -m pytest tests/models/test_model_parameters.py -k toy", tree)
    own.write_text(text)


def test_the_set_up_is_what_make_does():
    environment, activate, install = blocks("Set up in three lines")[0][2].splitlines()
    makefile = (ROOT / "Makefile").read_text()
    assert environment == "python3 -m venv .venv"
    assert activate == ". .venv/bin/activate"
    assert install == "pip install --editable '.[dev]'"
    assert "VENV := .venv" in makefile
    assert "$(PYTHON) -m venv $(VENV)\n" in makefile
    assert "--editable '.[dev]'" in makefile
    assert "dev" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_its_make_targets_and_files_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", TEXT, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    paths = set(re.findall(r"\b(?:candid|tests|docs)/[\w/]+\.\w+|\.ci/\w+", TEXT))
    assert len(paths) > 5
    for path in paths - BY_HAND:
        assert (ROOT / path).exists(), path
