"""Grey values of more than 8 bits to 8: integers of 16 bits, or of the 12 of some TIFFs, and floats."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

FLOAT_SCALES = (1.0, 255.0, 65535.0)
"""What white may be among floats, which have no agreed range: the least that no value exceeds, or else the last."""
TOLERANCE = 1.01
"""Resizing and rounding leave values a little above white."""


@dataclass(frozen=True)
class DeepGrey:
    """How the grey values of one picture are to be understood."""

    white: float
    """The value of white, where black is 0."""
    is_inverted: bool
    """Whether 0 is white, and `white` is black."""
    transparent: int | None
    """The value of pixels that are not to be seen."""

    def to_eight_bits(self, part: Image.Image) -> Image.Image:
        """A part of the picture, in one of the modes I and F, in mode L; what is transparent is white."""
        values = np.asarray(part)
        if part.mode == "F":
            finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).clip(0, self.white)
            levels = (finite * (255 / self.white) + 0.5).astype(np.uint8)
        else:
            white = int(self.white)
            levels = ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
        if self.is_inverted:
            levels = 255 - levels
        if self.transparent is not None:
            levels[values == self.transparent] = 255
        return Image.fromarray(levels)


def find_white(image: Image.Image, bits: int) -> float:
    """The value of white in a picture in one of the modes I and F; ValueError for integers beyond 16 bits.

    `bits` is what the file says that an integer has.
    """
    values = np.asarray(image)
    if image.mode == "F":
        largest = float(np.max(values, initial=0, where=np.isfinite(values)))
        return next((white for white in FLOAT_SCALES if largest <= white * TOLERANCE), FLOAT_SCALES[-1])
    white, lowest, highest = 2 ** min(16, bits) - 1, int(values.min()), int(values.max())
    if lowest < 0 or highest > white:
        raise ValueError(
            f"its integers reach from {lowest} to {highest}, and candid reads 0 (black) to {white} (white)"
        )
    return white
