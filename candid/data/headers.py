"""What a picture's file says of itself before any pixel is decoded."""

import io
import warnings

from PIL import Image

MOST_BYTES = 16 * 2**20
"""Of a file that are looked at; what comes later is not a header."""


GREY_MODES = frozenset({"1", "L", "LA", "I", "F", "I;16", "I;16B"})


def is_grey_kind(kind: str) -> bool:
    """Whether a picture of such a kind has no colour."""
    return kind.split()[-1] in GREY_MODES


def read_kind(head: bytes) -> str:
    """How a picture is stored, by its first bytes: "JPEG RGB", "PNG RGBA", or "?" where they do not say it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata; whoever decodes it knows better
        try:
            with Image.open(io.BytesIO(head)) as image:
                return f"{image.format} {image.mode}"
        except Exception:  # the same whatever that the decoder, which reads all of the file, knows how to pass over
            return "?"
