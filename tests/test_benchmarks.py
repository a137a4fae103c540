"""The benchmarks of training run: on a small network, for a step or two. What they measure then means nothing."""

import re

import pytest

from benchmarks import checkpointing, training


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checkpointing, training):
        for name, value in {"BATCH_SIZE": 8, "STEPS": 2, "ROUNDS": 1}.items():
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(training, "MODEL", "resnet20-cifar")
    monkeypatch.setattr(checkpointing, "STEPS_BETWEEN_SAVES", 1)
    monkeypatch.setattr(checkpointing, "CHECKPOINT_BYTES", 2_000_000)


def test_training(capsys: pytest.CaptureFixture[str]):
    training.main()
    assert len(re.findall(r"^ .* images/s +\d+\.\d\dx the time$", capsys.readouterr().out, flags=re.MULTILINE)) == 2


def test_checkpointing(capsys: pytest.CaptureFixture[str]):
    checkpointing.main()
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  a plain loop +\d+\.\d{3} s", lines[2])
    assert re.search(r"exactness costs [+-]\d+\.\d\d %; bar 3 %$", lines[3])
    assert re.search(r"candid with 2 saves .* a save costs [+-].* would be [+-]\d+\.\d\d %; bar 2 %$", lines[4])
    assert re.search(r"Verifying a checkpoint of 2 MB .*: \d\.\d{3} s; bar 0.5 s$", lines[5])
