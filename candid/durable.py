"""Writing files so that a reader finds the old content or the new, never half of either.

Every call that changes the disk goes through a fail point. `CANDID_FAIL_AT=kill:17` kills the process at the 17th
of them, `full:17` lets that one and all later ones fail as a full disk does, `readonly:17` as a read-only one does;
so tests can stop a save at each of its calls. Without the variable, a fail point costs one comparison.
"""

import errno
import os
import shutil
import signal
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"
DISCARDED = ".discarded"


class FailPoint:
    """Where the environment says that this process shall fail, if anywhere."""

    def __init__(self, setting: str | None) -> None:
        """`setting` such as "kill:17"; None never fails."""
        how, _, number = (setting or "").partition(":")
        self._how, self._calls_left = how, int(number) if number else 0

    @property
    def is_set(self) -> bool:
        """Whether this process is meant to fail."""
        return bool(self._how)

    def reach(self, path: Path) -> None:
        """Note one call that changes the disk at `path`; fail if it is the one, or behind it."""
        if not self._how:
            return
        self._calls_left -= 1
        if self._calls_left > 0:
            return
        if self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = errno.ENOSPC if self._how == "full" else errno.EROFS
        raise OSError(code, os.strerror(code), str(path))


fail_point = FailPoint(os.environ.get("CANDID_FAIL_AT"))


def cache_folder() -> Path:
    """Where what can be made again is kept for later runs; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "candid"


def write_file(path: Path, data: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Replace `path` by `data` (text as UTF-8; pieces one after the other) in one step that survives a power cut."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        data = data.encode() if isinstance(data, str) else data
        _write_and_sync(partial, [data] if isinstance(data, bytes) else data)
        _rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """A folder to fill; it appears as `path` when the block ends without an error, replacing what was there."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    _make_folder(partial)
    try:
        yield partial
        for place, _, names in os.walk(partial):
            for name in names:
                _sync(Path(place) / name)
            _sync_folder(Path(place))
        if path.exists():
            discarded = path.with_name(f".{path.name}{DISCARDED}")
            shutil.rmtree(discarded, ignore_errors=True)
            _rename(path, discarded)  # a process killed here leaves it to `remove_partial` to put it back
            _rename(partial, path)
            shutil.rmtree(discarded)
        else:
            _rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add one line to a log and wait until it is on the disk; half a line of a killed process stays by itself."""
    fail_point.reach(path)
    is_torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("ab") as file:
        _add_and_sync(file, [("\n" * is_torn + line + "\n").encode()])


def whole_lines(text: str) -> list[str]:
    """The lines of a log of JSON objects, without those of which a killed process wrote but half."""
    return [line for line in text.splitlines() if line.endswith("}")]


def remove_folder(path: Path) -> None:
    """Delete a folder; killed half-way, it is gone under its name all the same."""
    leaving = path.with_name(f".{path.name}{PARTIAL}")
    _rename(path, leaving)
    fail_point.reach(leaving)
    shutil.rmtree(leaving)


def remove_partial(folder: Path) -> None:
    """Clear away what a killed process left unfinished directly in `folder`; what it took away too early returns."""
    for entry in folder.glob(f".*{DISCARDED}"):
        replaced = entry.with_name(entry.name.removeprefix(".").removesuffix(DISCARDED))
        if replaced.exists():
            shutil.rmtree(entry)
        else:
            _rename(entry, replaced)
    for entry in folder.glob(f".*{PARTIAL}"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _write_and_sync(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    fail_point.reach(path)
    with path.open("wb") as file:
        _add_and_sync(file, pieces)


def _add_and_sync(file: BinaryIO, pieces: Iterable[bytes | memoryview]) -> None:
    path = Path(file.name)
    for piece in pieces:
        half = len(piece) // 2
        for part in (piece[:half], piece[half:]) if fail_point.is_set else (piece,):
            fail_point.reach(path)
            file.write(part)
            file.flush()
    fail_point.reach(path)
    os.fsync(file.fileno())


def _make_folder(path: Path) -> None:
    fail_point.reach(path)
    path.mkdir(parents=True)


def _rename(source: Path, target: Path) -> None:
    fail_point.reach(target)
    source.replace(target)


def _sync(path: Path) -> None:
    fail_point.reach(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    fail_point.reach(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
