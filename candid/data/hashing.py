"""What is in files, as SHA-256 of their bytes."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path

from candid.data.files import open_file

FILES_AT_ONCE = 256
"""For one thread: between small files threads lose more by taking turns than they gain."""


def hash_files(folder: Path, files: Sequence[str]) -> list[str]:
    """SHA-256 of each of the files, whose paths are relative to `folder`.

    A file that cannot be read counts as empty: whoever decodes it says why it cannot be, beside all others.
    """
    parts = [files[start : start + FILES_AT_ONCE] for start in range(0, len(files), FILES_AT_ONCE)]
    with ThreadPoolExecutor() as pool:
        return list(chain.from_iterable(pool.map(partial(_hash, folder), parts)))


def _hash(folder: Path, files: Sequence[str]) -> list[str]:
    digests: list[str] = []
    for name in files:
        content = b""
        with suppress(OSError), open_file(f"{folder}/{name}") as file:  # Path and a buffer take longer than the hash
            content = file.read()
        digests.append(hashlib.sha256(content).hexdigest())
    return digests
