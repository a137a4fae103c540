"""Every kind of picture has the right pixels, and the same ones on every way to a network."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import BLOCKS, COLOR, GREY, HEIGHT, WIDTH, encoded, golden_files, png, tiff

from candid.checkpoint import Checkpoint, RunFolder
from candid.data.decoding import UnreadablePicture, decode, decode_file
from candid.data.examples import Examples, FileExamples
from candid.data.loading import EvaluationBatches, TrainingBatches, TrainingData, decode_once
from candid.data.preprocessing import Preprocessing
from candid.predict import Predictor
from candid.recipe import Recipe
from candid.recipe_parts import Data

CPU = torch.device("cpu")
FILES = golden_files()
DAMAGED = "its header is damaged, or of a kind that candid does not read"
LUMINANCE = np.array([0.299, 0.587, 0.114])


def test_there_are_many_kinds():
    assert len(FILES) >= 40


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_within_two_levels_of_what_a_person_sees(name: str):
    data, seen = FILES[name]
    color, grey = (decode(data, channels, name).permute(1, 2, 0).numpy() for channels in (3, 1))
    assert color.shape == seen.shape
    assert np.abs(color - seen.astype(float)).max() <= 2
    assert np.abs(grey[:, :, 0] - seen @ LUMINANCE).max() <= 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_training_evaluation_and_prediction_are_given_the_same_numbers(run: Path, folder: Path, fit: str):
    checkpoint = RunFolder(run).load()
    preprocessing = checkpoint.preprocessing.model_copy(update={"fit": fit})
    files = FileExamples(folder, tuple(FILES), torch.arange(len(FILES)) % 3)
    ways = [files, *(decode_once(files, preprocessing, Data(in_memory=in_memory)) for in_memory in (True, False))]
    assert len({type(examples) for examples in ways}) == 3
    expected = torch.cat([preprocessing(decode_file(folder / name, 3)[None]) for name in FILES])
    for examples in ways:
        assert torch.equal(training_inputs(examples, preprocessing, checkpoint.recipe), expected)
        evaluated = EvaluationBatches(examples, preprocessing, CPU, batch_size=40)
        assert torch.equal(torch.cat([inputs for inputs, _ in evaluated]), expected)
    assert torch.equal(inputs_of_prediction(replace(checkpoint, preprocessing=preprocessing), folder), expected)
    seen = [torch.from_numpy(pixels.round().astype(np.uint8)).permute(2, 0, 1) for _, pixels in FILES.values()]
    squares = torch.stack([preprocessing.make_square(pixels) for pixels in seen])
    levels = (expected - preprocessing.normalise(squares)).abs() * torch.tensor(preprocessing.std).view(3, 1, 1) * 255
    assert levels.max() <= 3  # two, and the rounding of resizing


def training_inputs(examples: Examples, preprocessing: Preprocessing, recipe: Recipe) -> torch.Tensor:
    """What a network learns from in an epoch, in the examples' own order."""
    batches = list(TrainingBatches(TrainingData(examples, None, preprocessing), recipe, 3, CPU).epoch(0))
    order = torch.cat([batch.indices for batch in batches]).argsort()
    return torch.cat([batch.inputs for batch in batches])[order]


def inputs_of_prediction(checkpoint: Checkpoint, folder: Path) -> torch.Tensor:
    """What the network is given for each file."""
    predictor, given = Predictor(checkpoint, CPU), []
    apply = predictor._apply
    predictor._apply = lambda inputs: (given.append(inputs), apply(inputs))[1]
    predictions = predictor.predict([folder / name for name in FILES])
    assert not [prediction.problem for prediction in predictions if prediction.problem]
    return torch.cat(given)


def twelve_bit_jpeg() -> bytes:
    data = encoded(BLOCKS, "JPEG")
    start = data.index(b"\xff\xc0") + 4
    return data[:start] + b"\x0c" + data[start + 1 :]


def test_what_is_not_supported_is_said():
    planes = np.moveaxis(COLOR.astype("<u2") * 257, 2, 0).tobytes()
    floats = np.zeros((HEIGHT, WIDTH))
    icon = struct.pack("<HHH", 0, 1, 1)
    refused = {
        "12-bit.jpg": (
            twelve_bit_jpeg(),
            f"{DAMAGED} (cannot handle 12-bit layers)",
        ),
        "float-64.tif": (
            tiff(floats.tobytes(), [64], 1, sample_format=3),
            f"{DAMAGED} (unknown pixel mode)",
        ),
        "float-rgb.tif": (
            tiff(np.zeros((HEIGHT, WIDTH, 3), np.float32).tobytes(), [32] * 3, 2, sample_format=3),
            f"{DAMAGED} (unknown pixel mode)",
        ),
        "planes-16.tif": (
            tiff(planes, [16] * 3, 2, planes=3),
            f"{DAMAGED} (planes of 16 bits, uncompressed)",
        ),
        "signed.tif": (
            encoded(GREY.astype(np.int32) - 5, "TIFF"),
            "its integers reach from -5 to 239, and candid reads 0 (black) to 65535 (white)",
        ),
        "integers.tif": (
            encoded(GREY.astype(np.int32) * 1000, "TIFF"),
            "its integers reach from 0 to 244000, and candid reads 0 (black) to 65535 (white)",
        ),
        "depth-3.png": (
            png(GREY.astype(int) // 32, 3, 0),
            f"{DAMAGED} (not identified by this driver)",
        ),
        "icon.jpg": (icon, "no format that candid reads"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no format that candid reads"),
        "jpeg-2000.jpg": (encoded(COLOR, "JPEG2000"), "no format that candid reads"),
    }
    for name, (data, reason) in refused.items():
        with pytest.raises(UnreadablePicture) as caught:
            decode(data, 3, name)
        assert str(caught.value) == (
            f"{name} cannot be decoded: {reason}; expected a whole picture (JPEG, PNG, GIF, BMP, TIFF, WebP, PPM)."
        )


def test_metadata_that_makes_no_sense_costs_no_picture():
    data = encoded(BLOCKS, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff and more", quality=100, subsampling=0)
    assert np.abs(decode(data, 3, "a.jpg").permute(1, 2, 0).numpy() - BLOCKS.astype(float)).max() <= 2


def test_floats_may_be_a_little_above_white():
    values = np.array([[0, 0.5, 1.001]], dtype=np.float32)
    assert decode(encoded(values, "TIFF"), 1, "a.tif").flatten().tolist() == [0, 128, 255]
