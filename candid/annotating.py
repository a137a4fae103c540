"""Copies of pictures with the answer below them, and with what speaks for it, in a folder of their own."""

import importlib.util
import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import interpolate

from candid.data.decoding import decode, to_image
from candid.errors import InputError
from candid.explaining import overlay
from candid.predict import Prediction, Predictor
from candid.words import shorten, showable

FONT_SIZES_PX = (14, 96)
"""Of the smallest pictures and of the largest; between them, so many columns fit below a picture:"""
COLUMNS = 40
LONGEST_LABEL = 80
FIRST_CJK = "\u2e80"
"""From here on come Chinese, Japanese and Korean signs, which DejaVu Sans does not have."""
SMALLEST_EXPLAINED_PX = 448
"""Side to which pictures are enlarged to be looked at; the network may see no more than 28 px of them."""
LONGEST_STEM = 50
JPEG_SUFFIXES, MOST_JPEG_SIDE_PX = (".jpg", ".jpeg"), 65_500


class NewFolder:
    """A folder of pictures that was new or empty: nothing in it is ever overwritten."""

    def __init__(self, path: Path) -> None:
        """Make the folder; InputError where there is anything already."""
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(f"{path} is not empty; expected a new or empty folder, so that nothing is overwritten.")
        path.mkdir(parents=True, exist_ok=True)
        self.path = path

    def save(self, image: Image.Image, name: str) -> Path:
        """Where the picture that the user calls `name` is now; JPEGs stay JPEGs, all others become PNGs."""
        suffix = PurePosixPath(_last_part(name)).suffix.lower()
        is_jpeg = suffix in JPEG_SUFFIXES and max(image.size) <= MOST_JPEG_SIDE_PX
        with self.create(name, suffix if is_jpeg else ".png") as file:
            image.save(file, "JPEG" if is_jpeg else "PNG", quality=90)
            return Path(file.name)

    def create(self, name: str, suffix: str) -> BinaryIO:
        """A new file to write, called as the last part of `name`, with a number where that is taken."""
        stem, number = _stem(name), 1
        while True:
            path = self.path / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
            try:
                return path.open("xb")
            except FileExistsError:
                number += 1


def annotate(prediction: Prediction) -> Image.Image:
    """The picture, whose bytes were kept, with the answer and its probability below it."""
    pixels = decode(prediction.data, 3, prediction.file)
    return with_label(to_image(pixels), prediction.label)


def explain(predictor: Predictor, prediction: Prediction) -> Image.Image:
    """What the network sees of a picture, whose bytes were kept, hot where it speaks for the answer; that below it."""
    heat = predictor.explain(prediction.data, prediction.classes[0], prediction.file)
    side = max(SMALLEST_EXPLAINED_PX, len(heat))
    view = predictor.preprocessing.model_copy(update={"image_size": side, "channels": 3})
    pixels = view.make_square(decode(prediction.data, 3, prediction.file))
    heat = interpolate(heat[None, None], (side, side), mode="bilinear")[0, 0]
    return with_label(to_image(overlay(pixels, heat)), prediction.label)


def with_label(image: Image.Image, label: str, least_width: int = 1) -> Image.Image:
    """The picture with a line of text in a bar below it, which is as wide as the text needs at least."""
    smallest, largest = FONT_SIZES_PX
    label = shorten(label, LONGEST_LABEL)
    file = _font_file(is_cjk=max(label, default="") >= FIRST_CJK)
    font = ImageFont.truetype(file, min(max(smallest, image.width // (COLUMNS // 2)), largest))
    height = round(1.6 * font.size)
    width = max(image.width, least_width, round(font.getlength(label)) + height // 2)
    labelled = Image.new("RGB", (width, image.height + height), "black")
    labelled.paste(image, ((width - image.width) // 2, 0))
    ImageDraw.Draw(labelled).text((width / 2, image.height + height / 2), label, "white", font, anchor="mm")
    return labelled


def _last_part(name: str) -> str:
    return PurePosixPath(unquote(urlsplit(name).path) if "://" in name else name).name


def _stem(name: str) -> str:
    """For a file's name, without what means something to a shell or a file system."""
    stem, dot, suffix = re.sub(r"[^\w.\- ]", "_", showable(_last_part(name))).rpartition(".")
    return (stem if dot else suffix).lstrip(".-")[:LONGEST_STEM] or "picture"


@cache
def _font_file(is_cjk: bool) -> str:
    """DejaVu Sans, which comes with matplotlib, found without the time to import that; or a font for Chinese."""
    if is_cjk:
        from candid.report.theme import installed_cjk_fonts  # only now: with it comes matplotlib

        for file in installed_cjk_fonts().values():
            return file
    found = importlib.util.find_spec("matplotlib")
    assert found is not None, "candid depends on matplotlib"
    assert found.origin is not None, "a package has a file"
    return str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")
