"""Whatever is changed in a picture file, it is decoded or it is UnreadablePicture, within 2 s and 256 MiB."""

import json
import os
import struct
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from golden import chunk, golden_files
from processes import outcome, start
from test_picture_limits import most_held_mib

from candid.data.decoding import UnreadablePicture, decode, decode_file, is_grey

MOST_S, MOST_MIB = 2, 256
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
LARGEST_BYTES = 4_000
"""Of the pictures that are changed; larger ones show nothing more and take longer."""


class Changes:
    """Picture number 0, 1, ... of an endless row, each a function of its number alone."""

    def __init__(self) -> None:
        files = golden_files()
        self.names = [name for name in files if len(files[name][0]) <= LARGEST_BYTES]
        self.data = [files[name][0] for name in self.names]

    def make(self, number: int) -> tuple[str, bytes]:
        """The name of what was changed, and the result."""
        random = Random(number)
        name, data = self.names[number % len(self.names)], bytearray(self.data[number % len(self.names)])
        for _ in range(random.choice((1, 1, 2, 4))):
            change = random.choice(
                (self._flip, self._flip, self._set, self._set, self._cut, self._splice, self._repeat)
            )
            data = change(data, random)
        is_png = data.startswith(b"\x89PNG")
        return name, with_checksums(data) if is_png and random.random() < 0.7 else bytes(data)

    def _place(self, data: bytearray, random: Random) -> int:
        """Half of them where headers are."""
        return random.randrange(min(len(data), 200) if random.random() < 0.5 else len(data)) if data else 0

    def _flip(self, data: bytearray, random: Random) -> bytearray:
        for _ in range(random.choice((1, 1, 3, 20))):
            if data:
                data[self._place(data, random)] ^= 1 << random.randrange(8)
        return data

    def _set(self, data: bytearray, random: Random) -> bytearray:
        """A number of 1, 2 or 4 bytes that programs stumble over."""
        size, order = random.choice("BHI"), random.choice("<>")
        place, number = self._place(data, random), random.choice(NUMBERS)
        new = struct.pack(order + size, number % 256 ** struct.calcsize(size))
        data[place : place + len(new)] = new
        return data

    def _cut(self, data: bytearray, random: Random) -> bytearray:
        return data[: self._place(data, random)]

    def _splice(self, data: bytearray, random: Random) -> bytearray:
        other = random.choice(self.data)
        return data[: self._place(data, random)] + other[random.randrange(len(other)) :]

    def _repeat(self, data: bytearray, random: Random) -> bytearray:
        place = self._place(data, random)
        return data[:place] + data[place : place + random.randrange(1, 100)] * random.randrange(2, 9) + data[place:]


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right ones, so that what is in them is looked at."""
    parts, place = [bytes(data[:8])], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        parts.append(chunk(bytes(data[place + 4 : place + 8]), bytes(data[place + 8 : place + 8 + length])))
        place += 12 + length
    return b"".join(parts)


def decode_changed(first: int, number: int, folder: Path) -> None:
    """Decode changed pictures one after the other; what goes wrong is written down, and where it stands."""
    changes, path, results = Changes(), folder / "picture", Counter[str]()
    for name, (data, _) in golden_files().items():  # so that what is needed once for a format is there
        decode(data, 3, name)
    os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT), 2)  # libtiff has a word for each picture
    progress = os.open(folder / "progress", os.O_WRONLY | os.O_CREAT)
    file = path.open("wb", buffering=0)
    slowest_s, held_mib = 0.0, most_held_mib()
    for position in range(first, first + number):
        name, data = changes.make(position)
        os.pwrite(progress, f"picture {position:,}, of {name:40}".encode(), 0)
        file.seek(0)
        file.write(data)
        file.truncate()  # where to write a new file each time would wait for the disk
        began_at_s = time.process_time()
        try:
            results[decode_one(position, path, data)] += 1
        except BaseException as error:
            (folder / "problem").write_text(f"{type(error).__name__} escapes: {error}")
            raise
        took_s = time.process_time() - began_at_s
        slowest_s = max(slowest_s, took_s)
        if took_s > MOST_S or most_held_mib() - held_mib > MOST_MIB:
            (folder / "problem").write_text(f"{took_s:.1f} s, {most_held_mib() - held_mib:.0f} MiB")
            raise SystemExit(1)
    summary = {**results, "slowest_s": round(slowest_s, 3), "mib": round(most_held_mib() - held_mib)}
    (folder / "summary").write_text(json.dumps(summary))


def decode_one(position: int, path: Path, data: bytes) -> str:
    """Every second time as a file and at a smaller scale, every third in grey."""
    channels = 1 if position % 3 == 0 else 3
    try:
        if position % 2:
            is_grey(path)
            decode_file(path, channels, lambda height, width: min(height, width) / 4)
        else:
            decode(data, channels, str(path))
    except UnreadablePicture:
        return "refused"
    return "decoded"


def fuzz(number: int, folder: Path, timeout_s: float) -> dict[str, float]:
    """What came of so many changed pictures, which a process of its own decodes: a decoder in C can end it."""
    code = outcome(start(decode_changed, 0, number, folder), timeout_s)
    problem = (folder / "problem").read_text() if (folder / "problem").exists() else ""
    assert code == 0, f"exit code {code} at {(folder / 'progress').read_text().rstrip()}: {problem}"
    summary = json.loads((folder / "summary").read_text())
    assert summary["decoded"] + summary["refused"] == number
    assert min(summary["decoded"], summary["refused"]) > number / 10  # or they would show little
    return summary


def test_ten_thousand_changed_pictures_raise_nothing_else(tmp_path: Path):
    fuzz(10_000, tmp_path, timeout_s=300)


@pytest.mark.long
def test_a_million_changed_pictures_raise_nothing_else(tmp_path: Path):
    print(fuzz(1_000_000, tmp_path, timeout_s=7200))


def test_every_format_is_among_them():
    suffixes = {Path(name).suffix for name in Changes().names}
    assert suffixes == {".jpg", ".png", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".pgm"}
