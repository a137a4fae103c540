"""A data worker that dies or is stopped: said within seconds, saved, nothing left behind, and resumed to the same bits.

The runs stream small pictures through two workers, in processes of their own.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_pictures, small_recipe
from processes import command, has_children_left, kill, outcome, start, train_or_resume
from torch.utils.data import DataLoader, Dataset

from candid.checkpoint import RunFolder
from candid.comparison import compare_runs
from candid.data import loading, picture_cache, workers
from candid.errors import DataError
from candid.recipe import Recipe
from candid.training import session

TIMEOUT_S = 2
LIMIT_S = 10
DIED = (
    "A process that reads pictures died (exit code -9); expected all of them to live. See whether memory ran out: the "
    "system then kills processes, with exit code -9."
)
SILENT = (
    "The processes that read pictures gave no batch for 2 s; expected one. See whether the disk hangs, or somebody "
    "stopped them."
)


class Broken(Dataset[int]):
    """What goes wrong with its second example: nothing, an error, or the end of the process that reads it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __getitem__(self, index: int) -> int:
        if index == 1 and self.how == "error":
            raise RuntimeError("no example 1")
        if index == 1 and self.how == "end":
            os._exit(7)
        return index


def streaming(target: Callable[..., None], *arguments: object) -> None:
    """In a process of its own: call `target` where two workers stream even small pictures."""
    loading.MAX_SIDE_IN_MEMORY_PX, picture_cache.MAX_BYTES = 0, 0
    loading._num_workers, workers.TIMEOUT_S = lambda: 2, TIMEOUT_S
    target(*arguments)


def hit_a_worker(number: int, moment: str, arguments: list[str], said: Path) -> None:
    """The command; a worker gets a signal while it reads for training or validation, or while a step is computed."""
    mark, read, forward = said.parent / "hit", loading._Pictures._read, session.Trainer.forward

    def hit(process_id: int) -> None:
        mark.write_text(str(time.time()))
        os.kill(process_id, number)

    def read_and_be_hit(pictures, index):
        is_validation = pictures._augmenter is None
        if not mark.exists() and is_validation == (moment == "validation") and int(index) % 5 == 4:
            hit(os.getpid())
        return read(pictures, index)

    def hit_and_forward(trainer, inputs, targets):
        if trainer.step == 3 and not mark.exists():
            time.sleep(0.3)  # until batches lie ready that only the worker that made them can hand over
            victim = multiprocessing.active_children()[0]
            hit(victim.pid or 0)
            if moment == "a step that ends with SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            while number == signal.SIGKILL and victim.is_alive():
                time.sleep(0.01)
        return forward(trainer, inputs, targets)

    if moment.startswith("a step"):
        session.Trainer.forward = hit_and_forward
    else:
        loading._Pictures._read = read_and_be_hit
    command(arguments, said)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunFolder]:
    """A recipe of many steps an epoch, so that workers are at work all the time, and its undisturbed run."""
    folder = tmp_path_factory.mktemp("workers")
    recipe = small_recipe(
        make_pictures(folder / "pictures"),
        training__epochs=2,
        training__batch_size=4,
        augmentation__crop_padding=2,
        model__name="lenet-bn",
    )
    assert outcome(start(streaming, train_or_resume, recipe, folder / "run")) == 0
    return recipe, RunFolder.open(folder / "run")


def lose_a_worker(recipe: Recipe, number: int, moment: str, out: Path) -> tuple[int, list[str]]:
    """Exit code and last words of a run that loses a worker; it leaves in time and without a process left over."""
    said = out.with_name("said.txt")
    file = out.with_name("recipe.toml")
    file.write_text(recipe.to_toml())
    arguments = ["train", str(file), "--out", str(out), "--device", "cpu"]
    process = start(streaming, hit_a_worker, number, moment, arguments, said)
    code = outcome(process)
    assert time.time() - float(out.with_name("hit").read_text()) < LIMIT_S
    assert not has_children_left(process)
    return code, said.read_text().splitlines()


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGKILL, "training"),
        (signal.SIGKILL, "validation"),
        (signal.SIGKILL, "a step"),
        (signal.SIGSTOP, "training"),
        (signal.SIGSTOP, "validation"),
        (signal.SIGSTOP, "a step"),
    ],
)
def test_a_lost_worker_is_said_and_costs_nothing(
    straight: tuple[Recipe, RunFolder], number: signal.Signals, moment: str, tmp_path: Path
):
    recipe, expected = straight
    out = tmp_path / "run"
    code, said = lose_a_worker(recipe, number, moment, out)
    step = RunFolder.open(out).load("latest").step
    assert code == 3
    assert said[-2:] == [
        SILENT if number == signal.SIGSTOP else DIED,
        f"Everything up to step {step} of 30 is saved; when that is mended, "
        f"go on with `candid train --resume --out {out}`.",
    ]
    assert outcome(start(streaming, train_or_resume, recipe, out)) == 0
    found = compare_runs(expected, RunFolder.open(out))
    assert found.are_equal, found
    assert len(found.equal_checkpoints) >= 1


def test_a_stopped_worker_does_not_keep_a_run_from_leaving(straight: tuple[Recipe, RunFolder], tmp_path: Path):
    recipe, _ = straight
    out = tmp_path / "run"
    code, said = lose_a_worker(recipe, signal.SIGSTOP, "a step that ends with SIGTERM", out)
    assert code == 143
    assert said[-1] == f"Terminated: step 4 of 30 is saved; go on with `candid train --resume --out {out}`."


def test_a_killed_run_can_go_on_at_once(straight: tuple[Recipe, RunFolder], tmp_path: Path):
    """Its workers live on for some seconds; they must not keep the run folder locked."""
    expected, recipe = straight[1], straight[0].replace({"limits.save_every": "1step"})
    process = start(streaming, train_or_resume, recipe, tmp_path / "run")
    while not (tmp_path / "run" / "latest.json").is_file():
        assert process.exitcode is None
        time.sleep(0.01)
    kill(process)
    assert has_children_left(process)
    assert outcome(start(streaming, train_or_resume, recipe, tmp_path / "run")) == 0
    assert compare_runs(expected, RunFolder.open(tmp_path / "run")).are_equal


def read_all(how: str) -> list[int]:
    loader = DataLoader(Broken(how), batch_size=None, sampler=range(9), num_workers=2, timeout=workers.CHECK_S)
    return list(workers.watch(loader))


def test_a_worker_that_ends_is_told_from_one_that_meets_an_error():
    assert read_all("nothing") == list(range(9))
    with pytest.raises(DataError) as caught:
        read_all("end")
    assert str(caught.value) == DIED.replace("(exit code -9)", "(exit code 7)")
    with pytest.raises(RuntimeError, match=r"Caught RuntimeError in DataLoader worker process 1.[\s\S]*no example 1"):
        read_all("error")


def test_other_processes_of_the_program_are_left_alone():
    bystander = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    bystander.start()
    with pytest.raises(DataError):
        read_all("end")
    assert bystander.is_alive()
    bystander.kill()
    bystander.join()
