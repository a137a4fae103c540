"""Several ranks train the same network as one process: gloo on this machine, started by torchrun."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import make_pictures, small_recipe
from processes import be_rank, command, free_port, outcome, start

from candid.checkpoint import RunFolder
from candid.comparison import compare_runs
from candid.data.catalog import open_data_set
from candid.data.loading import TrainingBatches, open_training_data
from candid.recipe import Recipe
from candid.training import session
from candid.training.setup import resolve_recipe

CPU = torch.device("cpu")
PICTURES_PER_CLASS = 25  # 75 pictures: no number of ranks divides the last batch


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    pictures = make_pictures(tmp_path_factory.mktemp("ranks") / "pictures", PICTURES_PER_CLASS)
    return small_recipe(pictures, training__epochs=3, augmentation__crop_padding=2, optimizer__name="sgd")


def torchrun(num_ranks: int, recipe: Recipe, out: Path, *, max_restarts: int = 0) -> subprocess.Popen[str]:
    file = out.with_suffix(".toml")
    file.write_text(recipe.to_toml())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [*launch, "--max-restarts", str(max_restarts), "-m", "candid", "train", str(file), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CANDID_TEST_RUN": str(out)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def losses(run: Path) -> list[float]:
    with (run / "results.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("mixup", [0.0, 0.4])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_ranks_share_the_examples_of_each_step_with_the_same_augmentation(recipe: Recipe, num_ranks: int, mixup: float):
    data_set = open_data_set(recipe.data.name)
    resolved = resolve_recipe(recipe.replace({"augmentation.mixup": mixup}), data_set, CPU)
    batches = TrainingBatches(open_training_data(data_set, resolved), resolved, 3, CPU)
    alone = list(batches.epoch(1))
    shared = [list(batches.epoch(1, 0, rank, num_ranks)) for rank in range(num_ranks)]
    for step, batch in enumerate(alone):
        parts = [ranks[step] for ranks in shared]
        assert torch.equal(torch.cat([part.inputs for part in parts]), batch.inputs)
        assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
        assert all(torch.equal(part.indices, batch.indices) for part in parts)


def test_an_epoch_can_begin_at_any_step(recipe: Recipe):
    data_set = open_data_set(recipe.data.name)
    resolved = resolve_recipe(recipe.replace({"augmentation.cutmix": 1.0}), data_set, CPU)
    batches = TrainingBatches(open_training_data(data_set, resolved), resolved, 3, CPU)
    whole, later = list(batches.epoch(0)), list(batches.epoch(0, first=2))
    assert len(later) == len(whole) - 2
    assert all(
        torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
        for a, b in zip(whole[2:], later, strict=True)
    )


def test_two_ranks_learn_what_one_process_learns_and_go_on_alone(recipe: Recipe, tmp_path: Path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    one, two = torchrun(1, recipe, alone), torchrun(2, recipe, together)
    said = finish(two)
    finish(one)
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    weights = [RunFolder.open(run).load("latest").weights for run in (alone, together)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-5) for name in weights[0])
    assert RunFolder.open(together).history[-1]["images"] == RunFolder.open(alone).history[-1]["images"]
    line = "2 ranks, each with up to 8 examples of every batch; batch normalisation takes its statistics per rank"
    assert said.count(line) == 1  # one rank speaks
    assert (together / "result.json").is_file()
    assert (together / "report.html").is_file()
    longer = ["train", "--resume", "--out", str(together), "--epochs", "4"]
    again = subprocess.run([sys.executable, "-m", "candid", *longer], capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "Changed: training.epochs was 3, is 4." in again.stderr
    assert "The ranks changed from 2 to 1; the result may differ in its last digits." in again.stderr
    assert len(losses(together)) == 4


def stop_in_validation(rank: int, port: int, arguments: list[str], said: Path) -> None:
    """The command as one rank of two, the first of which gets a signal in its second validation."""
    be_rank(rank, 2, port)
    evaluate, calls = session.evaluate_model, iter(range(1, 100))

    def evaluate_and_signal(*arguments: object):
        if next(calls) == 2 and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    session.evaluate_model = evaluate_and_signal
    command(arguments, said)


def test_a_signal_to_one_rank_in_validation_stops_all(recipe: Recipe, tmp_path: Path):
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    arguments = ["train", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    port = free_port()
    ranks = [start(stop_in_validation, rank, port, arguments, tmp_path / f"{rank}.txt") for rank in (0, 1)]
    assert [outcome(rank, timeout_s=60) for rank in ranks] == [143, 143]
    said = (tmp_path / "0.txt").read_text()
    assert said.endswith(
        f"Terminated: step 8 of 12 is saved; go on with `candid train --resume --out {tmp_path / 'run'}`.\n"
    )
    assert RunFolder.open(tmp_path / "run").load("latest").epoch == 1


def rank_of(run: Path, rank: int) -> int | None:
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (place / "environ").read_bytes().split(b"\0")
            if f"CANDID_TEST_RUN={run}".encode() in environment and f"RANK={rank}".encode() in environment:
                return int(place.name)
    return None


@pytest.mark.long
def test_a_killed_rank_is_started_again_and_the_run_ends_as_if_nothing_had_happened(recipe: Recipe, tmp_path: Path):
    recipe = recipe.replace({"training.epochs": 12, "limits.save_every": "1step"})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(torchrun(2, recipe, straight))
    process = torchrun(2, recipe, killed, max_restarts=3)
    while not (killed / "latest.json").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    victim, killed_at_s = rank_of(killed, 1), time.perf_counter()
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    said = finish(process)
    assert time.perf_counter() - killed_at_s < 60
    assert "Resumed at step" in said
    assert compare_runs(RunFolder.open(straight), RunFolder.open(killed)).are_equal
