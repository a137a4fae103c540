"""What a run keeps of its data for the report."""

import json
from pathlib import Path

import pytest
import torch
from conftest import draw, make_pictures
from PIL import Image

from candid.data.catalog import open_data_set
from candid.data.examples import DataSet, StoredExamples
from candid.training.seeing import count_copies, measure_sizes


def test_sizes_are_those_of_the_upright_pictures(tmp_path: Path):
    folder = make_pictures(tmp_path / "shapes", per_class=8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held sideways
    files = sorted((folder / "circle").iterdir())
    Image.new("RGB", (90, 40)).save(files[0].with_suffix(".jpg"), exif=exif)
    Image.new("RGB", (300, 20)).save(files[1])
    files[0].unlink()
    data_set = open_data_set(str(folder))
    sizes = measure_sizes(data_set)
    assert sizes is not None
    train = data_set.openers["train"]()
    assert sizes["images"] == len(train)
    learned = {Path(file).name for file in train.files if file.startswith("circle")}
    assert {"00.jpg", "01.png"} <= learned, "the split has changed: choose other pictures"
    assert sizes["widths_px"] == [28, 28, 300]
    assert sizes["heights_px"] == [20, 28, 90]


def test_what_is_no_picture_has_no_size(tmp_path: Path):
    folder = make_pictures(tmp_path / "shapes", per_class=8)
    for path in folder.rglob("*.png"):
        path.write_bytes(f"{path} is no picture".encode())
    assert measure_sizes(open_data_set(str(folder))) is None


def test_pictures_of_one_size_are_not_measured():
    assert measure_sizes(DataSet("digits", ("0", "1"), 1, 28, openers={})) is None


def as_examples(*values: int) -> StoredExamples:
    """Pictures of one grey each."""
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return StoredExamples(images, torch.zeros(len(values), dtype=torch.int64), tuple(map(str, range(len(values)))))


@pytest.mark.parametrize(
    ("train", "validation", "copies"),
    [((1, 2, 3), (4, 5), (0, 0)), ((1, 2, 1, 1, 2), (3,), (3, 0)), ((1, 2), (2, 2, 7, 1), (0, 3))],
)
def test_copies_are_counted(train: tuple[int, ...], validation: tuple[int, ...], copies: tuple[int, int]):
    splits = {"train": as_examples(*train), "validation": as_examples(*validation)}
    assert count_copies(splits) == dict(zip(splits, copies, strict=True))


def test_pictures_on_disk_are_not_compared(tmp_path: Path):
    folder = make_pictures(tmp_path / "shapes", per_class=8)
    assert count_copies({"train": open_data_set(str(folder)).openers["train"]()}) is None


def test_a_run_keeps_what_it_knows_of_its_data(run: Path):
    kept = json.loads((run / "data.json").read_text())
    assert kept["classes"] == ["circle", "cross", "stripes"]
    assert kept["sizes"]["widths_px"] == kept["sizes"]["heights_px"]
    assert kept["copies"] == {"train": 0, "validation": 0}
    assert draw("circle", 0).size[0] == kept["sizes"]["widths_px"][0]
