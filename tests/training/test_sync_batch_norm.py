"""Statistics over all ranks: refused where torch cannot, and the same network where it can."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import call, small_recipe
from torch import nn

from candid.checkpoint import RunFolder
from candid.errors import InputError
from candid.models import build_model
from candid.training.loop import Trainer
from candid.training.ranks import Ranks
from candid.training.setup import choose_memory

CPU = torch.device("cpu")


def test_on_the_cpu_it_is_refused_before_any_work(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run"
    arguments = ["train", "--data", pictures, "--model", "lenet-bn", "--out", out, "--device", "cpu", "--sync-bn"]
    code, _, said = call(capsys, *arguments)
    assert said == (
        "training.sync_batch_norm is true, but torch does this on GPUs only, not on cpu; it must be false here. "
        "Leave --sync-bn out.\n"
    )
    assert code == 2
    assert not out.exists()


@pytest.mark.parametrize("memory", ["shared", "recompute"])
def test_a_dense_block_that_keeps_less_is_refused(memory: str):
    recipe = small_recipe(
        Path("unused"), model__name="densenet-cifar", training__memory=memory, training__sync_batch_norm=True
    )
    with pytest.raises(InputError) as caught:
        choose_memory(recipe, CPU)
    assert str(caught.value) == (
        f"training.memory is '{memory}' and training.sync_batch_norm is true, but a dense block that keeps less takes "
        "its statistics by itself; it must be 'auto' or 'plain'. Or leave --sync-bn out."
    )
    assert choose_memory(recipe.replace({"training.memory": "auto"}), CPU) == "plain"


@pytest.mark.parametrize("memory", ["plain", "recompute"])
def test_the_network_keeps_its_names_and_its_outputs(memory: str):
    recipe = small_recipe(
        Path("unused"),
        model__name="resnet20-cifar",
        data__image_size=32,
        data__channels=3,
        training__memory=memory,
        training__sync_batch_norm=True,
        training__ema_decay=0.9,
    )
    trainer = Trainer(recipe, 3, 4, CPU, Ranks(rank=0, number=2))
    plain = Trainer(recipe, 3, 4, torch.device("cpu")).model
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in trainer.model.modules()) == 19
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in plain.modules())  # of one rank
    plain.load_state_dict(copy.deepcopy(trainer.model.state_dict()))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(trainer.model.eval()(images), plain.eval()(images))
    assert trainer.average is not None
    assert torch.equal(trainer.average.eval()(images), plain(images))
    build_model("resnet20-cifar", 3).load_state_dict(trainer.model.state_dict())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch synchronises batch normalisation on two GPUs or more")
def test_two_gpus_learn_what_one_learns(pictures: Path, tmp_path: Path):
    recipe = small_recipe(pictures, model__name="lenet-bn", training__precision="fp32", optimizer__name="sgd")
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    for number in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
        train = [
            "-m",
            "candid",
            "train",
            str(tmp_path / "recipe.toml"),
            "--out",
            str(tmp_path / str(number)),
            "--sync-bn",
        ]
        done = subprocess.run([*launch, *train], env=dict(os.environ), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("takes its statistics over all ranks" in done.stderr) == (number == 2)
    one, two = (RunFolder.open(tmp_path / str(number)) for number in (1, 2))
    for ours, theirs in zip(two.history, one.history, strict=True):
        assert float(ours["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-4)
    statistics = [run.load("latest").weights["norm1.running_mean"] for run in (one, two)]
    assert torch.allclose(statistics[0], statistics[1], atol=1e-4)
