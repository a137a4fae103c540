"""A save is all or nothing: die, or find the disk full or read-only, at each call of it that touches the disk."""

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import silent, small_recipe
from processes import outcome, start
from rich.console import Console
from test_checkpoint import RECIPE, STATE, checkpoint

from candid import durable
from candid.checkpoint import RunFolder, is_finite
from candid.comparison import compare_runs
from candid.durable import FailPoint
from candid.errors import CandidError, CheckpointError
from candid.training import saving
from candid.training.progress import Reporter
from candid.training.run import resume_run, train_run
from candid.training.saving import Saver
from candid.training.stopping import Stopped

MOST_CALLS = 80
# What was saved before, as (step, is_best), and the save that is stopped: a first one; a later one; one after which an
# old checkpoint is dropped; one that becomes the best and sets the old best free; one that replaces its own step.
SAVES: dict[str, tuple[list[tuple[int, bool]], tuple[int, bool]]] = {
    "first": ([], (10, True)),
    "later": ([(10, True)], (20, False)),
    "rotation": ([(10, True), (20, False), (30, False)], (40, False)),
    "best": ([(10, True), (20, False), (30, False)], (40, True)),
    "again": ([(10, True), (20, False)], (20, True)),
}


def save_to(out: Path, setting: str | None, step: int, is_best: bool) -> None:
    """In a process of its own: the save, failing as `setting` says."""
    durable.fail_point = FailPoint(setting)
    RunFolder(out).save(checkpoint(step), STATE, is_best=is_best)


def prepare(out: Path, saves: list[tuple[int, bool]]) -> RunFolder:
    run = RunFolder.create(out, RECIPE, {"device": "cpu"})
    for step, is_best in saves:
        run.save(checkpoint(step), STATE, is_best=is_best)
    return run


def check_state(run: RunFolder, old_step: int | None, new: tuple[int, bool]) -> int | None:
    """The step that the run stands at: the old or the new one, verified in every file, with nothing left over."""
    try:
        found, state, problems = run.load_to_resume()
    except CheckpointError:
        assert old_step is None
        assert list(run.checkpoints.iterdir()) == []
        return None
    assert found.step in (old_step, new[0])
    assert problems == []
    assert set(run.verify().values()) == {None}
    for name, value in checkpoint(found.step).weights.items():
        assert torch.equal(found.weights[name], value)
    assert state.history == STATE.history
    assert run.load("latest").step == found.step
    best_steps = {10} if found.step == old_step else set[int]()
    assert run.load().step in best_steps | ({new[0]} if found.step == new[0] and new[1] else {10})
    assert not list(run.path.rglob(".*"))
    return found.step


@pytest.mark.parametrize("kind", SAVES)
def test_a_process_killed_at_any_call_leaves_the_old_state_or_the_new(kind: str, tmp_path: Path):
    before, new = SAVES[kind]
    prepare(tmp_path / "before", before)
    old_step, reached = before[-1][0] if before else None, []
    for call in range(1, MOST_CALLS):
        out = shutil.copytree(tmp_path / "before", tmp_path / f"run-{call}")
        code = outcome(start(save_to, out, f"kill:{call}", *new))
        assert code in (0, -9)
        reached.append(check_state(RunFolder.open(out), old_step, new))
        shutil.rmtree(out)
        if code == 0:
            break
    else:
        raise AssertionError(f"the save has more than {MOST_CALLS} calls")
    assert len(reached) > 20
    assert reached == sorted(reached, key=lambda step: step == new[0])  # once it is there, it stays
    assert reached[0] == old_step
    assert reached[-1] == new[0]


def problem_of_saving(run: RunFolder, step: int) -> str | None:
    saver = Saver(run)
    saver.save(checkpoint(step), STATE, is_best=False)
    try:
        saver.wait()
    except CandidError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("how", "reason"), [("full", "No space left on device"), ("readonly", "Read-only file system")]
)
def test_a_disk_that_fails_costs_no_checkpoint_and_is_loud(
    how: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 3 * 2**20))  # pyright: ignore
    call = 0
    for call in range(1, MOST_CALLS):
        run = prepare(tmp_path / f"run-{call}", [(10, True), (20, False)])
        monkeypatch.setattr(durable, "fail_point", FailPoint(f"{how}:{call}"))
        problem = problem_of_saving(run, 30)
        monkeypatch.setattr(durable, "fail_point", FailPoint(None))
        check_state(run, 20, (30, False))
        if problem is None:
            break
        place, _, rest = problem.partition(" could not be written ")
        assert place.startswith(str(run.path))
        assert rest == (
            f"({reason}); a checkpoint needs 0.2 MiB, and 3.0 MiB are free there. Earlier checkpoints are whole: "
            f"make room, then `candid train --resume --out {run.path}`."
        )
    assert call > 20


