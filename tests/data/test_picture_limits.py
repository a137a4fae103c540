"""No picture exhausts memory or time: each of these is refused or decoded within 64 MiB and 0.2 s of processor time."""

import json
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import BLOCKS, COLOR, chunk, encoded, golden_files, png, run_length_bmp
from PIL import Image
from processes import outcome, start

from candid.data.decoding import SMALL_PIXELS, UnreadablePicture, decode, decode_file
from candid.data.preprocessing import Preprocessing
from candid.data.reading import read_square

MOST_MIB, MOST_S = 64, 0.2
SIDE = int(SMALL_PIXELS**0.5)
"""Of the largest square that may be in a file of any size."""
LONG = 65_535
TEXT = b"x" * 50_000_000
FRAMES = PAGES = 10_000
FORMATS = "expected a whole picture (JPEG, PNG, GIF, BMP, TIFF, WebP, PPM)."
TOO_LARGE = "{} has more than 100 million pixels; make it smaller to use it."
SLOW = (
    "{} has {} pixels in a form of its format that takes seconds to decode; expected at most 1 million of them. "
    "Save it as PNG to use it."
)
ENDLESS = f"{{}} cannot be decoded: its header goes on for more than 16 MB; {FORMATS}"


def giant_png(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(side))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def resized_header(data: bytes, place: int, kind: str, *sides: int) -> bytes:
    """The file with other sides written at `place`."""
    new = struct.pack(kind, *sides)
    return data[:place] + new + data[place + len(new) :]


def giant_jpeg() -> bytes:
    data = encoded(BLOCKS, "JPEG")
    return resized_header(data, data.index(b"\xff\xc0") + 5, ">HH", 65_000, 65_000)


def giant_webp() -> bytes:
    data = encoded(COLOR, "WEBP", lossless=True)
    return resized_header(data, 21, "<I", 16_382 | 16_382 << 14)


def giant_tile() -> bytes:
    """A picture of a pixel in a tile of a thousand million, all of which would be unpacked."""
    tags = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32_768, 323: 32_768, 324: 8, 325: 0}
    data = zlib.compress(bytes(2**25))
    tags[325] = len(data)
    return one_page(tags, data)


def one_page(tags: dict[int, int], data: bytes, following: int = 0) -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    start = 8 + len(data)
    return (
        struct.pack("<2sHI", b"II", 42, start)
        + data
        + struct.pack("<H", len(tags))
        + entries
        + struct.pack("<I", following)
    )


def repeated_strip() -> bytes:
    """A row for each pixel row, and all of them the same one."""
    row = bytes(3 * SIDE)
    offsets = struct.pack(f"<{SIDE}I", *[8] * SIDE)
    counts = struct.pack(f"<{SIDE}I", *[len(row)] * SIDE)
    place = 8 + len(row)
    entries = [(256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, SIDE, place), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, SIDE, place + len(offsets))]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    body = row + offsets + counts
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(body)) + body + struct.pack("<H", len(entries)) + directory + bytes(4)
    )


def long_gif() -> bytes:
    once = encoded(FEW, "GIF", interlace=0)
    frame = once.index(b",", 13 + 3 * 8)
    return once[:frame] + once[frame:-1] * FRAMES + b";"


def long_png() -> bytes:
    once = encoded(COLOR, "PNG")
    image_data = once[once.index(b"IDAT") + 4 : -16]
    parts = [once[:33], chunk(b"acTL", struct.pack(">II", FRAMES, 0))]
    for number in range(FRAMES):
        control = struct.pack(">IIIIIHHBB", max(0, 2 * number - 1), *COLOR.shape[1::-1], 0, 0, 1, 10, 0, 0)
        following = chunk(b"fdAT", struct.pack(">I", 2 * number) + image_data)
        parts += [chunk(b"fcTL", control), following if number else chunk(b"IDAT", image_data)]
    return b"".join([*parts, once[-12:]])


def long_webp() -> bytes:
    height, width = (side - 1 for side in COLOR.shape[:2])
    frame = encoded(COLOR, "WEBP", lossless=True)[12:]
    sides = width.to_bytes(3, "little") + height.to_bytes(3, "little")
    control = bytes(6) + sides + (10).to_bytes(3, "little") + b"\2"
    frames = (b"ANMF" + struct.pack("<I", len(control + frame)) + control + frame) * FRAMES
    body = b"WEBPVP8X" + struct.pack("<II", 10, 2) + sides + b"ANIM" + struct.pack("<IIH", 6, 0, 0) + frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def long_tiff() -> bytes:
    """Pages that all show the same pixels."""
    tags = {256: 24, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 24 * 16}
    first = one_page(tags, COLOR[:, :, 0].tobytes())
    start = 8 + 24 * 16
    page = first[start:-4]
    size = len(page) + 4
    pages = [
        page + struct.pack("<I", start + size * (number + 1) if number + 1 < PAGES else 0) for number in range(PAGES)
    ]
    return first[:start] + b"".join(pages)


