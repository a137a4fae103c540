"""Bytes to pixels: the only decoder, used alike for training, evaluation and prediction.

Whatever the file says, the result is uint8 with 1 (grey) or 3 (RGB) channels: turned upright by its EXIF
orientation, 16-bit and float grey scaled to 8 bits, palette and CMYK converted, transparency laid over white,
the first frame of an animation, the first page of a TIFF. A JPEG that is much larger than what is needed is decoded at
a half, a quarter or an eighth of its size, which takes a fraction of the time.

Colour profiles are ignored: values are taken for sRGB. Published weights were trained and measured so, and a profile is
more code that hostile files reach. What Pillow cannot decode, and integers beyond 16 bits, which have no certain
meaning, are refused with the reason.

What a file costs is bounded before its pixels are decoded: how much of it is read, and how many pixels it may have for
its size. A file of a few kilobytes takes at most 64 MB and 0.2 s, whatever it says.
"""

import io
import math
import re
import struct
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    TILELENGTH,
    TILEWIDTH,
    TiffImageFile,
)
from PIL.WebPImagePlugin import WebPImageFile
from torch import Tensor

from candid.data.deep_grey import DeepGrey, find_white
from candid.data.files import CALL_BYTES, Rationed, ReadTooMuch, open_file
from candid.data.png import SIGNATURE, pixel_chunks
from candid.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""What a file name must end with to be taken for a picture inside a folder."""

VERSION = 2
"""Of the pixels that come out; to be raised with every change of them."""

Shrinkage = Callable[[int, int], float]
"""How many times smaller a picture of this height and width, in px and upright, will be made."""

JPEG_SCALES = (8, 4, 2)
"""How many times smaller a JPEG can be decoded; its blocks have 8 x 8 px."""
LEAST_SURPLUS = 2
"""A picture is decoded with at least so many times the sides that it will have, so that the rest is resized well."""
ORIENTATION_TAG, SWAPPED_ORIENTATIONS = 0x0112, (5, 6, 7, 8)
"""Where EXIF has the orientation, and those by which height and width change places."""

MAX_PIXELS = 100_000_000
"""Larger pictures are refused from their header, before any pixel is decoded."""
SMALL_PIXELS, MAX_PIXELS_PER_BYTE = 2_500_000, 400
"""Pictures above the first number need a byte for at most so many pixels, as blank RGB in a PNG does; else they are
taken for what they would be: a file of nothing that unpacks to gigabytes."""
SLOW_DECODERS, MAX_SLOW_PIXELS = frozenset({"bmp_rle", "ppm", "ppm_plain"}), 1_000_000
"""Pillow has these in Python: BMP in run lengths, PPM in words or with a white other than 255."""
MAX_HEADER_BYTES, BYTES_PER_PIXEL = 16 * 2**20, 2 * CALL_BYTES
"""How much is read of a file before its first pixel, and how much more for each; a run of one pixel takes two calls."""
START_OF_SCAN, MAX_SCANS, BLOCK_BYTES = re.compile(rb"\xff\xda\0[\x08\x0a\x0c\x0e]"), 50, 2**20
"""A scan of a progressive JPEG may have a few bytes, and goes through all pixels; a dozen is what encoders make."""
STRIP_PIXELS = 2**18
"""A large picture is converted so many pixels at a time."""

READERS: dict[bytes, Callable[[BinaryIO], ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    SIGNATURE: PngImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
    b"RIFF": WebPImageFile,
    **dict.fromkeys((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImageFile),
}
"""By how a file begins. Pillow knows more formats, some of which start other programs; each would have to be proved."""
CUT_OFF = "it is cut off"
FORMATS = "JPEG, PNG, GIF, BMP, TIFF, WebP, PPM"
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L"})
UPRIGHT: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""

WHITE_IS_ZERO = 0


class UnreadablePicture(DataError):
    """One file is not a picture that can be decoded; the text names it and says why."""


def decode_file(path: Path, channels: Literal[1, 3], shrinkage: Shrinkage | None = None) -> Tensor:
    """uint8 [channels, H, W] of the picture at `path`; UnreadablePicture says what is wrong with it.

    Of a JPEG that `shrinkage` will make much smaller, H and W are those at which it is decoded.
    """
    try:
        file = open_file(path)
    except OSError as error:
        raise UnreadablePicture(f"{path} cannot be read: {error.strerror}; expected a picture file.") from None
    with Rationed(file) as rationed:
        return _decode(rationed, channels, str(path), shrinkage)


def decode(data: bytes, channels: Literal[1, 3], name: str, shrinkage: Shrinkage | None = None) -> Tensor:
    """uint8 [channels, H, W] of an encoded picture, as in `decode_file`; `name` is what an error calls it."""
    return _decode(Rationed(io.BytesIO(data)), channels, name, shrinkage)


def to_image(pixels: Tensor) -> Image.Image:
    """Decoded pixels, uint8 [channels, H, W], as a picture that can be drawn on and saved."""
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def is_grey(path: Path) -> bool:
    """Whether the picture's header says that it has no colour; False where the header cannot be read."""
    try:
        with Rationed(open_file(path)) as file, _open(file) as image:
            return image.mode in GREY_MODES
    except Exception:  # the same whatever that decode_file() reports properly
        return False


