import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from conftest import draw, make_pictures
from documents import find_blocks, run_command

from candid.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return [block.content for block in find_blocks(README) if block.language == language]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README supposes it."""
    folder = tmp_path_factory.mktemp("reader")
    make_pictures(folder / "pictures", per_class=10)
    draw("cross", 99, side=60).save(folder / "holiday.jpg")
    return folder


def test_its_commands_run_in_their_order(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    for command in blocks("sh")[1].splitlines():
        run_command(command)
    assert len((place / "predictions.csv").read_text().splitlines()) == 31
    begin, resume, verify, compare, together = blocks("sh")[2].splitlines()
    run_command(begin.replace("--max-time 30m", "--max-time 0.001s"))  # as if the half hour were over at once
    assert re.search(r"The time is up: step 1 of \d+ is saved", capsys.readouterr().err)
    for command in (resume, verify, compare):
        run_command(command)
    assert capsys.readouterr().out.endswith("The runs are equal.\n")
    launcher, arguments = together.split(" -m candid train ")  # run in tests/training/test_ranks.py
    assert launcher == "torchrun --nproc-per-node 2"
    typer.main.get_command(app).commands["train"].make_context("train", arguments.split())


def test_its_commands_about_settings_run(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    for command in blocks("sh")[4].splitlines():
        run_command(command)
    assert 'precision = "fp32"' in (place / "runs" / "exactly" / "recipe.toml").read_text()


def test_its_commands_to_look_at_runs_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place)
    evaluate, compare, seeds, audit = blocks("sh")[5].splitlines()
    run_command(evaluate)
    run_command(compare)
    assert (place / "comparison.html").is_file()
    capsys.readouterr()
    run_command(seeds)
    assert "3 runs that differ in the seed alone" in capsys.readouterr().out
    run_command(audit)
    assert (place / "audits" / "pictures" / "audit.html").is_file()


def test_its_plans_fit_and_are_kept(place: Path):
    said = ""
    for command in blocks("sh")[
        3
    ].splitlines():  # each in a process of its own: this one may hold more than 2 GiB by now
        arguments = [sys.executable, "-m", *command.split()]
        done = subprocess.run(arguments, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert "2GiB is read as 2,147,483,648 bytes, 2.00 GiB." in said
    assert (place / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert (place / "runs" / "within" / "result.json").is_file()


def test_its_python_runs(place: Path):
    done = subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"holiday\.jpg (circle|cross|stripes) [01]\.\d+\n", done.stdout)


def test_its_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_its_tree_is_the_tree():
    named: set[str] = set()
    for line in README.split("```\ncandid/\n")[1].split("```")[0].splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split()
        named |= {("candid/" if line.startswith("  ") else "") + name.rstrip("/") for name in names}
    for name in named:
        assert (ROOT / name).exists(), name
    hidden = {"__init__.py", "__main__.py", "__pycache__"}
    assert {f"candid/{path.name}" for path in (ROOT / "candid").iterdir() if path.name not in hidden} <= named