def with_text(kind: bytes, body: bytes) -> bytes:
    data = encoded(COLOR, "PNG")
    return data[:33] + chunk(kind, body) + data[33:]


def text_at_the_end(kind: bytes, body: bytes) -> bytes:
    data = encoded(COLOR, "PNG")
    return data[:-12] + chunk(kind, body) + data[-12:]


def jpeg_with_comments() -> bytes:
    comment = b"\xff\xfe" + struct.pack(">H", 65_535) + TEXT[:65_533]
    return b"\xff\xd8" + comment * 763 + encoded(BLOCKS, "JPEG")[2:]


def gif_with_comment() -> bytes:
    data = encoded(FEW, "GIF")
    place = 13 + 3 * 8
    return data[:place] + b"!\xfe" + (b"\xff" + TEXT[:255]) * 200_000 + b"\0" + data[place:]


def tiff_with_description() -> bytes:
    tags = {256: 24, 257: 16, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 16, 279: 24 * 16}
    data = one_page(tags | {270: 8 + 24 * 16}, COLOR[:, :, 0].tobytes() + TEXT)
    return data.replace(struct.pack("<HHI", 270, 4, 1), struct.pack("<HHI", 270, 2, len(TEXT)))


def ended_lines(side: int) -> bytes:
    """A BMP whose lines have a pixel each and then end, so that the rest is filled in."""
    data = run_length_bmp(np.zeros((side, 1), int), np.zeros((2, 3)))
    return resized_header(data[:-2] + bytes(4), 18, "<i", side)


def many_scans() -> bytes:
    """A progressive JPEG that refines its pixels over and over."""
    beginning, last = encoded(Image.new("RGB", (SIDE, SIDE)), "JPEG", progressive=True).rsplit(b"\xff\xda", 1)
    return beginning + (b"\xff\xda" + last[:-2]) * 1_000 + b"\xff\xd9"


def progressive_cmyk() -> bytes:
    return encoded(Image.new("CMYK", (SIDE, SIDE)), "JPEG", progressive=True)


def blank(mode: str, file_format: str, **options: object) -> bytes:
    return encoded(Image.new(mode, (SIDE, SIDE)), file_format, **options)