def read_size(path: Path) -> tuple[int, int] | None:
    """Height and width in px of a picture, upright, by its header; None where that cannot be read."""
    try:
        with Rationed(open_file(path)) as file, _open(file) as image:
            return _upright_size(image)
    except Exception:  # the same whatever that decode_file() reports properly
        return None


def read_kind(beginning: bytes) -> str:
    """How a picture is stored, by the first bytes of its file: "JPEG RGB", "PNG RGBA", or "?" where they are none."""
    try:
        with _open(Rationed(io.BytesIO(beginning))) as image:
            return f"{image.format} {image.mode}"
    except Exception:  # the same whatever that decode_file() reports properly
        return "?"


def is_grey_kind(kind: str) -> bool:
    """Whether a picture of such a kind has no colour."""
    return kind.split()[-1] in GREY_MODES


def _decode(file: Rationed, channels: Literal[1, 3], name: str, shrinkage: Shrinkage | None) -> Tensor:
    try:
        num_bytes = file.seek(0, io.SEEK_END)
        if num_bytes == 0:
            raise UnreadablePicture(f"{name} is empty (0 bytes); expected a picture.")
        with _open(file) as image:
            _refuse_giants(image, num_bytes, name)
            file.ration += BYTES_PER_PIXEL * image.width * image.height
            if image.info.get("progressive"):
                _refuse_many_scans(file, name)
            if shrinkage is not None:
                _reduce_scale(image, shrinkage)
            image.load()
            pixels = _to_pixels(image, channels)
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError:
        raise UnreadablePicture(_too_large(name)) from None
    except Exception as error:  # Pillow's decoders raise whatever their format's parser stumbles over
        reason = CUT_OFF if _is_cut_off(error) else str(error) or type(error).__name__
        raise UnreadablePicture(f"{name} cannot be decoded: {reason}; expected a whole picture ({FORMATS}).") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


@contextmanager
def _open(file: Rationed) -> Generator[ImageFile]:
    """The picture in a file, of which only the header is read."""
    file.ration = MAX_HEADER_BYTES
    file.seek(0)
    beginning = file.read(16)
    file.seek(0)
    reader = next((READERS[signature] for signature in READERS if beginning.startswith(signature)), None)
    if reader is None:
        raise ValueError("no format that candid reads")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata; the pixels decide
        try:
            is_png = reader is PngImageFile
            image = reader(pixel_chunks(file, BYTES_PER_PIXEL, MAX_PIXELS) if is_png else file)
            _scale_transparency(image)
            _refuse_misread(image)
        except ReadTooMuch:
            raise ValueError(f"its header goes on for more than {MAX_HEADER_BYTES // 2**20} MB") from None
        except (SyntaxError, ValueError, OSError) as error:
            damaged = f"its header is damaged, or of a kind that candid does not read ({error})"
            raise ValueError(CUT_OFF if _is_cut_off(error) else damaged) from None
        with image:
            yield image


def _is_cut_off(error: Exception) -> bool:
    """Whether the data ended too soon; then Pillow's text counts bytes, which tells a person nothing."""
    return isinstance(error.__cause__, struct.error | IndexError) or "truncated" in str(error).lower()


def _scale_transparency(image: ImageFile) -> None:
    """Bring the value that is transparent to 8 bits, as Pillow brings the pixels of a PNG."""
    value, raw_mode = image.info.get("transparency"), image.tile[0][3] if image.tile else None
    if isinstance(value, int) and raw_mode in ("L;2", "L;4"):
        image.info["transparency"] = value * (85 if raw_mode == "L;2" else 17)
    elif isinstance(value, tuple) and raw_mode == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in value)


def _refuse_misread(image: ImageFile) -> None:
    """ValueError for what Pillow takes for 8 bits: uncompressed TIFFs with a plane of 16 bits for each colour."""
    if isinstance(image, TiffImageFile) and image.tag_v2.get(PLANAR_CONFIGURATION) == 2:
        is_raw = image.tag_v2.get(COMPRESSION, 1) == 1
        if is_raw and max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8:
            raise ValueError("planes of 16 bits, uncompressed")


