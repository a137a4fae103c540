"""candid verify, candid compare, and what `--resume` refuses: whole texts and exit codes of the real commands."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import call, small_recipe
from processes import outcome, start, train_or_resume

from candid.checkpoint import RunFolder
from candid.training.loop import Trainer
from candid.training.progress import Reporter
from candid.training.run import resume_run, train_run
from candid.training.stopping import Stopped


@pytest.fixture
def stopped(pictures: Path, tmp_path: Path) -> Path:
    """A run that stands at step 5 of 16."""
    with pytest.raises(Stopped):
        train_run(small_recipe(pictures), tmp_path / "stopped", last_step=5, reporter=Reporter.silent())
    return tmp_path / "stopped"


def test_verify_names_every_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]):
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    code, said, _ = call(capsys, "verify", run)
    assert code == 0
    assert said.splitlines() == [f"{name}: every file is as it was saved" for name in names]


def test_verify_finds_a_changed_byte(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = RunFolder(shutil.copytree(run, tmp_path / "copy"))
    newest = sorted(copy.checkpoints.iterdir())[-1]
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[1000] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    code, said, complaint = call(capsys, "verify", copy.path)
    assert code == 4
    assert said.splitlines()[-1] == (
        f"{newest.name}: {newest / 'model.safetensors'} is not what was saved (its SHA-256 differs). "
        "Use a good copy of the run, or train it again."
    )
    assert complaint == "Not every checkpoint is whole; `--resume` goes on from the newest that is.\n"


def test_verify_tries_to_resume_and_leaves_the_run_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, said, _ = call(capsys, "verify", run, "--resume-test", "--device", "cpu")
    assert code == 0
    assert said.splitlines()[-1] == "8 steps straight and 4 + 4 interrupted give the same bits."
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_compared_with_its_repetition_is_equal(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train_run(small_recipe(pictures), tmp_path / "again", reporter=Reporter.silent())
    number = len(list((run / "checkpoints").iterdir()))
    assert call(capsys, "compare", "--exact", run, tmp_path / "again") == (
        0,
        f"Checkpoints that both kept, equal in every bit: {number} of {number}.\nThe runs are equal.\n",
        "",
    )


def test_a_run_compared_with_another_says_from_where_they_differ(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = train_run(small_recipe(pictures, seed=1), tmp_path / "other", reporter=Reporter.silent())
    both = sorted({p.name for p in (run / "checkpoints").iterdir()} & {p.name for p in other.checkpoints.iterdir()})
    assert call(capsys, "compare", "--exact", run, other.path) == (
        1,
        f"seed: 0 in {run}, 1 in {other.path}\n"
        f"Checkpoints that both kept, equal in every bit: 0 of {len(both)}.\n"
        f"The runs differ: results.csv from epoch 1 on, checkpoints from {both[0]} on.\n",
        "",
    )


@pytest.mark.parametrize("arguments", [["verify"], ["compare", "--exact"]])
def test_a_run_that_is_not_there_is_named_with_the_nearest(
    arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]
):
    wrong = run.with_name("shape")
    others = [run] if "compare" in arguments else []
    code, _, complaint = call(capsys, *arguments, wrong, *others)
    assert (code, complaint) == (2, f"{wrong} does not exist; expected a run folder. Did you mean shapes?\n")


def test_another_recipe_is_refused_with_the_list_of_differences(stopped: Path, capsys: pytest.CaptureFixture[str]):
    code, _, complaint = call(capsys, "train", "--resume", "--out", stopped, "--seed", "3", "--precision", "bf16")
    assert code == 2
    assert complaint == (
        f"{stopped} has another recipe; a run goes on by its own. Leave these out, or name them with --set "
        "(data, model and seed cannot change; use another --out for those):\n"
        "  seed: 0 in the run, 3 now\n"
        "  training.precision: 'fp32' in the run, 'bf16' now\n"
    )
    assert RunFolder.open(stopped).recipe.seed == 0


def test_a_change_that_is_named_is_made_and_said(stopped: Path, capsys: pytest.CaptureFixture[str]):
    code, _, said = call(capsys, "train", "--resume", "--out", stopped, "--set", "optimizer.rate=0.001")
    assert code == 0
    assert "Changed: optimizer.rate was 0.003, is 0.001.\n" in said
    assert "Resumed at step 5, after 1 of 4 epochs.\n" in said
    assert RunFolder.open(stopped).recipe.optimizer.rate == 0.001
    resumes = [json.loads(line) for line in (stopped / "resumes.jsonl").read_text().splitlines()]
    assert [resume["ranks"] for resume in resumes] == [1]


def test_a_model_cannot_change_even_if_named(stopped: Path, capsys: pytest.CaptureFixture[str]):
    code, _, complaint = call(capsys, "train", "--resume", "--out", stopped, "--set", "model.name=lenet-bn")
    assert code == 2
    assert "  model.name: 'lenet-relu' in the run, 'lenet-bn' now\n" in complaint


def test_a_finished_run_goes_on_for_more_epochs(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The rate of a one-cycle schedule depends on the number of epochs, so only a constant one gives the same bits."""
    constant = {"schedule__name": "constant", "schedule__warmup": 0.0}
    short = train_run(small_recipe(pictures, **constant), tmp_path / "short", reporter=Reporter.silent()).path
    long = train_run(
        small_recipe(pictures, training__epochs=6, **constant), tmp_path / "long", reporter=Reporter.silent()
    ).path
    code, _, _ = call(capsys, "train", "--resume", "--out", short, "--epochs", 6)
    assert code == 0
    assert call(capsys, "compare", "--exact", short, long)[0] == 0


