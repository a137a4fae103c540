"""Folders that are decoded once: their squares are kept on the disk, in chunks named after what is in them.

A chunk holds consecutive pictures of a split, each as its pixels and their CRC-32. Its name is the SHA-256 over all
that the pixels depend on, so that a chunk with the right name is the right one, whoever made it and when: a build that
was interrupted goes on where it was, and two processes may build at once. Pictures whose chunk is found damaged, or was
taken away, are decoded from their files, and the next start makes it anew. Where the pictures cannot be kept, they are
decoded each time, and one line says why.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Self
from zlib import crc32

import numpy as np
import PIL
import torch
from rich.console import Console
from torch import Tensor

from candid.data.decoding import VERSION, UnreadablePicture
from candid.data.examples import FileExamples
from candid.data.hashing import hash_files
from candid.data.preprocessing import Preprocessing
from candid.data.reading import decoding, read_square, refuse_unreadable
from candid.durable import cache_folder, write_file
from candid.sizes import size

MAX_BYTES = 32 * 2**30
"""Of all chunks; two sets of 100,000 pictures at 224 px find room. Those that were not used for longest have to go."""
SPARE_BYTES = 2 * 2**30
"""What a build leaves free on the disk, for checkpoints and everything else."""
CHUNK_PICTURES, CHUNK_BYTES = 1024, 8 * 2**20
"""The most that a chunk holds. While one is decoded, the one before is written, and that is all that memory holds."""
CRC_BYTES = 4


@dataclass(frozen=True)
class Chunk:
    """Consecutive pictures of a split in one file of the cache."""

    path: Path
    files: tuple[str, ...]
    sha256: tuple[str, ...]

    def is_there(self, row_bytes: int) -> bool:
        """Whether its file exists in full length; whether the bytes are right is seen when they are read."""
        try:
            return self.path.stat().st_size == self.num_bytes(row_bytes)
        except OSError:
            return False

    def num_bytes(self, row_bytes: int) -> int:
        """Of the file."""
        return len(self.files) * (row_bytes + CRC_BYTES)

    def write(self, pictures: Tensor, root: Path) -> None:
        """Keep the pictures [N, C, side, side], unless a file has changed since its SHA-256 was taken."""
        if hash_files(root, self.files) != list(self.sha256):
            return
        rows = pictures.flatten(1).numpy()
        records = ((row.data, crc32(row).to_bytes(CRC_BYTES, "little")) for row in rows)
        own = self.path.with_name(f"{self.path.name}-{os.getpid()}")  # others may be writing the same chunk
        write_file(own, chain.from_iterable(records))
        own.replace(self.path)

    def read(self, wanted: Sequence[int], row_bytes: int) -> list[memoryview] | None:
        """The pixels of the wanted pictures; None where they are not as they were written, and then the file is gone.

        They are copied out of the file: mapped pages would count as memory of the process.
        """
        record_bytes = row_bytes + CRC_BYTES
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                records = [memoryview(os.pread(descriptor, record_bytes, row * record_bytes)) for row in wanted]
            finally:
                os.close(descriptor)
        except OSError:
            records = [memoryview(b"")]
        are_right = all(
            len(record) == record_bytes and crc32(record[:row_bytes]) == int.from_bytes(record[row_bytes:], "little")
            for record in records
        )
        if are_right:
            return [record[:row_bytes] for record in records]
        with suppress(OSError):  # so that the next start makes it anew
            self.path.unlink()
        return None


@dataclass(frozen=True, kw_only=True)
class CachedExamples(FileExamples):
    """Examples whose squares are read from the cache."""

    preprocessing: Preprocessing
    """By which they were made square."""
    chunks: tuple[Chunk, ...]
    places: Tensor
    """int64 [N, 2]: the chunk of each example and its row there."""

    def select(self, indices: Tensor) -> Self:
        """The examples at `indices` [M], in that order."""
        return replace(super().select(indices), places=self.places[indices])

    def read(self, indices: Tensor) -> Tensor:
        """Squares uint8 [M, C, side, side] of the examples at `indices` [M].

        Raises:
            DataError: if pictures have to be decoded anew, and cannot be.
        """
        shape = picture_shape(self.preprocessing)
        pictures = torch.empty(len(indices), *shape, dtype=torch.uint8)
        rows, position = pictures.flatten(1).numpy(), 0
        for number, group in groupby(self.places[indices].tolist(), itemgetter(0)):
            chunk, wanted = self.chunks[number], [row for _, row in group]
            found = chunk.read(wanted, rows.shape[1])
            if found is None:
                pictures[position : position + len(wanted)] = self._decode([chunk.files[row] for row in wanted])
            for offset, row in enumerate(found or []):
                rows[position + offset] = np.frombuffer(row, dtype=np.uint8)
            position += len(wanted)
        return pictures

    def _decode(self, files: Sequence[str]) -> Tensor:
        pictures: list[Tensor] = []
        problems: dict[Path, str] = {}
        for file in files:
            try:
                pictures.append(read_square(self.root / file, self.preprocessing))
            except UnreadablePicture as error:
                problems[self.root / file] = str(error)
        refuse_unreadable(problems)
        return torch.stack(pictures)


def open_cached(examples: FileExamples, preprocessing: Preprocessing) -> CachedExamples | None:
    """The examples with their squares in the cache, decoded where they were not there; None where they cannot be kept.

    Raises:
        UnreadablePictures: if there are such, with all of them. What else was decoded is kept.
    """
    folder, row_bytes = cache_folder() / "pictures", int(np.prod(picture_shape(preprocessing)))
    try:
        needed = len(examples) * (row_bytes + CRC_BYTES)
        if needed > MAX_BYTES:
            raise _NoRoom(needed, MAX_BYTES)
        known = replace(examples, sha256=examples.sha256 or tuple(hash_files(examples.root, examples.files)))
        chunks = _cut_chunks(known, preprocessing, folder)
        missing = [chunk for chunk in chunks if not chunk.is_there(row_bytes)]
        _make_room(folder, chunks, sum(chunk.num_bytes(row_bytes) for chunk in missing))
        _build(missing, known.root, preprocessing)
    except (OSError, _NoRoom) as error:
        reason = str(error) if isinstance(error, _NoRoom) else f"{error.filename} cannot be used ({error.strerror})"
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        console.print(f"The pictures are decoded each time, and not kept in {folder}: {reason}.", markup=False)
        return None
    places = [(number, row) for number, chunk in enumerate(chunks) for row in range(len(chunk.files))]
    return CachedExamples(**vars(known), preprocessing=preprocessing, chunks=tuple(chunks), places=torch.tensor(places))


def picture_shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    """(C, side, side) of what the cache holds."""
    return preprocessing.channels, preprocessing.image_size, preprocessing.image_size


class _NoRoom(Exception):
    def __init__(self, needed: int, room: int) -> None:
        super().__init__(f"they take {size(needed)}, and there is room for {size(max(0, room))}")


def _cut_chunks(examples: FileExamples, preprocessing: Preprocessing, folder: Path) -> list[Chunk]:
    """The examples in chunks.

    A chunk ends where it is full, or behind a picture that its own SHA-256 chooses: so that the chunks behind a picture
    that is added or taken away stay what they are.
    """
    most = max(1, min(CHUNK_PICTURES, CHUNK_BYTES // int(np.prod(picture_shape(preprocessing)))))
    made_by = (*picture_shape(preprocessing), preprocessing.fit, VERSION, PIL.__version__, torch.__version__)
    chunks: list[Chunk] = []
    first = 0
    for last, digest in enumerate(examples.sha256):
        is_full = last - first + 1 == most
        if is_full or int(digest[:8], 16) % max(1, most // 2) == 0 or last == len(examples) - 1:
            own = slice(first, last + 1)
            name = hashlib.sha256("\n".join(map(str, (*made_by, *examples.sha256[own]))).encode()).hexdigest()
            chunks.append(Chunk(folder / name, examples.files[own], examples.sha256[own]))
            first = last + 1
    return chunks


def _make_room(folder: Path, chunks: Sequence[Chunk], needed: int) -> None:
    """Take away the files that were not used for longest, as far as `needed` bytes have no room beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    own, files = {chunk.path.name for chunk in chunks}, dict[str, os.stat_result]()
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # other processes make and take away files, too
            files[name] = (folder / name).stat()
            if name in own:
                os.utime(folder / name)
    others = sorted(files.keys() - own, key=lambda name: files[name].st_mtime)
    held = sum(status.st_size for status in files.values())
    room = min(MAX_BYTES - held, shutil.disk_usage(folder).free - SPARE_BYTES)
    possible = room + sum(files[name].st_size for name in others)
    if needed > max(0, possible):
        raise _NoRoom(needed, possible)
    for name in others:
        if needed <= room:
            break
        (folder / name).unlink(missing_ok=True)
        room += files[name].st_size


def _build(missing: Sequence[Chunk], root: Path, preprocessing: Preprocessing) -> None:
    """Decode the chunks that are missing, each kept as soon as it is whole."""
    if not missing:
        return
    problems: dict[Path, str] = {}
    with decoding(sum(len(chunk.files) for chunk in missing), preprocessing) as decode, ThreadPoolExecutor(1) as writer:
        writing: Future[None] | None = None
        for chunk in missing:
            pictures, found = decode([root / file for file in chunk.files])
            problems |= found
            if writing is not None:
                writing.result()  # no more than one chunk waits to be written
            writing = None if found else writer.submit(chunk.write, pictures, root)
        if writing is not None:
            writing.result()
    refuse_unreadable(problems)
