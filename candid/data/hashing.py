"""What is in files, as SHA-256 of their bytes."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from io import FileIO
from itertools import chain
from pathlib import Path

FILES_AT_ONCE = 256
"""For one thread: between small files threads lose more by taking turns than they gain."""


def hash_files(folder: Path, files: Sequence[str]) -> list[str]:
    """SHA-256 of each of the files, whose paths are relative to `folder`.

    A file that cannot be read counts as empty: whoever decodes it says why it cannot be, beside all others.
    """
    parts = [files[start : start + FILES_AT_ONCE] for start in range(0, len(files), FILES_AT_ONCE)]
    with ThreadPoolExecutor() as pool:
        return list(chain.from_iterable(pool.map(partial(_hash, folder), parts)))


def open_at_once(path: str) -> FileIO:
    """A file to read, without buffer or Path, which take longer; a pipe is empty, and nobody waits for it."""
    return FileIO(path, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))


def _hash(folder: Path, files: Sequence[str]) -> list[str]:
    digests: list[str] = []
    for name in files:
        content = b""
        with suppress(OSError), open_at_once(f"{folder}/{name}") as file:
            content = file.read() or b""
        digests.append(hashlib.sha256(content).hexdigest())
    return digests
