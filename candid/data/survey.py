"""What lies in a folder of pictures, looked at file by file, whether or not it can be understood as a data set.

Every file is read and decoded once, in threads. Of each stay its name and what a `Survey` has, less than 200 bytes in
all; no pixels.
"""

import hashlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from candid.data.decoding import MAX_HEADER_BYTES, UnreadablePicture, decode_file, read_kind
from candid.data.duplicates import SIDE_PX, hash_looks
from candid.data.examples import Split
from candid.data.files import open_file
from candid.data.folders import find_split_folders, folders_in, is_named_as_picture, leads_back, list_pictures
from candid.data.reading import FILES_AT_ONCE, MOST_THREADS, progress_bar
from candid.device import num_cores
from candid.errors import DataError


@dataclass(frozen=True)
class Place:
    """A folder whose pictures belong together, as its name and that of the one above it say."""

    split: Split | None
    """None where no folder says so."""
    class_name: str | None
    """None of pictures that lie in no class folder."""
    files: Sequence[str]
    """Relative to the data set's folder."""


@dataclass(frozen=True)
class Survey:
    """What was found out about N files that are named as pictures."""

    files: tuple[str, ...]
    heights: NDArray[np.int32]
    """[N] in px, upright; 0 of what cannot be decoded."""
    widths: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    """[N], positions in `kind_names`."""
    sha256: NDArray[np.uint8]
    """[N, 32], of the files' bytes."""
    looks: NDArray[np.uint64]
    """[N, 4], as `hash_looks` gives them."""
    kind_names: list[str] = field(default_factory=list[str])
    """Such as "JPEG RGB"."""
    problems: dict[int, str] = field(default_factory=dict[int, str])
    """Why a file cannot be used, in a sentence that names it."""

    @classmethod
    def prepare(cls, files: Sequence[str]) -> "Survey":
        """One of files that nothing is known about."""
        number = len(files)
        return cls(
            tuple(files),
            np.zeros(number, np.int32),
            np.zeros(number, np.int32),
            np.zeros(number, np.uint8),
            np.zeros((number, 32), np.uint8),
            np.zeros((number, 4), np.uint64),
        )

    def hex_digests(self) -> dict[str, str]:
        """The SHA-256 of each file, as `hash_files` gives it."""
        return {file: digest.tobytes().hex() for file, digest in zip(self.files, self.sha256, strict=True)}


def list_places(folder: Path) -> tuple[list[Place], list[str]]:
    """The places in a folder, and what is wrong with folders that cannot be read."""
    places: list[Place] = []
    problems: list[str] = []
    above: list[tuple[Split | None, Path]] = []
    with _noting(problems):
        above.extend((split, path) for split, paths in find_split_folders(folder).items() for path in paths)
        above.extend([] if above else [(None, folder)])
    for split, path in above:
        if split and leads_back(path):
            continue
        inside = f"{path.relative_to(folder).as_posix()}/".removeprefix("./")
        with _noting(problems):
            class_folders = [entry for entry in folders_in(path) if not leads_back(entry)]
            stray = sorted(e.name for e in path.iterdir() if is_named_as_picture(e.name) and not e.is_dir())
            places.append(Place(split, None, [inside + name for name in stray]))
            for entry in class_folders:
                files: list[str] = []
                with _noting(problems):
                    files = list_pictures(entry)
                places.append(Place(split, entry.name, [f"{inside}{entry.name}/{file}" for file in files]))
    return places, problems


@contextmanager
def _noting(problems: list[str]) -> Generator[None]:
    """Go on behind what cannot be read."""
    try:
        yield
    except DataError as error:
        problems.append(str(error))


def survey(folder: Path, files: Sequence[str]) -> Survey:
    """Read and decode files, whose paths are relative to `folder`; a terminal shows how far it is."""
    found = Survey.prepare(files)
    parts = [slice(start, start + FILES_AT_ONCE) for start in range(0, len(files), FILES_AT_ONCE)]
    with progress_bar() as bar, ThreadPoolExecutor(min(MOST_THREADS, num_cores())) as pool:
        task = bar.add_task(f"Looking at {len(files):,} pictures", total=len(files))
        for number in pool.map(partial(_look_at, folder, found), parts):
            bar.advance(task, number)
    return found


def _look_at(folder: Path, found: Survey, part: slice) -> int:
    """Find out about the files in a part of the survey; their number."""
    files = found.files[part]
    squares = np.zeros((len(files), SIDE_PX, SIDE_PX), np.float32)
    for offset, file in enumerate(files):
        position = part.start + offset
        head, found.sha256[position] = _read(f"{folder}/{file}")
        try:
            pixels = decode_file(folder / file, 1)[0].numpy()  # uint8 [H, W]
        except UnreadablePicture as error:
            found.problems[position] = str(error)
            continue
        found.heights[position], found.widths[position] = pixels.shape
        found.kinds[position] = _index(found.kind_names, read_kind(head))
        square = Image.fromarray(pixels).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
        squares[offset] = np.asarray(square)
    found.looks[part] = hash_looks(squares)
    return len(files)


def _read(path: str) -> tuple[bytes, NDArray[np.uint8]]:
    """The first bytes of a file and the SHA-256 of all, [32]; one that cannot be read counts as empty."""
    head, digest = b"", hashlib.sha256()
    with suppress(OSError), open_file(path) as file:
        head = file.read(MAX_HEADER_BYTES)
        digest.update(head)
        while more := file.read(MAX_HEADER_BYTES):
            digest.update(more)
    return head, np.frombuffer(digest.digest(), np.uint8)


def _index(names: list[str], name: str) -> int:
    """The position of a name, which is added where it is new."""
    if name not in names:
        names.append(name)
    return names.index(name)
