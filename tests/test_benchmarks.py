"""The benchmarks of training and prediction run: on little, for a step or two. What they measure means nothing."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import audit, checkpointing, folder, prediction, scaling, speed, timm_epoch, training, zoo
from benchmarks.measuring import fastest
from benchmarks.scaling import Panel, Point
from benchmarks.training import Work
from benchmarks.usual_networks import USUAL
from candid.audit import Suspect
from candid.models import count_parameters
from candid.recipe import Recipe
from candid.zoo import read_entries

SETTINGS = r"\((fp32|bf16), (contiguous|channels-last)(, 1 thread)?\)"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checkpointing, folder, scaling, speed, timm_epoch, training, zoo):
        monkeypatch.setattr(module, "ROUNDS", 1)
    for module in (checkpointing, folder, training, timm_epoch):
        monkeypatch.setattr(module, "BATCH_SIZE", 8)
    for name, value in {"MODEL": "resnet20-cifar", "STEPS": 2, "STEPS_BETWEEN_SAVES": 1}.items():
        monkeypatch.setattr(checkpointing, name, value)
    monkeypatch.setattr(checkpointing, "CHECKPOINT_BYTES", 2_000_000)
    for module in (folder, timm_epoch):
        monkeypatch.setattr(module, "NUM_PICTURES", 20)
    monkeypatch.setattr(folder, "WAITS", (("lenet-relu", 8, 2),))
    monkeypatch.setattr(training, "WORK", (Work("ghostnet-1.0", 1.6, 2),))
    monkeypatch.setattr(zoo, "MOST_MULTIPLY_ADDS", 0.3e9)
    monkeypatch.setattr(zoo, "ENOUGH_MULTIPLY_ADDS", 0.3e9)
    monkeypatch.setattr(zoo, "SMALLEST_BATCH", 4)


def lines_after_machine(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a benchmark printed below the line of the machine and the versions."""
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r" cores, .*; Python .*, torch .*, torchvision ", lines[1])
    return lines[2:]


def test_training(capsys: pytest.CaptureFixture[str]):
    training.main()
    (line,) = lines_after_machine(capsys)
    assert re.fullmatch(
        rf"  ghostnet-1.0 +usual +\d+ images/s   candid +\d+ {SETTINGS} +\d+\.\d\dx, bar 1.6x"
        r"   waits \d+\.\d % for data, bar 3 %",
        line,
    )


@pytest.mark.parametrize("name", USUAL)
def test_the_usual_networks_have_the_parameters_of_ours(name: str):
    assert sum(parameter.numel() for parameter in USUAL[name]().parameters()) == count_parameters(name, 10)


@pytest.mark.parametrize("work", timm_epoch.WORK, ids=lambda work: work.model)
def test_timms_networks_have_the_parameters_of_ours(work: timm_epoch.Work):
    assert sum(parameter.numel() for parameter in work.build().parameters()) == count_parameters(work.model, 10)


def test_zoo(capsys: pytest.CaptureFixture[str]):
    zoo.main(["resnet20-cifar", "dsn"])  # one with auxiliary classifiers
    *lines, worst = lines_after_machine(capsys)
    settings = r"\((fp32|bf16), (contiguous|channels-last)\)"
    for line, name in zip(lines, ("resnet20-cifar", "dsn"), strict=True):
        assert re.fullmatch(
            rf"  {name} +batch   4   by hand +\d+ images/s {settings}   candid +\d+ {SETTINGS} +\d+\.\d{{3}}x"
            r"(, below the bar)?",
            line,
        )
    assert re.fullmatch(r"The worst of 2: (resnet20-cifar|dsn) \d\.\d{3}x; [012] below the bar of 0\.97x", worst)


