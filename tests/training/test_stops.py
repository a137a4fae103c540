"""SIGTERM and SIGINT, in every phase: saved, gone in time, nothing left behind, and resumed to the same bits."""

import os
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from conftest import make_pictures, small_recipe
from processes import command, has_children_left, outcome, start, train_or_resume

from candid.checkpoint import RunFolder
from candid.comparison import compare_runs
from candid.recipe import Recipe
from candid.training import saving, session

PHASES = (
    "first step",
    "mid-epoch",
    "last step",
    "validation",
    "saving",
    "between epochs",
    "mid-accumulation",
    "result",
)
LIMIT_S = 10


def signal_in(phase: str, number: int, times: int, arguments: list[str], said: Path) -> None:
    """In a process of its own: the command, which sends itself a signal (or two) in a phase of training."""
    calls = {"steps": 0, "forward": 0}

    def send() -> None:
        (said.parent / "signalled").write_text(str(time.time()))
        for _ in range(times):
            os.kill(os.getpid(), number)

    def after(function, wanted: int, count: str):
        def wrapper(*args, **options):
            calls[count] = calls.get(count, 0) + 1
            if calls[count] == wanted:
                send()
            return function(*args, **options)

        return wrapper

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    if phase in ("first step", "mid-epoch", "last step"):
        wanted = {"first step": 1, "mid-epoch": 6, "last step": 8}[phase]
        session.Session._after_step = after(session.Session._after_step, wanted, "steps")
    elif phase == "mid-accumulation":
        session.Trainer.forward = after(session.Trainer.forward, 12, "forward")
    elif phase == "validation":
        session.evaluate_model = after(session.evaluate_model, 2, "evaluations")
    elif phase == "saving":
        saving.RunFolder.save = after(saving.RunFolder.save, 2, "saves")
    elif phase == "between epochs":
        session.Session._end_epoch = after(session.Session._end_epoch, 2, "ends")
    elif phase == "result":
        session.finish_run = after(session.finish_run, 1, "results")
    command(arguments, said)


def wait_for_children(process: ForkServerProcess, signalled_at_s: float) -> None:
    while has_children_left(process) and time.time() < signalled_at_s + LIMIT_S:
        time.sleep(0.05)
    assert not has_children_left(process)


def recipe_file(recipe: Recipe, folder: Path) -> str:
    (folder / "recipe.toml").write_text(recipe.to_toml())
    return str(folder / "recipe.toml")


IN_MEMORY = {"augmentation__crop_padding": 2}
STREAMED = {"augmentation__random_resized_crop": 0.5, "data__in_memory": False}


@pytest.fixture(scope="module", params=[IN_MEMORY, STREAMED], ids=["in memory", "2 workers"])
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, RunFolder]:
    """A recipe whose pictures lie in memory, or are streamed by two workers, and its uninterrupted run."""
    folder = tmp_path_factory.mktemp("stops")
    recipe = small_recipe(
        make_pictures(folder / "pictures"),
        training__epochs=3,
        training__micro_batch_size=8,
        model__name="lenet-bn",
        data__image_size=28,
        **request.param,
    )
    assert outcome(start(train_or_resume, recipe, folder / "run")) == 0
    return recipe, RunFolder.open(folder / "run")


@pytest.mark.parametrize(
    ("phase", "number"),
    [(phase, signal.SIGINT if k % 2 else signal.SIGTERM) for k, phase in enumerate(PHASES)]
    + [("mid-epoch", signal.SIGTERM), ("saving", signal.SIGINT)],
)
def test_a_signal_saves_and_leaves_in_time(
    straight: tuple[Recipe, RunFolder], phase: str, number: signal.Signals, tmp_path: Path
):
    recipe, expected = straight
    out = tmp_path / "run"
    arguments = ["train", recipe_file(recipe, tmp_path), "--out", str(out), "--device", "cpu"]
    process = start(signal_in, phase, number, 1, arguments, tmp_path / "said.txt")
    assert outcome(process) == 128 + number
    signalled_at_s = float((tmp_path / "signalled").read_text())
    assert time.time() - signalled_at_s < LIMIT_S
    wait_for_children(process, signalled_at_s)
    said = (tmp_path / "said.txt").read_text()
    if phase != "result":
        assert said.endswith(f"is saved; go on with `candid train --resume --out {out}`.\n")
    assert outcome(start(train_or_resume, recipe, out)) == 0
    found = compare_runs(expected, RunFolder.open(out))
    assert found.are_equal, found
    assert len(found.equal_checkpoints) >= 1


def test_the_step_that_is_running_is_finished_and_saved(straight: tuple[Recipe, RunFolder], tmp_path: Path):
    recipe, _ = straight
    arguments = ["train", recipe_file(recipe, tmp_path), "--out", str(tmp_path / "run")]
    process = start(signal_in, "mid-epoch", signal.SIGTERM, 1, arguments, tmp_path / "said.txt")
    assert outcome(process) == 143
    assert RunFolder.open(tmp_path / "run").load("latest").step == 6
    assert (tmp_path / "said.txt").read_text().splitlines()[-1] == (
        f"Terminated: step 6 of 12 is saved; go on with `candid train --resume --out {tmp_path / 'run'}`."
    )


def test_a_second_signal_leaves_at_once(straight: tuple[Recipe, RunFolder], tmp_path: Path):
    recipe, expected = straight
    arguments = ["train", recipe_file(recipe, tmp_path), "--out", str(tmp_path / "run")]
    process = start(signal_in, "mid-epoch", signal.SIGINT, 2, arguments, tmp_path / "said.txt")
    assert outcome(process) == 130
    wait_for_children(process, time.time())
    run = RunFolder.open(tmp_path / "run")
    assert max((folder.name for folder in run.checkpoints.glob("step-*")), default="") in ("", "step-00000004")
    assert outcome(start(train_or_resume, recipe, run.path)) == 0  # from the last save that was on the disk by then
    assert compare_runs(expected, run).are_equal


def test_the_end_of_the_time_saves_and_is_no_failure(straight: tuple[Recipe, RunFolder], tmp_path: Path):
    recipe, expected = straight
    arguments = ["train", recipe_file(recipe, tmp_path), "--out", str(tmp_path / "run"), "--max-time", "0.001s"]
    assert outcome(start(command, arguments, tmp_path / "said.txt")) == 0
    assert (tmp_path / "said.txt").read_text().splitlines()[-1] == (
        f"The time is up: step 1 of 12 is saved; go on with `candid train --resume --out {tmp_path / 'run'}`."
    )
    arguments = ["train", "--resume", "--out", str(tmp_path / "run"), "--max-time", "1h"]
    assert outcome(start(command, arguments, tmp_path / "said.txt")) == 0
    assert compare_runs(expected, RunFolder.open(tmp_path / "run")).are_equal


def test_another_process_cannot_train_into_the_same_run(straight: tuple[Recipe, RunFolder], tmp_path: Path):
    recipe, _ = straight
    arguments = ["train", recipe_file(recipe, tmp_path), "--out", str(tmp_path / "run"), "--max-time", "0.001s"]
    assert outcome(start(command, arguments, tmp_path / "said.txt")) == 0
    with RunFolder.open(tmp_path / "run").locked():
        code = outcome(start(command, ["train", "--resume", "--out", str(tmp_path / "run")], tmp_path / "said.txt"))
    assert code == 2
    assert f"{tmp_path / 'run'} is being trained by process {os.getpid()} on " in (tmp_path / "said.txt").read_text()
