import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as theirs

from candid.data.preprocessing import Preprocessing


def preprocessing(**changes: object) -> Preprocessing:
    values = {"image_size": 8, "channels": 3, "fit": "crop", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return Preprocessing.model_validate(values | changes)


def random_pictures(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_normalising_equals_the_definition():
    pictures = random_pictures(4, 3, 8, 8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    expected = (pictures.double() / 255 - mean.double()) / std.double()
    result = preprocessing().normalise(pictures)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert (result - expected).abs().max() < 2e-6  # float32 rounding of values up to 3


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (8, 20), (31, 9), (3, 3), (1, 40)])
def test_any_picture_becomes_square(fit: str, size: tuple[int, int]):
    squared = preprocessing(fit=fit).make_square(random_pictures(3, *size))
    assert squared.shape == (3, 8, 8)
    assert squared.dtype == torch.uint8


@pytest.mark.parametrize("layout", ["rows", "pixels"])
@pytest.mark.parametrize("size", [(16, 16), (8, 20), (31, 9), (3, 3), (1, 40), (375, 500), (2, 3)])
def test_squares_are_torchvisions_to_the_last_bit(size: tuple[int, int], layout: str):
    pictures = random_pictures(2, 3, *size)
    if layout == "pixels":  # as the decoder gives them
        pictures = pictures.to(memory_format=torch.channels_last)
    for fit, choose in (("crop", min), ("pad", max)):
        scale = 8 / choose(size)
        expected = theirs.center_crop(theirs.resize(pictures, [max(1, round(s * scale)) for s in size]), [8, 8])
        assert torch.equal(preprocessing(fit=fit).make_square(pictures), expected)
        assert torch.equal(preprocessing(fit=fit).make_square(pictures[0]), expected[0])
    assert torch.equal(preprocessing(fit="squash").make_square(pictures), theirs.resize(pictures, [8, 8]))


def test_a_picture_of_the_right_size_is_untouched():
    pictures = random_pictures(3, 8, 8)
    assert preprocessing().make_square(pictures) is pictures


def test_crop_keeps_the_middle_pad_keeps_all():
    picture = torch.zeros(1, 8, 16, dtype=torch.uint8)
    picture[:, :, :4] = 255  # a white edge at the left
    assert preprocessing(fit="crop").make_square(picture).max() == 0
    padded = preprocessing(fit="pad").make_square(picture)
    assert padded[:, 2:6, 0].min() == 255
    assert padded[:, [0, 1, 6, 7]].max() == 0


def test_a_batch_gets_the_same_pixels_as_its_pictures_one_by_one():
    pictures = random_pictures(5, 3, 20, 13)
    together = preprocessing().make_square(pictures)
    assert torch.equal(together, torch.stack([preprocessing().make_square(picture) for picture in pictures]))


def test_resizing_agrees_with_pillow():
    pixels = random_pictures(3, 40, 24)
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    pillows = torch.from_numpy(np.array(image.resize((8, 8), Image.Resampling.BILINEAR))).permute(2, 0, 1)
    ours = preprocessing(fit="squash").make_square(pixels)
    assert (ours.int() - pillows.int()).abs().max() <= 1  # both antialias; their rounding differs


def test_it_survives_json():
    value = preprocessing()
    assert Preprocessing.model_validate_json(value.model_dump_json()) == value


@pytest.mark.parametrize(("height", "width"), [(6, 300), (301, 5), (1, 999)])
def test_a_long_picture_gives_the_square_that_it_gives_whole(height: int, width: int):
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    picture = (128 + 100 * torch.sin((row + column) / 9)).to(torch.uint8).expand(3, -1, -1)
    sides = [round(length * 8 / min(height, width)) for length in (height, width)]
    top, left = ((side - 8) // 2 for side in sides)
    whole = interpolate(picture[None], sides, mode="bilinear", antialias=True)[0, :, top : top + 8, left : left + 8]
    assert (preprocessing(fit="crop").make_square(picture).int() - whole.int()).abs().max() <= 6