def _refuse_giants(image: ImageFile, num_bytes: int, name: str) -> None:
    """Raise UnreadablePicture where decoding would take memory or time out of proportion."""
    num_pixels = image.width * image.height
    if isinstance(image, TiffImageFile):  # whose tiles may be larger than the picture
        tile_sides = [image.tag_v2.get(tag) for tag in (TILEWIDTH, TILELENGTH)]
        num_pixels = max(num_pixels, math.prod(side if isinstance(side, int) else 0 for side in tile_sides))
    if num_pixels > MAX_PIXELS:
        raise UnreadablePicture(_too_large(name))
    if num_pixels > max(SMALL_PIXELS, MAX_PIXELS_PER_BYTE * num_bytes):
        raise UnreadablePicture(
            f"{name} has {num_pixels / 1e6:.1f} million pixels in {num_bytes:,} bytes, as have files that are made to "
            f"exhaust memory; expected at most {MAX_PIXELS_PER_BYTE} pixels for each byte. Make it smaller to use it."
        )
    if num_pixels > MAX_SLOW_PIXELS and image.tile and image.tile[0][0] in SLOW_DECODERS:
        raise UnreadablePicture(
            f"{name} has {image.width} x {image.height} pixels in a form of its format that takes seconds to decode; "
            f"expected at most {MAX_SLOW_PIXELS // 1_000_000} million of them. Save it as PNG to use it."
        )


def _refuse_many_scans(file: Rationed, name: str) -> None:
    """Raise UnreadablePicture where a progressive JPEG would take time out of proportion."""
    file.seek(0)
    if sum(len(START_OF_SCAN.findall(block)) for block in iter(partial(file.read, BLOCK_BYTES), b"")) > MAX_SCANS:
        raise UnreadablePicture(
            f"{name} has more than {MAX_SCANS} scans, as have files that are made to take time. Save it anew to use it."
        )


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller to use it."


def _reduce_scale(image: ImageFile, shrinkage: Shrinkage) -> None:
    """Have a JPEG decoded at the smallest scale that leaves it large enough; other formats have only one."""
    if not isinstance(image, JpegImageFile):
        return
    height, width = _upright_size(image)
    surplus = shrinkage(height, width) / LEAST_SURPLUS
    scale = next((scale for scale in JPEG_SCALES if scale <= surplus), None)
    if scale is not None:
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))


def _upright_size(image: ImageFile) -> tuple[int, int]:
    """Height and width in px."""
    is_swapped = _orientation(image) in SWAPPED_ORIENTATIONS
    return (image.width, image.height) if is_swapped else (image.height, image.width)


def _orientation(image: ImageFile) -> object:
    """What EXIF says of how the camera was held; 1, upright, where it says nothing that makes sense."""
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # whatever Pillow's parser stumbles over; the pixels are not worse for it
        return 1


def _to_pixels(image: ImageFile, channels: Literal[1, 3]) -> np.ndarray:
    """uint8 [H, W, channels] of a picture that is loaded, made in strips: memory holds one of them in other modes."""
    turn = UPRIGHT.get(_orientation(image))  # of a TIFF that Pillow has turned already, it is 1
    upright = image if turn is None else image.transpose(turn)
    to_eight_bits = _how_to_eight_bits(image)
    width, height = upright.size
    pixels = np.empty((height, width, channels), dtype=np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = upright if rows >= height else upright.crop((0, top, width, min(top + rows, height)))
        converted = to_eight_bits(strip).convert("L" if channels == 1 else "RGB")
        pixels[top : top + rows] = np.asarray(converted).reshape(-1, width, channels)
    return pixels


def _how_to_eight_bits(image: ImageFile) -> Callable[[Image.Image], Image.Image]:
    """What brings each part of the picture into a mode whose conversion to grey or RGB keeps what a person sees."""
    if image.mode.startswith("I") or image.mode == "F":
        tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
        white = find_white(image, max(tags.get(BITSPERSAMPLE, (16,))))
        is_inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO  # which Pillow heeds up to 8 bits
        return DeepGrey(white, is_inverted, image.info.get("transparency")).to_eight_bits
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        return _lay_over_white
    return lambda part: part


def _lay_over_white(part: Image.Image) -> Image.Image:
    straight = part.convert("LA") if part.mode == "La" else part  # Pillow knows no other way from there
    rgba = straight.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