def test_the_zoo_is_timed_in_batches_that_a_machine_bears(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    works = {entry.name: zoo.choose_work(entry) for entry in read_entries() if entry.image_size == 32}
    assert works["resnet20-cifar"] == (128, 3)
    assert works["resnet18-cifar"] == (32, 1)
    assert works["densenet-bc-190-40"] == (4, 1)


def test_an_epoch_of_timm(capsys: pytest.CaptureFixture[str]):
    timm_epoch.main(["ghostnet-1.0"])
    (line,) = lines_after_machine(capsys)
    assert re.fullmatch(
        rf"  ghostnet-1.0 +timm +\d+\.\d\d s \(fp32\)   candid +\d+\.\d\d s {SETTINGS} +\d+\.\d\dx, bar 1.3x", line
    )


def test_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # which it changes
    folder.main()
    *opened, memory, cache, usual, waits = lines_after_machine(capsys)
    assert [re.sub(r" +\d+\.\d\d s$", "", line) for line in opened] == [
        "  candid, opened for the first time: decoded, and kept",
        "  candid, opened again: read from the cache",
    ]
    assert re.fullmatch(r"  an epoch: candid, in memory +\d+\.\d\d s +\d+\.\dx, bar 10x", memory)
    assert re.fullmatch(r"  an epoch: candid, from the cache .* \d+\.\d\d s +\d+\.\dx, bar 10x", cache)
    assert re.fullmatch(r"  an epoch: torchvision ImageFolder, 2 workers +\d+\.\d\d s", usual)
    assert re.fullmatch(r"  lenet-relu +batch +8   waits +\d+\.\d % of a step for data, bar 3 %", waits)


def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    points = [Point(side, "resnet20-cifar", 4, side) for side in (16, 32)]
    monkeypatch.setattr(scaling, "PANELS", [Panel("ResNet-20", "image side (px)", points)] * 4)
    scaling.main(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    title, axis, *rows = lines_after_machine(capsys)[:4]
    assert title == "ResNet-20"
    assert axis.split() == ["image", "side", "(px)", "16", "32"]
    assert [re.sub(r"( +[\d,]+){2}$", "", row) for row in rows] == ["  fp32, NCHW", "  automatic settings"]


def test_checkpointing(capsys: pytest.CaptureFixture[str]):
    checkpointing.main()
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  a plain loop +\d+\.\d{3} s", lines[2])
    assert re.search(r"exactness costs [+-]\d+\.\d\d %; bar 3 %$", lines[3])
    assert re.search(r"candid with 2 saves .* a save costs [+-].* would be [+-]\d+\.\d\d %; bar 2 %$", lines[4])
    assert re.search(r"Verifying a checkpoint of 2 MB .*: \d\.\d{3} s; bar 0.5 s$", lines[5])


def test_the_hopeless_are_not_called_again(monkeypatch: pytest.MonkeyPatch):
    now_s, calls = 0.0, {"quick": 0, "slow": 0, "very slow": 0}

    def take(name: str, seconds: float) -> None:
        nonlocal now_s
        calls[name], now_s = calls[name] + 1, now_s + seconds

    monkeypatch.setattr("benchmarks.measuring.time.perf_counter", lambda: now_s)
    seconds = {"quick": 1.0, "slow": 1.5, "very slow": 2.0}
    contenders = {name: partial(take, name, each_s) for name, each_s in seconds.items()}
    assert fastest(contenders, rounds=4, hopeless=1.3) == seconds
    assert calls == {"quick": 5, "slow": 2, "very slow": 1}


def test_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = {"model.name": "lenet-relu", "data.channels": 1, "data.image_size": 28, "training.epochs": 1}
    file = tmp_path / "tiny.toml"
    file.write_text(Recipe().replace(recipe).to_toml())
    monkeypatch.setattr(speed, "WORK", (speed.Work(str(file), 0.9, 1 / 25),))
    monkeypatch.setattr(speed, "BASELINE_BATCH_SIZE", 4)
    monkeypatch.setattr(sys, "argv", ["speed"])
    monkeypatch.setenv("SPEED_DATA", "fashion-mnist-mini")
    monkeypatch.setenv("SPEED_SEEDS", "0,1")
    speed.main()
    baseline, *runs, summary = lines_after_machine(capsys)
    assert re.fullmatch(r"The notes' recipe, .* for 20 epochs of 6,000 pictures, from 4 steps", baseline)
    accuracies = [float(re.search(r"seed (\d): test accuracy (\S+) %", run)[2]) for run in runs]
    mean, spread = re.search(r"tiny.toml: (\S+) ± (\S+) % \(target 90.00 %\), 0.00 PFLOP, ", summary).groups()
    assert float(mean) == pytest.approx(sum(accuracies) / 2, abs=0.011)
    assert float(spread) == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5, abs=0.011)
    assert summary.endswith(" of the notes' time, bar 1/25")


def test_prediction(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for name, value in {"SIDE_PX": 32, "NUM_PICTURES": 3, "ROUNDS": 1, "STARTS": 1}.items():
        monkeypatch.setattr(prediction, name, value)
    prediction.main()
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"resnet18 at 32 px, a folder of 3 JPEGs of \d+ kB:", lines[1])
    assert re.fullmatch(r"  candid predict +\d+\.\d images/s", lines[3])
    assert re.fullmatch(r"  \d+\.\d\dx; bar 1\.8x", lines[4])
    assert re.fullmatch(r"  candid +\d+\.\d\d s", lines[7])
    assert re.fullmatch(r"  \d+\.\d\dx the time; bar 1\.3x", lines[8])


def test_labels_are_planted_in_other_classes():
    labels = torch.arange(1000) % 10
    changed, is_planted = audit.plant(labels, num_classes=10, share=0.05)
    assert int(is_planted.sum()) == 50
    assert torch.equal(changed != labels, is_planted)
    assert 0 <= int(changed.min()) <= int(changed.max()) <= 9


def test_suspects_count_as_long_as_enough_of_them_are_planted():
    is_planted = torch.tensor([True, True, False, True, False, False, False, True, False, False])
    suspects = [Suspect(position, "", "", "", 0.0, 1.0) for position in range(10)]
    assert audit.measure(suspects, is_planted) == (0.75, 0.75, 4)  # of the first five, 60 % are
    assert audit.measure(suspects[4:7], is_planted) == (0.0, 0.0, 0)
