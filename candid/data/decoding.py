"""Bytes to pixels: the only decoder, used alike for training, evaluation and prediction.

Whatever the file says, the result is uint8 with 1 (grey) or 3 (RGB) channels: turned upright by its EXIF
orientation, 16-bit and float grey scaled to 8 bits, palette and CMYK converted, transparency laid over white,
the first frame of an animation. A JPEG that is much larger than what is needed is decoded at a half, a quarter or an
eighth of its size, which takes a fraction of the time.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from candid.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
"""What a file name must end with to be taken for a picture inside a folder."""

VERSION = 1
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


class UnreadablePicture(DataError):
    """One file is not a picture that can be decoded; the text names it and says why."""


def decode_file(path: Path, channels: Literal[1, 3], shrinkage: Shrinkage | None = None) -> Tensor:
    """uint8 [channels, H, W] of the picture at `path`; UnreadablePicture says what is wrong with it.

    Of a JPEG that `shrinkage` will make much smaller, H and W are those at which it is decoded.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadablePicture(f"{path} cannot be read: {error.strerror}; expected a picture file.") from None
    return decode(data, channels, str(path), shrinkage)


def decode(data: bytes, channels: Literal[1, 3], name: str, shrinkage: Shrinkage | None = None) -> Tensor:
    """uint8 [channels, H, W] of an encoded picture, as in `decode_file`; `name` is what an error calls it."""
    if not data:
        raise UnreadablePicture(f"{name} is empty (0 bytes); expected a picture.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged metadata; the pixels decide
            with Image.open(io.BytesIO(data)) as image:
                _refuse_giants(image, name)
                if shrinkage is not None:
                    _reduce_scale(image, shrinkage)
                image.load()
                upright = ImageOps.exif_transpose(image)
                pixels = np.array(_to_eight_bits(upright).convert("L" if channels == 1 else "RGB"))
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError:
        raise UnreadablePicture(_too_large(name)) from None
    except Exception as error:  # Pillow's decoders raise whatever their format's parser stumbles over
        reason = "no format that candid reads" if _is_unknown(error) else str(error)
        raise UnreadablePicture(
            f"{name} cannot be decoded: {reason}; expected a whole picture (JPEG, PNG, GIF, BMP, TIFF, WebP, PPM)."
        ) from None
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def is_grey(path: Path) -> bool:
    """Whether the picture's header says that it has no colour; False where the header cannot be read."""
    try:
        with Image.open(path) as image:
            return image.mode in {"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L"}
    except Exception:  # the same whatever that decode() reports properly
        return False


def _refuse_giants(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadablePicture(_too_large(name))


def _reduce_scale(image: Image.Image, shrinkage: Shrinkage) -> None:
    """Have a JPEG decoded at the smallest scale that leaves it large enough; other formats have only one."""
    if image.format not in ("JPEG", "MPO"):
        return
    is_swapped = image.getexif().get(ORIENTATION_TAG) in SWAPPED_ORIENTATIONS
    height, width = (image.width, image.height) if is_swapped else (image.height, image.width)
    surplus = shrinkage(height, width) / LEAST_SURPLUS
    scale = next((scale for scale in JPEG_SCALES if scale <= surplus), None)
    if scale is not None:
        image.draft(None, (image.width // scale, image.height // scale))


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 1_000_000} million pixels; make it smaller to use it."


def _is_unknown(error: Exception) -> bool:
    return type(error).__name__ == "UnidentifiedImageError"


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """The picture in a mode whose conversion to grey or RGB keeps what a person sees."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_scale_to_eight_bits(np.asarray(image), is_float=image.mode == "F"))
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image


def _scale_to_eight_bits(values: np.ndarray, *, is_float: bool) -> np.ndarray:
    """uint8 of integer (16-bit) or float grey values.

    Integers span 0 to 65535. Floats have no agreed range: values within [0, 1] are taken as that range,
    within [0, 255] as 8-bit, anything else as 16-bit.
    """
    if not is_float:
        return (values.astype(np.int64).clip(0, 65535) / 257 + 0.5).astype(np.uint8)
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(finite.max())
    full_scale = 1.0 if largest <= 1 else 255.0 if largest <= 255 else 65535.0
    return (finite.clip(0, full_scale) * (255 / full_scale) + 0.5).astype(np.uint8)
