"""Going on under bad circumstances: another recipe, missing or torn files, a disk that fails, a clock that jumps."""

import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest
from conftest import make_pictures, silent, small_recipe
from processes import command, outcome, start
from test_exactness import Killed, differences

import candid
from candid import durable
from candid.checkpoint import RunFolder
from candid.durable import FailPoint
from candid.errors import CheckpointError, DataError, InputError
from candid.recipe import Recipe
from candid.training import session as session_module
from candid.training.run import resume_run, train_run
from candid.training.session import Session
from candid.training.stopping import Stopped


@pytest.fixture(scope="module")
def recipe(pictures: Path) -> Recipe:
    return small_recipe(pictures, training__epochs=3)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(recipe, tmp_path_factory.mktemp("straight") / "run", reporter=silent()).path


def stopped_at(step: int, recipe: Recipe, out: Path) -> RunFolder:
    with pytest.raises(Stopped):
        train_run(recipe, out, last_step=step, reporter=silent())
    return RunFolder.open(out)


def test_fewer_epochs_than_are_begun_are_refused_and_change_nothing(recipe: Recipe, straight: Path, tmp_path: Path):
    run = stopped_at(9, recipe, tmp_path / "run")
    with pytest.raises(InputError) as caught:
        resume_run(run.path, run.recipe.replace({"training.epochs": 2}), {"training.epochs"}, reporter=silent())
    assert str(caught.value) == (
        f"training.epochs is 2, but {run.path} is in epoch 3; it must be at least 3. "
        "Use another --out for a shorter run."
    )
    assert differences(resume_run(run.path, reporter=silent()).path, straight) == []


def test_a_run_may_be_ended_after_the_epochs_that_it_has(recipe: Recipe, tmp_path: Path):
    run = stopped_at(8, recipe, tmp_path / "run")
    resume_run(run.path, run.recipe.replace({"training.epochs": 2}), {"training.epochs"}, reporter=silent())
    assert json.loads((run.path / "result.json").read_text())["steps"] == 8
    assert run.recipe.training.epochs == 2


