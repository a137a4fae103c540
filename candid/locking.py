"""A lock on a folder that the kernel frees when its process dies, however that happens."""

import fcntl
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from candid.errors import InputError


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep other processes from training into `folder`; the lock of a process that died is void.

    Raises:
        InputError: if another process holds it.
    """
    path = folder / "lock"
    with _take(path) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is held: once it is free, the file may be another's


def _take(path: Path) -> TextIO:
    """The file at `path`, held by this process alone."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, data workers do not inherit it
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise InputError(
                f"{path.parent} is being trained by {holder}; expected a run that nobody trains. "
                "Wait for it, stop it, or use another --out."
            ) from None
        if _is_at(file, path):
            return file
        file.close()  # its holder took it away between our opening and our locking it


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
