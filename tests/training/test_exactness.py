"""A run that was interrupted, or repeated elsewhere, is the same to the last bit; its best checkpoint is its best."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import draw, silent, small_recipe
from processes import command, outcome, start
from rich.console import Console

import candid
from candid.checkpoint import RunFolder
from candid.comparison import TIME_COLUMNS
from candid.data import loading, picture_cache
from candid.recipe import Recipe
from candid.training import session as session_module
from candid.training.progress import Reporter
from candid.training.run import resume_run, train_run
from candid.training.session import Session
from candid.training.stopping import Stopped

STEPS_PER_EPOCH = 4
SETTINGS: dict[str, dict[str, object]] = {
    "sgd": {"optimizer__name": "sgd", "schedule__name": "one-cycle"},
    "ema": {"training__ema_decay": 0.9, "schedule__name": "cosine", "training__clip_norm": 0.5},
    "mix": {"augmentation__mixup": 0.4, "augmentation__cutmix": 1.0, "schedule__name": "multi-step"},
    "plateau": {"schedule__name": "plateau", "schedule__patience": 1, "schedule__warmup": 0.0, "optimizer__rate": 0.3},
    "dropout": {
        "model__name": "mobilenetv2-0.35",
        "model__dropout": 0.5,
        "data__image_size": 28,
        "training__micro_batch_size": 6,
    },
    "drop-path": {"model__name": "fractalnet-small", "data__image_size": 32, "training__epochs": 1},
}


def recipe_for(pictures: Path, settings: str) -> Recipe:
    """Small, with batch normalisation and random crops, and what `settings` names."""
    base: dict[str, object] = {"model__name": "lenet-bn", "augmentation__crop_padding": 2, "training__epochs": 3}
    return small_recipe(pictures, **base | SETTINGS[settings])


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column not in TIME_COLUMNS}


def everything(run: Path) -> dict[str, object]:
    """All that a run keeps of its training, but for times: bytes of tensors, numbers, pointers, predictions."""
    kept: dict[str, object] = {"recipe": (run / "recipe.toml").read_bytes()}
    for pointer in ("best", "latest"):
        kept[pointer] = (run / f"{pointer}.json").read_text()
        place = run / "checkpoints" / json.loads(str(kept[pointer]))["checkpoint"]
        for name in ("model.safetensors", "optimizer.safetensors"):
            kept[f"{pointer} {name}"] = (place / name).read_bytes()
        state = json.loads((place / "state.json").read_text())
        del state["training"]["epoch_seconds"]
        state["training"]["history"] = [without_times(row) for row in state["training"]["history"]]
        kept[f"{pointer} state"] = state
    with (run / "results.csv").open() as file:
        kept["results"] = [without_times(row) for row in csv.DictReader(file)]
    kept["result"] = without_times({**json.loads((run / "result.json").read_text()), "train_seconds": 0})
    kept["predictions"] = (run / "evaluation-test" / "predictions.csv").read_bytes()
    return kept


def differences(run: Path, other: Path) -> list[str]:
    ours, theirs = everything(run), everything(other)
    return [name for name in ours | theirs if ours.get(name) != theirs.get(name)]


def train_with_stops(recipe: Recipe, out: Path, stops: list[int]) -> Path:
    """Train in parts: stop after each of these steps, go on from there."""
    for step in stops:
        begin = resume_run if out.exists() else partial(train_run, recipe)
        with pytest.raises(Stopped):
            begin(out, last_step=step, reporter=silent())
        assert RunFolder.open(out).load("latest").step == step
    return resume_run(out, reporter=silent()).path


@pytest.fixture(scope="module")
def straight(pictures: Path, tmp_path_factory: pytest.TempPathFactory):
    """The uninterrupted run with some settings, trained when first asked for."""
    runs: dict[str, Path] = {}

    def train(settings: str) -> Path:
        if settings not in runs:
            out = tmp_path_factory.mktemp("straight") / settings
            runs[settings] = train_run(recipe_for(pictures, settings), out, reporter=silent()).path
        return runs[settings]

    return train


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_run_stopped_after_every_step_is_the_straight_one(straight, settings: str, pictures: Path, tmp_path: Path):
    recipe = recipe_for(pictures, settings)
    steps = list(range(1, recipe.training.epochs * STEPS_PER_EPOCH + 1))
    assert differences(train_with_stops(recipe, tmp_path / "run", steps), straight(settings)) == []


@pytest.mark.parametrize("steps", [[1], [6], [STEPS_PER_EPOCH], [1, 11]], ids=str)
def test_one_stop_changes_nothing(straight, steps: list[int], pictures: Path, tmp_path: Path):
    run = train_with_stops(recipe_for(pictures, "dropout"), tmp_path / "run", steps)
    assert differences(run, straight("dropout")) == []


class Killed(BaseException):
    """Stands for the end of the process: nothing in the package catches it."""


@pytest.mark.parametrize(
    ("owner", "function", "call", "error"),
    [
        (Session, "_train_epoch", 2, Stopped("Stopped", 0)),
        (Session, "_train_epoch", 2, Killed()),
        (session_module, "evaluate_model", 2, Stopped("Stopped", 0)),
        (session_module, "evaluate_model", 2, Killed()),
        (session_module.Trainer, "forward", 17, Killed()),  # the fifth step, in its second of three micro-batches
        (session_module, "finish_run", 1, Killed()),
    ],
    ids=[
        "between epochs",
        "killed there",
        "evaluation",
        "killed there",
        "killed mid-accumulation",
        "killed at the end",
    ],
)
def test_an_end_between_two_steps_changes_nothing(
    straight, owner: object, function: str, call: int, error: BaseException, pictures: Path, tmp_path: Path
):
    original, calls = getattr(owner, function), []

    def end_at_call(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise error
        return original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, function, end_at_call)
        with pytest.raises(type(error)):
            train_run(recipe_for(pictures, "dropout"), tmp_path / "run", reporter=silent())
    run = resume_run(tmp_path / "run", reporter=silent()).path
    assert differences(run, straight("dropout")) == []


def stream_with(workers: int, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(loading, "MAX_SIDE_IN_MEMORY_PX", 0)
    patch.setattr(picture_cache, "MAX_BYTES", 0)
    patch.setattr(loading, "_num_workers", lambda: workers)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than this machine has
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_number_of_workers_changes_no_bit(
    straight, workers: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = straight("mix")
    stream_with(workers, monkeypatch)
    run = train_run(recipe_for(pictures, "mix"), tmp_path / "run", reporter=silent()).path
    assert differences(run, expected) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_while_pictures_are_streamed_changes_nothing(
    straight, workers: int, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = straight("mix")
    stream_with(workers, monkeypatch)
    run = train_with_stops(recipe_for(pictures, "mix"), tmp_path / "run", [1, 6, 8])
    assert differences(run, expected) == []


ORDERED_LISTINGS = """
import os, sys
listdir, scandir = os.listdir, os.scandir

