import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NO_PICTURE
from PIL import Image

from candid.data.decoding import MAX_PIXELS, UnreadablePicture, decode, decode_file, is_grey

ORIENTATIONS: dict[
    int, Callable[[np.ndarray], np.ndarray]
] = {  # how a camera held like this stores the upright picture
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def test_pixels_of_a_lossless_picture_arrive_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    decoded = decode(encoded(Image.fromarray(pixels)), 3, "a.png")
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(orientation: int):
    upright = np.zeros((4, 6, 3), dtype=np.uint8)
    upright[0, 0] = 255  # the white corner belongs to the top left
    stored = Image.fromarray(np.ascontiguousarray(ORIENTATIONS[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(stored, exif=exif), 3, "a.png")
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), upright)


def test_sixteen_bit_grey_keeps_its_tones():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256)
    decoded = decode(encoded(Image.fromarray(ramp)), 1, "a.png")
    assert decoded[0, 0].tolist() == list(range(256))


@pytest.mark.parametrize("full_scale", [1.0, 255.0, 65535.0])
def test_float_tiff_keeps_its_tones(full_scale: float):
    ramp = np.linspace(0, full_scale, 256, dtype=np.float32).reshape(1, 256)
    decoded = decode(encoded(Image.fromarray(ramp), "TIFF"), 1, "a.tif")
    assert decoded[0, 0].tolist() == list(range(256))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(mode: str):
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0)).convert(mode)
    solid = Image.new("RGBA", (2, 2), (90, 90, 90, 255)).convert(mode)
    assert decode(encoded(clear), 3, "a.png").unique().tolist() == [255]
    assert decode(encoded(solid), 3, "a.png").unique().tolist() == [90]


def test_palette_bilevel_and_cmyk_become_rgb():
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for data in (encoded(red.convert("P")), encoded(red.convert("CMYK"), "TIFF")):
        assert decode(data, 3, "a")[:, 0, 0].tolist() == [255, 0, 0]
    assert decode(encoded(Image.new("1", (3, 3), 1)), 1, "a").unique().tolist() == [255]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, 3, "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_a_truncated_jpeg_is_refused_with_its_name(tmp_path: Path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded(noise, "JPEG")[:2000])
    with pytest.raises(UnreadablePicture) as caught:
        decode_file(path, 3)
    assert str(caught.value) == (
        f"{path} cannot be decoded: it is cut off; expected a whole picture (JPEG, PNG, GIF, BMP, TIFF, WebP, PPM)."
    )


def test_what_is_no_picture_is_refused_in_words(tmp_path: Path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("I am no picture")
    expected = {
        "empty.png": f"{tmp_path}/empty.png is empty (0 bytes); expected a picture.",
        "text.png": f"{tmp_path}/text.png cannot be decoded: {NO_PICTURE}",
        "none.png": f"{tmp_path}/none.png cannot be read: No such file or directory; expected a picture file.",
    }
    for name, text in expected.items():
        with pytest.raises(UnreadablePicture) as caught:
            decode_file(tmp_path / name, 3)
        assert str(caught.value) == text


def test_a_giant_is_refused_from_its_header():
    side = int(MAX_PIXELS**0.5) + 1
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    )
    with pytest.raises(UnreadablePicture) as caught:
        decode(b"\x89PNG\r\n\x1a\n" + chunks, 1, "giant.png")
    assert str(caught.value) == "giant.png has more than 100 million pixels; make it smaller to use it."


def test_grey_is_told_from_the_header(tmp_path: Path):
    Image.new("L", (2, 2)).save(tmp_path / "grey.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "color.png")
    assert is_grey(tmp_path / "grey.png")
    assert not is_grey(tmp_path / "color.png")