def damage_byte(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def zero_tail(data: bytearray, rng: random.Random) -> None:
    size = len(data)
    start = rng.randrange(max(0, size - 4096), size)
    while not any(data[start:]):  # zeros over zeros are no damage
        start -= 1
    data[start:] = bytes(size - start)


@pytest.mark.parametrize(("damage", "times"), [(damage_byte, 1000), (truncate, 1000), (zero_tail, 200)])
def test_every_damage_is_detected_and_named(
    damage: Callable[[bytearray, random.Random], None], times: int, tmp_path: Path
):
    run, rng = prepare(tmp_path / "run", [(10, True), (20, False)]), random.Random(0)
    files = sorted((run.checkpoints / "step-00000020").iterdir())
    assert [path.name for path in files] == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    originals = {path: path.read_bytes() for path in files}
    for number in range(times):
        path = files[number % len(files)]
        data = bytearray(originals[path])
        damage(data, rng)
        path.write_bytes(data)
        problem = run.verify()["step-00000020"]
        assert problem is not None, f"{damage.__name__} of {path.name}, number {number}, went unnoticed"
        assert str(path if path.name != "manifest.json" else path.parent) in problem
        path.write_bytes(originals[path])
    assert set(run.verify().values()) == {None}


def test_swapped_files_are_detected_and_the_older_checkpoint_is_used(tmp_path: Path):
    run = prepare(tmp_path / "run", [(10, True), (20, False)])
    newest = run.checkpoints / "step-00000020"
    shutil.copyfile(run.checkpoints / "step-00000010" / "model.safetensors", newest / "model.safetensors")
    found, _, problems = run.load_to_resume()
    assert found.step == 10
    assert problems == [
        f"{newest / 'model.safetensors'} is not what was saved (its SHA-256 differs). "
        "Use a good copy of the run, or train it again."
    ]


def test_resuming_says_that_it_passed_a_damaged_checkpoint_over(pictures: Path, tmp_path: Path):
    recipe = small_recipe(pictures, training__epochs=3)
    straight = train_run(recipe, tmp_path / "straight", reporter=silent())
    with pytest.raises(Stopped):
        train_run(recipe, tmp_path / "run", last_step=6, reporter=silent())
    damaged = tmp_path / "run" / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    data = bytearray(damaged.read_bytes())
    damage_byte(data, random.Random(0))
    damaged.write_bytes(data)
    heard = io.StringIO()
    run = resume_run(tmp_path / "run", reporter=Reporter(Console(file=heard, soft_wrap=True)))
    said = heard.getvalue().splitlines()
    assert said[said.index("Resumed at step 4, after 1 of 3 epochs.") - 1] == (
        f"Passed over: {damaged} is not what was saved (its SHA-256 differs). "
        "Use a good copy of the run, or train it again."
    )
    assert compare_runs(straight, run).are_equal


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path):
    run, other = prepare(tmp_path / "run", []), RECIPE.replace({"model.name": "lenet"})
    stranger = RunFolder.create(tmp_path / "other", other, {})
    stranger.save(saving.replace(checkpoint(10), recipe=other), STATE, is_best=False)
    place = shutil.copytree(stranger.checkpoints / "step-00000010", run.checkpoints / "step-00000010")
    with pytest.raises(CheckpointError) as caught:
        run.load_to_resume()
    assert str(caught.value) == (
        f"{run.path} has no checkpoint to go on from. Use another --out, and train from the start.\n"
        f"  {place} is of lenet on {RECIPE.data.name}; expected lenet-bn on {RECIPE.data.name}, as the run's recipe "
        "says. Move it to its own run."
    )


def test_values_that_are_not_finite_are_refused_when_saved_and_when_read(tmp_path: Path):
    run = prepare(tmp_path / "run", [(10, True)])
    broken = checkpoint(20)
    broken.weights["norm1.running_var"][3] = float("nan")
    with pytest.raises(CandidError) as caught:
        Saver(run).save(broken, STATE, is_best=False)
    assert str(caught.value) == (
        "Training diverged: norm1.running_var holds a value that is not finite; expected numbers. Nothing of it was "
        "saved. Lower optimizer.rate, or set schedule.warmup."
    )
    run.save(broken, STATE, is_best=False)  # as an older program may have done it
    assert run.verify() == {
        "step-00000010": None,
        "step-00000020": f"{run.checkpoints / 'step-00000020' / 'model.safetensors'} holds values that are not finite, "
        "in norm1.running_var; expected numbers. Use a good copy of the run, or train it again.",
    }


def test_values_whose_sum_is_too_large_are_finite():
    large = torch.full((3,), 3e38)
    assert large.sum().isinf()
    assert is_finite(large)
    assert not is_finite(torch.tensor([1.0, float("inf"), -float("inf")]))
    assert not is_finite(torch.tensor([1.0, float("nan")]))
