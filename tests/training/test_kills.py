"""kill -9 at random moments loses at most what was not saved, and changes nothing. `make long` kills 300 times."""

import contextlib
import random
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from conftest import small_recipe
from processes import kill, outcome, send, start, train_or_resume

from candid.checkpoint import RunFolder
from candid.comparison import compare_runs
from candid.recipe import Recipe

MOST_STARTS_OF_ONE_RUN = 60


def is_saving(out: Path, since_ns: int) -> bool:
    """Whether a save is unfinished; those that an earlier process was killed in are older than `since_ns`."""
    with contextlib.suppress(FileNotFoundError):  # gone while it was looked at: that save is finished
        unfinished = [*out.rglob(".*.partial"), *out.parent.glob(".*.partial")]
        return any(path.stat().st_mtime_ns > since_ns for path in unfinished)
    return False


def wait_for_a_save(process: ForkServerProcess, out: Path, since_ns: int, rng: random.Random) -> None:
    """Hold the process at random moments until one of them is inside a save; it is left held there, or has ended.

    Moments that are not chosen say little: a run is in saves for half of its time on one machine, for 4 % on another.
    """
    while process.is_alive():
        send(process, signal.SIGSTOP)
        if is_saving(out, since_ns):
            return
        send(process, signal.SIGCONT)
        process.join(rng.uniform(0, 0.01))


def kill_until_finished(recipe: Recipe, out: Path, rng: random.Random, kills: list[bool]) -> None:
    """Start and kill until the run gets through, every second time in a save; notes each time whether it was in one."""
    for number in range(MOST_STARTS_OF_ONE_RUN):
        started_ns = time.time_ns()
        process = start(train_or_resume, recipe, out)
        process.join(rng.uniform(0.2, 1.6) * (1 + number / 10))  # a busy machine may need the longest just to start
        if number % 2 == 0:
            wait_for_a_save(process, out, started_ns, rng)
        if process.exitcode is not None:
            assert process.exitcode == 0
            return
        kill(process)
        kills.append(is_saving(out, started_ns))
    raise AssertionError(f"{out} was never finished")


def finish_killed_runs(pictures: Path, folder: Path, num_kills: int) -> None:
    recipe = small_recipe(
        pictures,
        augmentation__crop_padding=2,
        augmentation__mixup=0.4,
        training__epochs=8,
        training__ema_decay=0.9,
        model__name="lenet-bn",
        limits__save_every="1step",
    )
    assert outcome(start(train_or_resume, recipe, folder / "straight")) == 0
    straight, rng, kills = RunFolder.open(folder / "straight"), random.Random(0), []
    began_at_s, number = time.perf_counter(), 0
    while len(kills) < num_kills:
        number += 1
        killed = folder / f"killed-{number}"
        kill_until_finished(recipe, killed, rng, kills)
        found = compare_runs(straight, RunFolder.open(killed))
        assert found.are_equal, found
        assert found.equal_checkpoints == sorted(path.name for path in straight.checkpoints.iterdir())
        assert (killed / "best.json").read_text() == (straight.path / "best.json").read_text()
        assert not list(killed.rglob(".*.partial"))
    share = sum(kills) / len(kills)
    seconds = time.perf_counter() - began_at_s
    print(f"{len(kills)} kills, {share:.0%} inside a save, {number} runs equal, {seconds:.0f} s")
    assert share >= 0.4, "too few kills fell inside a save to say anything about saves"


def test_kills_change_no_bit(pictures: Path, tmp_path: Path):
    finish_killed_runs(pictures, tmp_path, num_kills=50)


@pytest.mark.long
def test_three_hundred_kills_change_no_bit(pictures: Path, tmp_path: Path):
    finish_killed_runs(pictures, tmp_path, num_kills=300)