class Listing(list):
    __enter__, __exit__ = lambda self: self, lambda *a: None
    def __next__(self):
        if not self:
            raise StopIteration
        return self.pop(0)

os.listdir = lambda *a: sorted(listdir(*a), reverse=REVERSE)
os.scandir = lambda *a: Listing(sorted(scandir(*a), key=lambda entry: entry.name, reverse=REVERSE))
from candid.cli import main
main(sys.argv[1:])
"""
"""candid, where the system lists folders in the order of names, or in the reverse."""


def test_hash_seed_directory_order_and_working_folder_change_no_bit(tmp_path: Path):
    folder = tmp_path / "pictures"
    for class_name in ("circle", "cross"):
        (folder / class_name).mkdir(parents=True)
        for number in range(20):
            draw(class_name, number).save(folder / class_name / f"{number}.png")
    options = ["--model", "lenet-bn", "--epochs", "2", "--seed", "5", "--device", "cpu", "--set"]
    options += ["training.batch_size=12", "--set", "augmentation.randaugment=9", "--set", "augmentation.mixup=0.3"]
    processes: list[subprocess.Popen[str]] = []
    for hash_seed, place in ((0, tmp_path), (1, folder)):
        script = ORDERED_LISTINGS.replace("REVERSE", str(bool(hash_seed)))
        data = os.path.relpath(folder, place)
        arguments = ["train", "--data", data, "--out", str(tmp_path / f"run-{hash_seed}"), *options]
        environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = str(Path(candid.__file__).parents[1])
        launch = [sys.executable, "-c", script, *arguments]
        processes.append(subprocess.Popen(launch, cwd=place, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    assert differences(tmp_path / "run-0", tmp_path / "run-1") == []


def resume_with_threads(number: int, arguments: list[str], said: Path) -> None:
    """In a process of its own."""
    torch.set_num_threads(number)
    command(arguments, said)


def test_a_run_keeps_its_threads_and_another_number_is_said(pictures: Path, tmp_path: Path):
    with pytest.raises(Stopped):
        train_run(recipe_for(pictures, "sgd"), tmp_path / "run", last_step=2, reporter=silent())
    arguments = ["train", "--resume", "--out", str(tmp_path / "run"), "--device", "cpu"]
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert outcome(start(resume_with_threads, 2, arguments, tmp_path / "said.txt")) == 0
    assert "hanged" not in (tmp_path / "said.txt").read_text()
    assert RunFolder.open(tmp_path / "run").recipe.training.threads == 1
    arguments = [*arguments[:3], str(tmp_path / "other"), "--device", "cpu", "--set", "training.threads=2"]
    assert outcome(start(resume_with_threads, 1, arguments, tmp_path / "said.txt")) == 0
    assert [line for line in (tmp_path / "said.txt").read_text().splitlines() if "hanged" in line] == [
        "Changed: training.threads was 1, is 2.",
        "The device changed from cpu (1 threads) to cpu (2 threads); the result may differ in its last digits.",
    ]


def script_validation(patch: pytest.MonkeyPatch, epochs: list[tuple[int, float]]) -> None:
    """Let the coming epochs validate as told: so many right, and this loss."""
    evaluate_model, coming = session_module.evaluate_model, iter(epochs)

    def evaluate(*arguments):
        evaluation = evaluate_model(*arguments)
        right, loss = next(coming)
        labels = evaluation.top_classes[:, 0].clone()
        labels[right:] = (labels[right:] + 1) % len(evaluation.class_names)
        return replace(evaluation, labels=labels, loss=loss)

    patch.setattr(session_module, "evaluate_model", evaluate)


@pytest.mark.parametrize(
    ("later", "best_epoch"),
    [
        ([(3, 1.0), (5, 1.0), (4, 1.0)], 2),  # worse, equal, worse
        ([(6, float("nan")), (5, 1.0), (4, 1.0)], 2),  # many right, but by a network whose output is no numbers
        ([(6, float("nan")), (6, 1.0), (6, 0.5)], 4),  # what such an epoch seemed to reach stands in nobody's way
    ],
)
def test_the_best_stays_the_best_through_an_interruption(
    later: list[tuple[int, float]],
    best_epoch: int,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    recipe = recipe_for(pictures, "sgd").replace({"training.epochs": 5})
    script_validation(monkeypatch, [(4, 1.0), (5, 1.0), *later])
    with pytest.raises(Stopped):
        train_run(recipe, tmp_path / "run", last_step=2 * STEPS_PER_EPOCH + 1, reporter=silent())
    peak = (tmp_path / "run" / "best.json").read_text()
    run = resume_run(tmp_path / "run", reporter=silent())
    step = best_epoch * STEPS_PER_EPOCH
    assert json.loads((run.path / "best.json").read_text())["checkpoint"] == f"step-{step:08d}"
    assert (best_epoch == 2) == ((run.path / "best.json").read_text() == peak)
    assert json.loads((run.path / "result.json").read_text())["best_epoch"] == best_epoch
    assert run.load().step == step


@pytest.mark.parametrize("memory_format", ["contiguous", "channels-last"])
@pytest.mark.parametrize("settings", ["ema", "dropout"])
def test_evaluating_the_best_again_gives_its_stored_metrics(
    settings: str, memory_format: str, pictures: Path, tmp_path: Path
):
    recipe = recipe_for(pictures, settings).replace({"training.memory_format": memory_format})
    run = train_run(recipe, tmp_path / "run", reporter=silent())
    best = run.load()
    again = candid.evaluate(run.path, "validation")
    row = next(row for row in run.history if int(row["step"]) == best.step)
    assert again.accuracy == best.validation_accuracy == float(row["validation_accuracy"])
    if memory_format == "channels-last":  # as every evaluation of a checkpoint has it
        assert again.loss == float(row["validation_loss"])


def test_what_was_broken_off_is_said(pictures: Path, tmp_path: Path):
    heard = io.StringIO()
    with pytest.raises(Stopped) as caught:
        train_run(recipe_for(pictures, "sgd"), tmp_path / "run", last_step=5, reporter=silent())
    assert str(caught.value) == (
        "The last step that was asked for is done: step 5 of 12 is saved; "
        f"go on with `candid train --resume --out {tmp_path / 'run'}`."
    )
    resume_run(tmp_path / "run", reporter=Reporter(Console(file=heard, width=300)))
    assert "Resumed at step 5, after 1 of 3 epochs." in heard.getvalue().splitlines()
