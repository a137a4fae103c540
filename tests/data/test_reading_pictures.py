"""JPEGs much larger than what is needed are decoded at a smaller scale: alike everywhere, and near to the full one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import TURNED
from PIL import Image

from candid.data import decoding
from candid.data.augmentation import Augmenter
from candid.data.decoding import decode_file
from candid.data.examples import FileExamples
from candid.data.loading import EvaluationBatches, StreamedPixels, decode_once
from candid.data.picture_cache import CachedExamples
from candid.data.preprocessing import Preprocessing
from candid.data.reading import decode_all, read_square, read_window
from candid.recipe_parts import Augmentation, Data

WIDTH, HEIGHT = 1333, 1000


def scene() -> np.ndarray:
    """Something like a photograph: a sky, hills with fine and coarse texture, edges, and a sun off the middle."""
    random = np.random.default_rng(0)
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([90 + row * 0.1, 140 + row * 0.05, 230 - row * 0.08], axis=2)
    for number, color in enumerate([(60, 110, 60), (90, 90, 50), (40, 70, 90)]):
        ridge = 450 + 150 * number + 60 * np.sin(column / (90 + 50 * number) + number)
        texture = np.kron(random.normal(0, 1, (HEIGHT // 8, WIDTH // 8 + 1)), np.ones((8, 8)))[:, :WIDTH]
        hill = np.array(color) + (18 * texture + random.normal(0, 6, texture.shape))[:, :, None]
        pixels = np.where((row > ridge)[:, :, None], hill, pixels)
    sun = (row - 200) ** 2 + (column - 300) ** 2 < 120**2
    return np.where(sun[:, :, None], [250, 240, 180], pixels).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    Image.fromarray(scene()).save(path, quality=90)
    return path


def square(side: int, fit: str = "crop", channels: int = 3) -> Preprocessing:
    zeros = (0.0,) * channels
    return Preprocessing(
        image_size=side, channels=channels, fit=fit, mean=zeros, std=tuple(value + 1 for value in zeros)
    )


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.int() - b.int()).abs().float().mean())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("side", [32, 96, 224, 300])
def test_a_square_is_near_to_that_of_the_full_picture(photo: Path, side: int, fit: str, channels: int):
    preprocessing = square(side, fit, channels)
    full = preprocessing.make_square(decode_file(photo, preprocessing.channels))
    assert mean_difference(read_square(photo, preprocessing), full) < 2


@pytest.mark.parametrize(
    ("side", "fit", "scale"),
    [(62, "crop", 8), (63, "crop", 4), (125, "crop", 4), (126, "crop", 2), (250, "crop", 2), (251, "crop", 1)]
    + [(83, "pad", 8), (84, "pad", 4), (62, "squash", 8), (63, "squash", 4)],
)
def test_at_least_twice_the_needed_sides_are_decoded(photo: Path, side: int, fit: str, scale: int):
    decoded = decode_file(photo, 3, square(side, fit).shrinkage)
    assert decoded.shape == (3, -(-HEIGHT // scale), -(-WIDTH // scale))


def test_a_window_keeps_twice_the_needed_sides_and_is_near_to_that_of_the_full_picture(photo: Path):
    preprocessing = square(50)
    full = decode_file(photo, 3)
    for window in ([0.1, 0.1, 0.8, 0.8], [0.3, 0.4, 0.2, 0.3], [0.5, 0.5, 0.02, 0.02], [0.0, 0.0, 1.0, 1.0]):
        top, left, height, width = (
            round(share * side) for share, side in zip(window, (HEIGHT, WIDTH) * 2, strict=True)
        )
        expected = square(50, "squash").make_square(full[:, top : top + height, left : left + width])
        assert mean_difference(read_window(photo, torch.tensor(window), preprocessing), expected) < 2.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_obeyed_at_a_smaller_scale(photo: Path, tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[decoding.ORIENTATION_TAG] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.ascontiguousarray(TURNED[orientation](scene()))).save(path, quality=90, exif=exif)
    assert decode_file(path, 3, square(60).shrinkage).shape == (3, HEIGHT // 8, -(-WIDTH // 8))
    upright = read_square(photo, square(60))
    assert mean_difference(read_square(path, square(60)), upright) < 2
    window = torch.tensor([0.1, 0.2, 0.5, 0.2])  # narrow, so that height and width must not be mistaken
    turned, expected = (read_window(file, window, square(60)) for file in (path, photo))
    assert mean_difference(turned, expected) < 2


def test_all_ways_see_the_same_pixels(photo: Path):
    examples = FileExamples(photo.parent, (photo.name,) * 3, torch.tensor([0, 1, 0]))
    preprocessing = square(100)
    expected = read_square(photo, preprocessing).expand(3, -1, -1, -1)
    assert torch.equal(decode_all(examples, preprocessing), expected)
    stored, cached = (decode_once(examples, preprocessing, Data(in_memory=in_memory)) for in_memory in (True, False))
    assert isinstance(cached, CachedExamples)
    augmenter = Augmenter(Augmentation(), 0, 0, 3)
    streamed = StreamedPixels(examples, preprocessing)
    assert torch.equal(next(streamed.training([torch.arange(3)], augmenter)), expected)
    for each in (stored, cached, examples):
        inputs, _ = next(iter(EvaluationBatches(each, preprocessing, torch.device("cpu"))))
        assert torch.equal(inputs, preprocessing.normalise(expected))


def test_other_formats_are_decoded_in_full(photo: Path, tmp_path: Path):
    Image.fromarray(scene()).save(tmp_path / "photo.png", compress_level=1)
    assert decode_file(tmp_path / "photo.png", 3, square(32).shrinkage).shape == (3, HEIGHT, WIDTH)