def sides_of(width: int, height: int, file_format: str, **options: object) -> bytes:
    return encoded(Image.new("RGB", (width, height), (10, 20, 30)), file_format, **options)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "giant.png": (lambda: giant_png(20_000), TOO_LARGE),
    "just-small-enough.png": (
        lambda: giant_png(9_999),
        f"{{}} has 100.0 million pixels in {len(giant_png(9_999))} bytes, as have files that are made to exhaust "
        "memory; expected at most 400 pixels for each byte. Make it smaller to use it.",
    ),
    "giant.jpg": (giant_jpeg, TOO_LARGE),
    "giant.gif": (lambda: resized_header(encoded(COLOR[:, :, 0], "GIF"), 6, "<HH", LONG, LONG), TOO_LARGE),
    "giant.webp": (giant_webp, TOO_LARGE),
    "giant.bmp": (lambda: resized_header(encoded(COLOR, "BMP"), 18, "<II", LONG, LONG), TOO_LARGE),
    "giant.ppm": (lambda: b"P6 60000 60000 255 ", TOO_LARGE),
    "giant.tif": (lambda: one_page({256: 60_000, 257: 60_000, 258: 8, 262: 1, 273: 8, 277: 1}, b"x"), TOO_LARGE),
    "giant-tile.tif": (giant_tile, TOO_LARGE),
    "slow.bmp": (lambda: ended_lines(1_001), SLOW.format("{}", "1001 x 1001")),
    "slow.ppm": (lambda: b"P3 5000 5000 255 " + b"1 " * 200_000, SLOW.format("{}", "5000 x 5000")),
    "scans.jpg": (
        many_scans,
        "{} has more than 50 scans, as have files that are made to take time. Save it anew to use it.",
    ),
    "comments.jpg": (jpeg_with_comments, ENDLESS),
    "comment.gif": (gif_with_comment, ENDLESS),
    "description.tif": (tiff_with_description, ENDLESS),
    "comment.ppm": (lambda: b"P6\n#" + TEXT, ENDLESS),
    "padding.jpg": (lambda: b"\xff\xd8\xff\xfe\0\2" + TEXT, ENDLESS),
    "palette.png": (lambda: with_text(b"PLTE", TEXT), ENDLESS),
}
SQUARE = (SIDE, SIDE)
FEW = Image.fromarray(COLOR).quantize(8)
DECODED: dict[str, tuple[Callable[[], bytes], np.ndarray | tuple[int, int]]] = {  # to its pixels, or to its sides
    "text.png": (lambda: with_text(b"tEXt", b"Comment\0" + TEXT), COLOR),
    "text-behind.png": (lambda: text_at_the_end(b"tEXt", b"Comment\0" + TEXT), COLOR),
    "packed-text.png": (lambda: with_text(b"zTXt", b"Comment\0\0" + zlib.compress(TEXT)), COLOR),
    "unicode-text.png": (lambda: with_text(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(TEXT)), COLOR),
    "profile.png": (lambda: with_text(b"iCCP", b"Profile\0\0" + zlib.compress(TEXT)), COLOR),
    "frames.gif": (long_gif, np.asarray(FEW.convert("RGB"))),
    "frames.png": (long_png, COLOR),
    "frames.webp": (long_webp, COLOR),
    "pages.tif": (long_tiff, np.repeat(COLOR[:, :, :1], 3, axis=2)),
    "blank.png": (lambda: blank("RGBA", "PNG"), SQUARE),
    "blank-16.png": (lambda: png(np.zeros((SIDE, SIDE, 4), int), 16, 6), SQUARE),
    "blank-grey-16.png": (lambda: png(np.zeros((SIDE, SIDE), int), 16, 0), SQUARE),
    "blank.gif": (lambda: blank("P", "GIF", transparency=0), SQUARE),
    "blank.webp": (lambda: blank("RGBA", "WEBP", lossless=True), SQUARE),
    "blank.jpg": (progressive_cmyk, SQUARE),
    "blank.tif": (lambda: blank("RGBA", "TIFF", compression="tiff_deflate"), SQUARE),
    "blank-float.tif": (lambda: blank("F", "TIFF", compression="tiff_deflate"), SQUARE),
    "repeated-strip.tif": (repeated_strip, SQUARE),
    "blank.bmp": (lambda: ended_lines(700), (700, 700)),
    "wide.png": (lambda: sides_of(LONG, 1, "PNG"), (1, LONG)),
    "tall.png": (lambda: sides_of(1, LONG, "PNG"), (LONG, 1)),
    "wide.jpg": (lambda: sides_of(65_500, 1, "JPEG"), (1, 65_500)),
    "tall.jpg": (lambda: sides_of(1, 65_500, "JPEG"), (65_500, 1)),
    "wide.gif": (lambda: sides_of(LONG, 1, "GIF"), (1, LONG)),
    "wide.tif": (lambda: sides_of(LONG, 1, "TIFF"), (1, LONG)),
    "wide.bmp": (lambda: sides_of(LONG, 1, "BMP"), (1, LONG)),
}


def spend(path: Path, said: Path) -> None:
    """Decode a picture and make a square of it, and write down what came of it and what it cost."""
    for name, (data, _) in golden_files().items():  # so that what is needed once for a format is there
        decode(data, 3, name)
    preprocessing = Preprocessing(image_size=224, channels=3, fit="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
    preprocessing.make_square(torch.zeros(3, 300, 400, dtype=torch.uint8))
    held, times_s = most_held_mib(), [time.process_time()]
    try:
        result = list(decode_file(path, 3).shape[1:])
        times_s.append(time.process_time())
        read_square(path, preprocessing)
    except UnreadablePicture as error:
        result = str(error)
    times_s.append(time.process_time())
    took_s = max(after - before for before, after in pairwise(times_s))
    said.write_text(json.dumps([result, most_held_mib() - held, took_s]))


def most_held_mib() -> float:
    """The most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def decode_cheaply(path: Path) -> object:
    """What comes of decoding the picture, the sides or the text of an error, which must cost little."""
    said = path.with_name("said.json")
    assert outcome(start(spend, path, said)) == 0
    result, mib, took_s = json.loads(said.read_text())
    assert mib < MOST_MIB
    assert took_s < MOST_S
    return result


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_out_of_proportion_is_refused_from_its_header(tmp_path: Path, name: str):
    make, text = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(make())
    assert decode_cheaply(path) == text.format(path)


@pytest.mark.parametrize("name", DECODED)
def test_what_can_be_decoded_is_and_costs_little(tmp_path: Path, name: str):
    make, expected = DECODED[name]
    path = tmp_path / name
    path.write_bytes(make())
    assert decode_cheaply(path) == list(expected if isinstance(expected, tuple) else expected.shape[:2])
    if isinstance(expected, np.ndarray):
        assert np.array_equal(decode_file(path, 3).permute(1, 2, 0).numpy(), expected)
