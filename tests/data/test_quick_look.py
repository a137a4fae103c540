"""What `train` sees of a folder before it begins, without decoding anything."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import call, draw, make_pictures

from candid.data import quick_look
from candid.data.catalog import open_data_set
from candid.data.folders import open_folder
from candid.data.quick_look import look_quickly


def test_nothing_is_said_of_a_sound_folder(pictures: Path):
    assert look_quickly(open_folder(pictures)) is None


def test_a_set_with_a_name_is_not_unpacked():
    data_set = open_data_set("fashion-mnist-mini")
    opened: list[str] = []
    for split in list(data_set.openers):
        data_set.openers[split] = lambda: opened.append("unpacked")
    assert look_quickly(data_set) is None
    assert opened == []


def test_classes_of_very_different_sizes_are_said(tmp_path: Path):
    folder = make_pictures(tmp_path / "own" / "train", per_class=3).parent
    for number in range(100, 130):
        draw("circle", number).save(folder / "train" / "circle" / f"{number}.png")
    assert look_quickly(open_folder(folder)) == (
        f"Class 'circle' has 33 pictures to learn from and 'cross' 3: `candid doctor {folder}` says more."
    )


def test_copies_in_another_split_are_said(tmp_path: Path):
    folder = make_pictures(tmp_path / "own" / "train", per_class=4).parent
    shutil.copytree(folder / "train", folder / "val")
    os.truncate(folder / "val" / "circle" / "00.png", 0)
    assert look_quickly(open_folder(folder)) == (
        f"11 pictures or more to learn from are in another split too, such as {folder}/train/circle/01.png as "
        f"{folder}/val/circle/01.png: `candid doctor {folder}` says more."
    )


def test_a_hundred_thousand_files_take_a_moment(hundred_thousand: Path, monkeypatch: pytest.MonkeyPatch):
    """Of which only those are read that have the name and the size of one in another split."""
    data_set = open_folder(hundred_thousand)
    read: list[str] = []
    hash_files = quick_look.hash_files
    monkeypatch.setattr(quick_look, "hash_files", lambda root, files: read.extend(files) or hash_files(root, files))
    assert look_quickly(data_set) is None
    assert read == []


def test_training_says_it_and_goes_on(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = make_pictures(tmp_path / "own" / "train", per_class=24).parent
    shutil.copytree(folder / "train", folder / "test")
    settings = ("--model", "lenet-relu", "--epochs", "1", "--set", "data.image_size=28", "--tune", "off")
    code, _, err = call(capsys, "train", "--data", folder, *settings)
    assert code == 0
    assert err.splitlines()[0] == (
        f"72 pictures or more to learn from are in another split too, such as {folder}/train/circle/00.png as "
        f"{folder}/test/circle/00.png: `candid doctor {folder}` says more."
    )