def test_fewer_epochs_than_are_done_are_refused(stopped: Path, capsys: pytest.CaptureFixture[str]):
    assert outcome(start(train_or_resume, RunFolder.open(stopped).recipe, stopped)) == 0
    code, _, complaint = call(capsys, "train", "--resume", "--out", stopped, "--epochs", 2)
    assert code == 2
    assert complaint == (
        f"{stopped} is finished; there is nothing to resume. "
        f"Use another --out to train again, or more --epochs than 4; `candid report {stopped}` shows it.\n"
    )


def test_a_line_torn_by_a_kill_breaks_neither_the_report_nor_a_resume(
    stopped: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("resumes.jsonl", "test_looks.jsonl"):
        with (stopped / name).open("a") as file:
            file.write('{"time": "2026-01-01T00:0')
    resume_run(stopped, reporter=Reporter.silent())
    assert call(capsys, "report", stopped)[0] == 0
    assert "2026-01-01T00:0" not in (stopped / "report.html").read_text()
    looks = (stopped / "test_looks.jsonl").read_text().splitlines()
    assert json.loads(looks[-1])["accuracy"] is not None


def test_a_checkpoint_that_a_pointer_names_and_that_is_gone_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = RunFolder(shutil.copytree(run, tmp_path / "copy"))
    best = json.loads((copy.path / "best.json").read_text())["checkpoint"]
    shutil.rmtree(copy.checkpoints / best)
    code, said, _ = call(capsys, "verify", copy.path)
    assert code == 4
    assert (
        f"best.json: {copy.path / 'best.json'} names {best}, which is missing. "
        "Use a good copy of the run, or train it again."
    ) in said.splitlines()


def test_verify_says_that_nothing_is_whole_or_nothing_is_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    copy = RunFolder(shutil.copytree(run, tmp_path / "copy"))
    for path in copy.checkpoints.glob("*/state.json"):
        path.unlink()
    code, said, complaint = call(capsys, "verify", copy.path)
    assert (code, complaint) == (4, "No checkpoint is whole. Use a good copy of the run, or train it again.\n")
    assert said.splitlines()[0].endswith("state.json is missing. Use a good copy of the run, or train it again.")
    shutil.rmtree(copy.checkpoints)
    for name in ("best.json", "latest.json"):
        (copy.path / name).unlink()
    text = f"{copy.path} has no checkpoint yet. Run `candid train --resume --out {copy.path}`.\n"
    assert call(capsys, "verify", copy.path) == (4, "", text)


def test_a_damaged_checkpoint_is_not_called_equal(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    copy = RunFolder(shutil.copytree(run, tmp_path / "copy"))
    place = sorted(copy.checkpoints.glob("*/optimizer.safetensors"))[0]
    place.write_bytes(place.read_bytes()[:-1] + b"x")
    assert call(capsys, "compare", "--exact", run, copy.path) == (
        4,
        "",
        f"{place} is not what was saved (its SHA-256 differs). Use a good copy of the run, or train it again.\n",
    )


def test_runs_without_anything_to_compare_are_not_called_equal(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one, other = (RunFolder.create(tmp_path / name, RunFolder(run).recipe, {}).path for name in ("one", "other"))
    assert call(capsys, "compare", "--exact", one, other) == (
        4,
        "",
        f"{one} and {other} have nothing to compare: no finished epoch, and no checkpoint that both kept. "
        "Train them on.\n",
    )


def test_a_training_that_does_not_resume_exactly_is_found_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # --resume-test needs more epochs and more time than this run has.
    few = {"training__epochs": 1, "training__batch_size": 40, "limits__max_time": "0.001s"}
    with pytest.raises(Stopped):
        train_run(small_recipe(pictures, **few), tmp_path / "run", reporter=Reporter.silent())
    assert call(capsys, "verify", tmp_path / "run", "--resume-test", "--device", "cpu")[0] == 0
    restore = Trainer.restore

    def forget_momentum(trainer: Trainer, *arguments: Any) -> None:
        restore(trainer, *arguments)
        trainer.optimizer.state.clear()

    monkeypatch.setattr(Trainer, "restore", forget_momentum)
    assert call(capsys, "verify", tmp_path / "run", "--resume-test", "--device", "cpu")[::2] == (
        4,
        f"After 8 steps, the recipe of {tmp_path / 'run'} gives other weights where it is interrupted half-way than "
        "where it is not; expected the same bits. Set training.deterministic=true.\n",
    )
