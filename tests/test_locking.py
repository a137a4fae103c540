"""One process at a time trains into a folder, also where another one leaves it at the same moment."""

import contextlib
import fcntl
import os
import platform
from pathlib import Path

import pytest
from processes import outcome, start

from candid.errors import InputError
from candid.locking import locked

NUM_TURNS = 400


def enter(folder: Path, said: Path) -> None:
    """Write down why the folder cannot be locked; nothing where it can."""
    try:
        with locked(folder):
            said.write_text("")
    except InputError as error:
        said.write_text(str(error))


def take_turns(folder: Path) -> None:
    """Hold the lock again and again; fail where another process holds it too."""
    for _ in range(NUM_TURNS):
        with contextlib.suppress(InputError), locked(folder):
            (folder / "inside").touch(exist_ok=False)
            (folder / "inside").unlink()


def refused(folder: Path) -> str:
    return (
        f"{folder} is being trained by process {os.getpid()} on {platform.node()}; expected a run that nobody trains. "
        "Wait for it, stop it, or use another --out."
    )


def test_another_process_is_refused_until_the_lock_is_free(tmp_path: Path):
    said = tmp_path / "said"
    with locked(tmp_path):
        assert outcome(start(enter, tmp_path, said)) == 0
        assert said.read_text() == refused(tmp_path)
    assert not (tmp_path / "lock").exists()
    assert outcome(start(enter, tmp_path, said)) == 0
    assert said.read_text() == ""


def test_a_lock_that_its_holder_takes_away_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between our opening the file and our locking it, its holder ends."""
    lock = fcntl.lockf
    endings = iter([True, False])

    def lock_too_late(*arguments: int) -> None:
        if next(endings):
            (tmp_path / "lock").unlink()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "lockf", lock_too_late)
    with locked(tmp_path):
        assert outcome(start(enter, tmp_path, tmp_path / "said")) == 0
    assert (tmp_path / "said").read_text() == refused(tmp_path)


def test_an_error_frees_the_lock(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    assert not (tmp_path / "lock").exists()


def test_processes_that_come_and_go_are_never_inside_together(tmp_path: Path):
    processes = [start(take_turns, tmp_path) for _ in range(3)]
    assert [outcome(process) for process in processes] == [0, 0, 0]
