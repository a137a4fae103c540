from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NO_PICTURE
from golden import encoded
from PIL import Image

from candid.data.decoding import UnreadablePicture, decode, decode_file, is_grey


def test_pixels_of_a_lossless_picture_arrive_unchanged():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    decoded = decode(encoded(pixels, "PNG"), 3, "a.png")
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


def test_sixteen_bit_grey_keeps_its_tones():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, 256)
    decoded = decode(encoded(ramp, "PNG"), 1, "a.png")
    assert decoded[0, 0].tolist() == list(range(256))


@pytest.mark.parametrize("full_scale", [1.0, 255.0, 65535.0])
def test_float_tiff_keeps_its_tones(full_scale: float):
    ramp = np.linspace(0, full_scale, 256, dtype=np.float32).reshape(1, 256)
    decoded = decode(encoded(ramp, "TIFF"), 1, "a.tif")
    assert decoded[0, 0].tolist() == list(range(256))


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


def test_grey_is_told_from_the_header(tmp_path: Path):
    Image.new("L", (2, 2)).save(tmp_path / "grey.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "color.png")
    assert is_grey(tmp_path / "grey.png")
    assert not is_grey(tmp_path / "color.png")
