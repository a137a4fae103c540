"""Writing files so that a reader finds the old content or the new, never half of either."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


def write_file(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` (text as UTF-8) in one step that survives a power cut."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        _write_and_sync(partial, data.encode() if isinstance(data, str) else data)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """A folder to fill; it appears as `path` when the block ends without an error, replacing what was there."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        for place, _, names in os.walk(partial):
            for name in names:
                _sync(Path(place) / name)
            _sync_folder(Path(place))
        if path.exists():
            discarded = path.with_name(f".{path.name}.discarded{PARTIAL}")
            shutil.rmtree(discarded, ignore_errors=True)
            path.rename(discarded)
            partial.rename(path)
            shutil.rmtree(discarded)
        else:
            partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add one line to a log and wait until it is on the disk."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def remove_partial(folder: Path) -> None:
    """Delete what a killed process left unfinished directly in `folder`."""
    for entry in folder.glob(f".*{PARTIAL}"):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _write_and_sync(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