def test_a_longer_run_killed_before_its_result_is_not_taken_for_finished(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = RunFolder.open(shutil.copytree(straight, tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(session_module, "finish_run", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            resume_run(run.path, run.recipe.replace({"training.epochs": 5}), {"training.epochs"}, reporter=silent())
    resume_run(run.path, reporter=silent())
    assert json.loads((run.path / "result.json").read_text())["steps"] == 20
    with pytest.raises(InputError, match="is finished; there is nothing to resume"):
        resume_run(run.path, reporter=silent())


def test_an_error_before_an_epochs_first_step_leaves_the_checkpoint_before_it_alone(tmp_path: Path):
    """That checkpoint knows its accuracy and that it is the best; the state at the time of the error does not."""
    pictures = make_pictures(tmp_path / "pictures", side=100)
    recipe = small_recipe(pictures, data__image_size=100, training__epochs=2, model__name="resnet20-cifar")
    original, calls = session_module.Session._train_epoch, []

    def fail_in_the_second(session: Session) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise DataError("A picture is gone.")
        original(session)

    for begin in (lambda: train_run(recipe, tmp_path / "run", reporter=silent()), None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session_module.Session, "_train_epoch", fail_in_the_second)
            with pytest.raises(DataError) as caught:
                begin() if begin else resume_run(tmp_path / "run", reporter=silent())
        assert str(caught.value) == (
            "A picture is gone.\nEverything up to step 4 of 8 is saved; when that is mended, "
            f"go on with `candid train --resume --out {tmp_path / 'run'}`."
        )
        calls[:] = [1]
        best = RunFolder.open(tmp_path / "run").load("best")
        assert (best.step, best.epoch) == (4, 1)
        assert best.validation_accuracy is not None


def test_the_only_checkpoint_is_not_lost_while_it_is_replaced(recipe: Recipe, straight: Path, tmp_path: Path):
    """An epoch's last step may be saved before its validation and again after it; the kill fell between two renames."""
    run = stopped_at(4, recipe, tmp_path / "run")
    (run.checkpoints / "step-00000004").rename(run.checkpoints / ".step-00000004.discarded")
    resumed: list[int] = []
    load = RunFolder.load_to_resume
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "load_to_resume", lambda run: resumed.append(1) or load(run))
        resume_run(run.path, reporter=silent())
    assert resumed == [1]
    assert differences(run.path, straight) == []


@pytest.mark.parametrize(("content", "reason"), [("{", "Expecting property name"), (None, "No such file")])
def test_a_damaged_record_of_the_beginning_is_named(content: str | None, reason: str, recipe: Recipe, tmp_path: Path):
    run = stopped_at(1, recipe, tmp_path / "run")
    place = run.path / "environment.json"
    place.unlink()
    if content is not None:
        place.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        resume_run(run.path, reporter=silent())
    text = re.sub(r"\(.*\)", "(REASON)", str(caught.value))
    assert text == f"{place} cannot be read (REASON). Use a good copy of the run, or train it again."
    assert reason in str(caught.value)


def test_a_checkpoint_under_another_name_is_passed_over(recipe: Recipe, straight: Path, tmp_path: Path):
    run = stopped_at(6, recipe, tmp_path / "run")
    newest, older = (run.checkpoints / name for name in ("step-00000006", "step-00000004"))
    newest.rename(run.checkpoints / "aside")
    older.rename(newest)
    (run.checkpoints / "aside").rename(older)
    wrong = "{} holds {}; expected what its name says. Name it so again."
    assert run.verify() == {
        "step-00000004": wrong.format(older, newest.name),
        "step-00000006": wrong.format(newest, older.name),
    }
    with pytest.raises(CheckpointError) as caught:
        resume_run(run.path, reporter=silent())
    assert str(caught.value) == (
        f"{run.path} has no checkpoint to go on from. Use another --out, and train from the start.\n"
        f"  {wrong.format(newest, older.name)}\n  {wrong.format(older, newest.name)}"
    )


def torn_log(folder: Path, setting: str) -> None:
    """In a process of its own."""
    durable.fail_point = FailPoint(setting)
    durable.append_line(folder / "log.jsonl", json.dumps({"number": 2}))


def test_a_line_is_in_a_log_or_is_passed_over(tmp_path: Path):
    whole = []
    for call in range(1, 9):
        folder = tmp_path / str(call)
        folder.mkdir()
        durable.append_line(folder / "log.jsonl", json.dumps({"number": 1}))
        code = outcome(start(torn_log, folder, f"kill:{call}"))
        durable.append_line(folder / "log.jsonl", json.dumps({"number": 3}))
        text = (folder / "log.jsonl").read_text()
        whole.append([json.loads(line)["number"] for line in durable.whole_lines(text)])
        if code == 0:
            break
    assert whole == [[1, 3], [1, 3], [1, 3], [1, 2, 3], [1, 2, 3]]  # the third leaves half a line, the fourth no fsync


def fail_from(call: int, arguments: list[str], said: Path) -> None:
    """In a process of its own: the command, for which everything is read-only from its call number `call` on."""
    durable.fail_point = FailPoint(f"readonly:{call}")
    command(arguments, said)


def test_a_folder_that_becomes_read_only_is_said_and_costs_nothing(recipe: Recipe, straight: Path, tmp_path: Path):
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    out, said = tmp_path / "run", tmp_path / "said.txt"
    first = ["train", str(tmp_path / "recipe.toml"), "--out", str(out), "--device", "cpu"]
    again = ["train", "--resume", "--out", str(out), "--device", "cpu"]
    rest = "cannot be used: Read-only file system. Expected a writable place with room; try another."
    assert outcome(start(fail_from, 1, first, said)) == 1
    assert said.read_text().splitlines()[-1] == f"{tmp_path / '.run.partial'} {rest}"
    assert not out.exists()
    assert outcome(start(fail_from, 120, first, said)) == 1
    text = re.sub(r"[\d,.]+ MiB", "SIZE", said.read_text().splitlines()[-1])
    place, _, text = text.partition(" could not be written ")
    assert place.startswith(str(out))
    assert text == (
        "(Read-only file system); a checkpoint needs SIZE, and SIZE are free there. Earlier checkpoints are whole: "
        f"make room, then `candid train --resume --out {out}`."
    )
    assert outcome(start(fail_from, 1, again, said)) == 1
    assert said.read_text().splitlines()[-1] == f"{out / '.latest.json.partial'} {rest}"
    assert set(RunFolder.open(out).verify().values()) == {None}
    assert outcome(start(command, again, said)) == 0
    assert differences(out, straight) == []


def train_while_the_clock_jumps(recipe: Recipe, out: Path) -> None:
    """In a process of its own: the time of day goes back, and jumps by hours."""
    rng = random.Random(0)
    time.time = lambda: 1e9 - rng.uniform(0, 1e5)
    for step in (3, None):
        if out.exists():
            resume_run(out, last_step=step, reporter=silent())
        else:
            with pytest.raises(Stopped):
                train_run(recipe.replace({"limits.save_every": "30s"}), out, last_step=step, reporter=silent())


def test_a_clock_that_jumps_breaks_nothing(recipe: Recipe, straight: Path, tmp_path: Path):
    assert outcome(start(train_while_the_clock_jumps, recipe, tmp_path / "run")) == 0
    assert differences(tmp_path / "run", straight) == ["recipe", "best state", "latest state"]  # save_every
    assert all(0 < float(row["seconds"]) < 60 for row in RunFolder.open(tmp_path / "run").history)


def test_durations_are_measured_with_clocks_that_never_jump():
    sources = Path(candid.__file__).parent.rglob("*.py")
    assert [str(path) for path in sources if re.search(r"\btime\.time\(|from time import", path.read_text())] == []


def test_a_seed_cannot_change_even_if_named(straight: Path):
    with pytest.raises(InputError) as caught:
        resume_run(straight, RunFolder.open(straight).recipe.replace({"seed": 4}), {"seed"}, reporter=silent())
    assert str(caught.value) == (
        f"{straight} has another recipe; a run goes on by its own. Leave these out, or name them with --set (data, "
        "model and seed cannot change; use another --out for those):\n  seed: 0 in the run, 4 now"
    )
