"""Runs in processes of their own, to be killed: forked from a server that has torch imported, so that each is cheap."""

import contextlib
import io
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from candid.recipe import Recipe
from candid.training.progress import Reporter
from candid.training.run import resume_run, train_run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["candid.workflow", "candid.cli", "processes"])


def start(target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    process = SERVER.Process(target=_run, args=(target, *arguments))
    process.start()
    return process


def outcome(process: ForkServerProcess, timeout_s: float = 120) -> int:
    """The exit code; minus the signal for a process that one killed."""
    process.join(timeout_s)
    assert process.exitcode is not None, f"still running after {timeout_s} s"
    return process.exitcode


def train_or_resume(recipe: Recipe, out: Path) -> None:
    """Begin the run, or go on with it where it stands, unless it is finished."""
    if (out / "result.json").is_file():
        return
    if (out / "recipe.toml").is_file():
        resume_run(out, reporter=Reporter.silent())
    else:
        train_run(recipe, out, reporter=Reporter.silent())


def command(arguments: list[str], said: Path) -> None:
    """`candid ARGUMENTS`; what it says on standard error goes to a file."""
    from candid.cli import main

    sys.argv = ["candid", *arguments]
    with said.open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(io.StringIO()):
        main(arguments)


def be_rank(rank: int, number: int, port: int) -> None:
    """Take a place among ranks of this machine, as torchrun gives it."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def has_children_left(process: ForkServerProcess) -> bool:
    """Whether a process that has ended left others of its group behind."""
    try:
        os.killpg(process.pid or 0, 0)
    except ProcessLookupError:
        return False
    return True


def send(process: ForkServerProcess, signal_number: signal.Signals) -> None:
    """Send a signal, if it is there still."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal_number)


def kill(process: ForkServerProcess) -> None:
    send(process, signal.SIGKILL)
    process.join(30)


def _run(target: Callable[..., object], *arguments: object) -> None:
    os.setpgrp()
    multiprocessing.set_start_method("fork", force=True)  # for data workers, as in a process that was not forked
    torch.set_num_threads(1)
    target(*arguments)
