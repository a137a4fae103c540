import shutil
from pathlib import Path

import pytest
from conftest import CLASSES, draw, make_pictures

from candid.data.folders import open_folder
from candid.errors import DataError


def contents(folder: Path) -> dict[str, list[str]]:
    """Split to the files in it, the class folder included."""
    data_set = open_folder(folder)
    return {split: list(opener().files) for split, opener in data_set.openers.items()}


def problem(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    return str(caught.value)


def test_class_folders_are_split_so_that_every_split_has_every_class(pictures: Path):
    data_set = open_folder(pictures)
    splits = contents(pictures)
    assert data_set.class_names == CLASSES
    assert sorted(file for files in splits.values() for file in files) == sorted(
        path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png")
    )
    for files in splits.values():
        assert {file.split("/")[0] for file in files} == set(CLASSES)


def test_labels_belong_to_the_folders(pictures: Path):
    data_set = open_folder(pictures)
    train = data_set.openers["train"]()
    assert [data_set.class_names[label] for label in train.labels] == [file.split("/")[0] for file in train.files]


def test_adding_pictures_moves_none(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures", per_class=60)
    before = contents(folder)
    for class_name in CLASSES:
        for number in range(100, 130):
            draw(class_name, number).save(folder / class_name / f"{number}.png")
    after = contents(folder)
    for split, files in before.items():
        assert set(files) <= set(after[split])


def test_copies_of_a_picture_share_a_split(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures")
    for path in sorted(folder.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-of-{path.name}"))
    for files in contents(folder).values():
        originals = {file for file in files if "copy-of-" not in file}
        assert {file.replace("copy-of-", "") for file in files} == originals


def test_a_class_of_three_pictures_is_in_all_splits(tmp_path: Path):
    splits = contents(make_pictures(tmp_path / "pictures", per_class=3))
    assert {split: len(files) for split, files in splits.items()} == {"train": 3, "validation": 3, "test": 3}


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "Val"])
def test_split_folders_are_taken_as_they_are(tmp_path: Path, validation: str):
    for split in ("train", validation, "test"):
        make_pictures(tmp_path / split, per_class=2)
    splits = contents(tmp_path)
    assert splits["validation"][0] == f"{validation}/circle/00.png"
    assert {split: len(files) for split, files in splits.items()} == {"train": 6, "validation": 6, "test": 6}


def test_pictures_in_deeper_folders_and_with_capital_suffixes_are_found(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures")
    (folder / "circle" / "more").mkdir()
    draw("circle", 900).save(folder / "circle" / "more" / "A.PNG")
    (folder / "circle" / "notes.txt").write_text("not a picture")
    (folder / "circle" / ".hidden.png").write_text("not a picture either")
    found = {file for files in contents(folder).values() for file in files}
    assert "circle/more/A.PNG" in found
    assert len(found) == 3 * 24 + 1


def test_grey_folders_have_one_channel(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures", per_class=4)
    assert open_folder(folder).channels == 3
    for path in folder.rglob("*.png"):
        draw(path.parent.name, int(path.stem)).convert("L").save(path)
    assert open_folder(folder).channels == 1


LAYOUTS = "Expected {0}/<class>/<picture> or {0}/train/<class>/<picture>."


def test_an_empty_folder_is_refused(tmp_path: Path):
    assert problem(tmp_path) == f"{tmp_path} holds no pictures. {LAYOUTS.format(tmp_path)}"


def test_pictures_without_class_folders_are_refused(tmp_path: Path):
    draw("circle", 0).save(tmp_path / "a.png")
    assert problem(tmp_path) == f"{tmp_path} holds pictures but no class folders. {LAYOUTS.format(tmp_path)}"


def test_class_folders_without_any_picture_are_refused(tmp_path: Path):
    (tmp_path / "a").mkdir()
    assert problem(tmp_path) == f"{tmp_path} holds no pictures. {LAYOUTS.format(tmp_path)}"


def test_an_empty_class_is_refused(tmp_path: Path):
    make_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "empty").mkdir()
    assert problem(tmp_path / "pictures") == (
        f"{tmp_path}/pictures/empty is a class folder without pictures; expected at least one. "
        "Put pictures into it, or remove it."
    )


def test_one_class_is_refused(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures")
    for class_name in CLASSES[1:]:
        shutil.rmtree(folder / class_name)
    assert problem(folder) == (f"{folder} has one class, 'circle'; expected at least two, each in a folder of its own.")


@pytest.mark.parametrize(("lacking", "present"), [("test", "train"), ("train", "test")])
def test_a_class_missing_in_a_split_is_refused(tmp_path: Path, lacking: str, present: str):
    for split in ("train", "test"):
        make_pictures(tmp_path / split, per_class=2)
    shutil.rmtree(tmp_path / lacking / "cross")
    assert problem(tmp_path) == (
        f"Class 'cross' is in the {present} split of {tmp_path} but not in the {lacking} split. "
        "Expected every class in every split: move some of its pictures, or remove the class."
    )


def test_a_class_too_small_to_split_is_refused(tmp_path: Path):
    assert problem(make_pictures(tmp_path / "pictures", per_class=2)) == (
        f"Class 'circle' of {tmp_path}/pictures has 2 different pictures; expected at least 3, "
        "one each to train, to validate and to test."
    )
