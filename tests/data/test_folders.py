import shutil
from pathlib import Path

import pytest
from conftest import CLASSES, draw, make_pictures, without_privileges

from candid.data.decoding import decode_file
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


def test_a_folder_one_too_high_is_refused_with_the_right_one(tmp_path: Path):
    make_pictures(tmp_path / "download" / "shapes", per_class=3)
    assert problem(tmp_path / "download") == (
        f"{tmp_path}/download has one class, 'shapes'; expected at least two, each in a folder of its own. "
        f"If the classes are the folders in {tmp_path}/download/shapes, name that one."
    )


def test_a_flat_validation_folder_is_refused(tmp_path: Path):
    make_pictures(tmp_path / "train", per_class=3)
    (tmp_path / "val").mkdir()
    draw("circle", 0).save(tmp_path / "val" / "a.png")
    assert problem(tmp_path) == f"{tmp_path}/val holds pictures but no class folders. {LAYOUTS.format(tmp_path)}"


def test_splits_without_train_are_refused(tmp_path: Path):
    for split in ("val", "test"):
        make_pictures(tmp_path / split, per_class=3)
    assert problem(tmp_path) == f"{tmp_path} holds test and val but no train folder. {LAYOUTS.format(tmp_path)}"


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures", per_class=3)
    (folder / "circle").rename(folder / "test")
    assert open_folder(folder).class_names == ("cross", "stripes", "test")


def test_two_folders_for_one_split_are_refused(tmp_path: Path):
    for split in ("train", "val", "valid"):
        make_pictures(tmp_path / split, per_class=3)
    assert problem(tmp_path) == (
        f"{tmp_path} has 2 folders for the validation split, val and valid; expected one. "
        "Join them, or rename those that are something else."
    )


def test_numbers_as_names_are_names(tmp_path: Path):
    """1, 10, 2 as text is sorted: whatever the position, a picture's class is its folder's name."""
    folder = make_pictures(tmp_path / "pictures", per_class=12)
    for old, new in zip(CLASSES, ("1", "2", "10"), strict=True):
        (folder / old).rename(folder / new)
    data_set = open_folder(folder)
    assert data_set.class_names == ("1", "10", "2")
    for opener in data_set.openers.values():
        examples = opener()
        assert [data_set.class_names[label] for label in examples.labels] == [f.split("/")[0] for f in examples.files]


@pytest.mark.parametrize("inside", [".", "train"])
def test_a_link_to_what_holds_it_is_refused(tmp_path: Path, inside: str):
    make_pictures(tmp_path / "own" / inside, per_class=3)
    link = tmp_path / "own" / inside / "again"
    link.symlink_to(tmp_path / "own", target_is_directory=True)
    assert problem(tmp_path / "own") == (
        f"{link} is a link to {tmp_path}/own, which holds it; expected a folder of its own. Remove the link."
    )


def test_loops_within_a_class_end(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures", per_class=3)
    (folder / "circle" / "again").symlink_to(folder / "circle", target_is_directory=True)
    (folder / "circle" / "itself.png").symlink_to(folder / "circle" / "itself.png")
    found = [file for files in contents(folder).values() for file in files]
    assert len(found) == 3 * 3 + 1  # the link that leads to itself is a picture that cannot be read


def test_a_split_that_is_a_link_to_nowhere_is_refused(tmp_path: Path):
    make_pictures(tmp_path / "train", per_class=3)
    (tmp_path / "val").symlink_to(tmp_path / "gone")
    assert (
        problem(tmp_path) == f"{tmp_path}/val is a link that leads nowhere; expected a folder. Mend it, or remove it."
    )


@pytest.mark.parametrize("target", ["gone", "circle2"])
def test_a_class_that_is_a_link_to_nowhere_is_refused(tmp_path: Path, target: str):
    folder = make_pictures(tmp_path / "pictures", per_class=3)
    (folder / "circle2").symlink_to(folder / target)
    assert problem(folder) == (
        f"{folder}/circle2 is a link that leads nowhere; expected a folder. Mend it, or remove it."
    )


def test_a_class_may_be_a_link(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures", per_class=3)
    (folder / "circle").rename(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(tmp_path / "elsewhere")
    assert sum(file.startswith("circle/") for files in contents(folder).values() for file in files) == 3


@pytest.mark.parametrize("inside", ["", "cross", "cross/deeper"])
def test_a_folder_without_permission_is_refused(readable_by_all: Path, inside: str):
    folder = make_pictures(readable_by_all / "pictures", per_class=3)
    (folder / "cross" / "deeper").mkdir()
    (folder / inside).chmod(0)
    with without_privileges():
        text = problem(folder)
    assert text == (
        f"{folder / inside} cannot be read: Permission denied; expected a folder of pictures. "
        "Make it readable, or remove it."
    )


def test_a_picture_without_permission_is_met_where_it_is_decoded(readable_by_all: Path):
    folder = make_pictures(readable_by_all / "pictures", per_class=12)
    (folder / "cross" / "03.png").chmod(0)
    with without_privileges():
        files = [file for files in contents(folder).values() for file in files]
        assert "cross/03.png" in files
        with pytest.raises(DataError) as caught:
            decode_file(folder / "cross" / "03.png", 3)
    assert str(caught.value) == f"{folder}/cross/03.png cannot be read: Permission denied; expected a picture file."


def test_a_hundred_thousand_pictures_are_listed_with_their_classes(hundred_thousand: Path):
    data_set = open_folder(hundred_thousand)
    train, test = data_set.openers["train"](), data_set.openers["test"]()
    assert data_set.class_names == tuple(sorted(map(str, range(10))))
    assert (len(train), len(test)) == (90_000, 10_000)
    for examples in (train, test):
        own = [file.split("/")[1] for file in examples.files]
        assert [data_set.class_names[label] for label in examples.labels] == own


def test_a_class_too_small_to_split_is_refused(tmp_path: Path):
    assert problem(make_pictures(tmp_path / "pictures", per_class=2)) == (
        f"Class 'circle' of {tmp_path}/pictures has 2 different pictures; expected at least 3, "
        "one each to train, to validate and to test."
    )
