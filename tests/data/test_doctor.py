"""What the doctor says of folders, whether or not they can be trained on."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
from conftest import CLASSES, call, draw, make_pictures, without_privileges
from PIL import Image

from candid.data.doctor import diagnose
from candid.data.folders import open_folder
from candid.data.suggestion import suggest_image_size
from candid.data.survey import survey
from candid.errors import DataError, InputError


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """A folder with train and test, and no picture twice."""
    folder = make_pictures(tmp_path / "own" / "train", per_class=24).parent
    for class_name in CLASSES:
        (folder / "test" / class_name).mkdir(parents=True)
        for number in range(20, 24):
            name = f"{class_name}/{number}.png"
            (folder / "train" / name).rename(folder / "test" / name)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    return str(caught.value)


def test_a_sound_folder_has_no_errors(pictures: Path):
    found = diagnose(pictures)
    split_sizes = {split: len(opener()) for split, opener in open_folder(pictures).openers.items()}
    assert (found.errors, found.copies, dict(found.unreadable)) == ((), (), {})
    assert (found.num_files, found.class_names) == (72, CLASSES)
    assert {split: sum(classes.values()) for split, classes in found.counts.items()} == split_sizes
    assert found.kinds == {"PNG RGB": 72}
    assert found.sizes is not None
    assert (found.sizes.width.smallest, found.sizes.height.largest, found.sizes.share_not_square) == (28, 28, 0)


def test_counts_are_those_of_the_folders(splits: Path):
    assert diagnose(splits).counts == {"train": dict.fromkeys(CLASSES, 20), "test": dict.fromkeys(CLASSES, 4)}


def test_copies_within_a_class_are_worth_knowing(splits: Path):
    shutil.copy(splits / "train/circle/00.png", splits / "train/circle/copy.png")
    found = diagnose(splits)
    assert found.errors == ()
    assert [each.files for each in found.copies] == [("train/circle/00.png", "train/circle/copy.png")]
    assert (
        f"2 pictures are the same as another of their class and split, such as {splits}/train/circle/00.png and "
        f"{splits}/train/circle/copy.png."
    ) in found.notes


def test_copies_across_splits_are_wrong(splits: Path):
    shutil.copy(splits / "train/circle/00.png", splits / "test/circle/other-name.png")
    assert diagnose(splits).errors == (
        f"2 pictures are the same as one of another split, such as {splits}/test/circle/other-name.png and "
        f"{splits}/train/circle/00.png: what is asked was learnt before, which flatters the result. "
        "Keep each in one split.",
    )


def test_copies_across_classes_are_wrong(splits: Path):
    shutil.copy(splits / "train/circle/00.png", splits / "train/cross/copy.png")
    assert diagnose(splits).errors == (
        f"2 pictures are the same as one of another class, such as {splits}/train/circle/00.png and "
        f"{splits}/train/cross/copy.png: there cannot be two answers. Keep each in the class where it belongs.",
    )


def test_what_looks_the_same_is_found_too(splits: Path):
    picture = Image.open(splits / "train/stripes/03.png")
    picture.resize((56, 56), Image.Resampling.BICUBIC).save(splits / "test/stripes/larger.png")
    picture.save(splits / "train/circle/again.jpg", quality=90)
    found = diagnose(splits)
    files = ("test/stripes/larger.png", "train/circle/again.jpg", "train/stripes/03.png")
    assert [(each.are_exact, each.files) for each in found.copies] == [(False, files)]
    assert found.errors == (
        f"3 pictures are hardly to be told from one of another class, such as {splits}/{files[0]} and "
        f"{splits}/{files[1]}: there cannot be two answers. Keep each in the class where it belongs.",
        f"3 pictures are hardly to be told from one of another split, such as {splits}/{files[0]} and "
        f"{splits}/{files[1]}: what is asked was learnt before, which flatters the result. Keep each in one split.",
    )


def test_the_cure_is_another_where_candid_splits(tmp_path: Path):
    folder = make_pictures(tmp_path / "own", per_class=40)
    for path in sorted((folder / "circle").glob("*.png")):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
    [error] = diagnose(folder).errors
    assert error.endswith(f"Put each group into one split yourself, in {folder}/train, {folder}/val and {folder}/test.")


def test_the_refusal_is_the_first_finding_and_the_rest_is_looked_at(tmp_path: Path):
    make_pictures(tmp_path / "own" / "train", per_class=20)
    (tmp_path / "own" / "val").mkdir()
    for number in range(4):
        draw("circle", 50 + number).save(tmp_path / "own" / "val" / f"{number}.png")
    (tmp_path / "own" / "val" / "bad.png").write_bytes(b"")
    found = diagnose(tmp_path / "own")
    assert found.errors[0] == refusal(tmp_path / "own")
    assert list(found.unreadable) == ["val/bad.png"]
    assert found.num_files == 65
    assert any(note.startswith("5 pictures in no class folder are not used") for note in found.notes)


def break_class_missing(folder: Path) -> None:
    shutil.rmtree(folder / "test" / "cross")


def break_empty_class(folder: Path) -> None:
    (folder / "train" / "empty").mkdir()


def break_one_class(folder: Path) -> None:
    for split in ("train", "test"):
        for name in ("cross", "circle"):
            shutil.rmtree(folder / split / name)


def break_by_loop(folder: Path) -> None:
    (folder / "train" / "loop").symlink_to(folder)


def break_by_dead_link(folder: Path) -> None:
    (folder / "train" / "dog").symlink_to(folder / "nowhere")


def break_by_two_of_a_split(folder: Path) -> None:
    shutil.copytree(folder / "test", folder / "Test")


def break_no_pictures(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


def break_everything(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        break_class_missing, break_empty_class, break_one_class, break_by_loop, break_by_dead_link,
        break_by_two_of_a_split, break_no_pictures, break_everything,
    ],
)  # fmt: skip
def test_what_training_refuses_is_the_first_finding(splits: Path, damage, capsys: pytest.CaptureFixture[str]):
    damage(splits)
    text = refusal(splits)
    assert str(splits) in text
    assert diagnose(splits).errors[0] == text
    code, out, err = call(capsys, "doctor", splits)
    assert (code, err) == (3, "")
    assert f"- {text}\n" in out


def test_a_folder_without_permission_is_a_finding(readable_by_all: Path):
    folder = make_pictures(readable_by_all / "own", per_class=4)
    (folder / "cross").chmod(0)
    with without_privileges():
        found = diagnose(folder)
    assert found.errors[0] == (
        f"{folder}/cross cannot be read: Permission denied; expected a folder of pictures. "
        "Make it readable, or remove it."
    )
    assert found.num_files == 8


def test_no_folder_is_refused(tmp_path: Path):
    with pytest.raises(InputError) as caught:
        diagnose(tmp_path / "gone")
    assert str(caught.value) == f"{tmp_path}/gone is not a folder; expected one with pictures in class folders."


def test_what_is_worth_knowing_is_said(tmp_path: Path):
    folder = make_pictures(tmp_path / "own" / "train", per_class=12).parent
    for old, new in zip(CLASSES, ("1", "2", "10"), strict=True):
        (folder / "train" / old).rename(folder / "train" / new)
    for number in range(200):
        draw("circle", 100 + number).save(folder / "train" / "1" / f"x{number}.png")
    (folder / "train" / "2" / "deeper").mkdir()
    draw("cross", 700).convert("L").resize((40, 20)).save(folder / "train" / "2" / "deeper" / "grey.png")
    (folder / "extra").mkdir()
    for name in ("a.heic", "b.heic", "notes.txt", ".hidden"):
        (folder / "train" / "1" / name).write_text("no picture")
    found = diagnose(folder)
    assert found.errors == ()
    assert found.notes == (
        "Class '1' has 212 pictures to learn from and '10' 12: the accuracy over all says little of the small classes. "
        "Look at that of each, or collect more.",
        "2 classes have fewer than 20 pictures to learn from: 10, 2. Collect more.",
        "There is no test split, so there will be no independent number. Put pictures aside for one.",
        "The names of the classes are numbers, in the order 1, 10, 2, as text is sorted. candid goes by the names; "
        "where another program goes by positions, they are others. Use words, or 01, 02 and so on.",
        "Folders within a class belong to it: 2. If they are classes of their own, move them up.",
        f"Beside the split folders, extra in {folder} will not be used; move or rename it.",
        f"Files in {folder} that are not named as pictures are not used: .heic (2), .txt (1).",
        "1 of 237 pictures have no colour. Where that goes with the class, it is what is learnt; data.channels=1 takes "
        "the colour from all.",
    )


def test_sizes_are_those_of_the_upright_pictures(tmp_path: Path):
    folder = make_pictures(tmp_path / "own", per_class=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (100, 30), "red").save(folder / "circle" / "wide.jpg", exif=exif)
    sizes = diagnose(folder).sizes
    assert sizes is not None
    assert (sizes.width.largest, sizes.height.largest, sizes.shorter_side.largest) == (30, 100, 30)
    assert sizes.share_not_square == sizes.share_elongated == pytest.approx(1 / 13)


@pytest.mark.parametrize(
    ("side", "suggested"), [(1, 28), (28, 28), (30, 30), (32, 32), (33, 32), (100, 96), (300, 224), (4000, 224)]
)
def test_a_size_is_suggested_by_the_shorter_side(side: int, suggested: int):
    assert suggest_image_size(side) == suggested


def test_the_suggested_command_trains(pictures: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    suggestion = diagnose(pictures).suggestion
    assert suggestion is not None
    assert suggestion.command == f"candid train photos --data {pictures} --set data.image_size=28"
    assert suggestion.splits == "58 pictures to learn from, 8 to choose by, 6 to test with."
    code, _, err = call(capsys, *suggestion.command.split()[1:], "--epochs", "1", "--tune", "off")
    assert code == 0, err


def test_long_pictures_are_padded_and_large_ones_go_to_a_large_network(tmp_path: Path):
    folder = make_pictures(tmp_path / "my pictures", per_class=4, side=300)
    for path in sorted(folder.rglob("*.png")):
        Image.open(path).resize((500, 300)).save(path)
    suggestion = diagnose(folder).suggestion
    assert suggestion is not None
    assert suggestion.command == (
        f"candid train photos --data '{folder}' --set data.image_size=224 --set data.fit=pad --model resnet18"
    )


def test_programs_get_the_same_as_json(splits: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copy(splits / "train/circle/00.png", splits / "test/circle/copy.png")
    (splits / "train" / "cross" / "bad\udcff.png").write_bytes(b"")
    code, out, _ = call(capsys, "doctor", splits, "--json")
    said, found = json.loads(out), diagnose(splits)
    assert code == 3
    assert said["counts"] == {
        "train": {"circle": 20, "cross": 21, "stripes": 20},
        "test": {"circle": 5, "cross": 4, "stripes": 4},
    }
    assert said["errors"] == list(found.errors)
    assert said["unreadable"] == found.unreadable
    assert said["copies"][0]["files"] == list(found.copies[0].files)
    assert said["suggestion"]["image_size"] == 28


def test_memory_is_independent_of_the_size_and_small_for_each_picture(tmp_path: Path):
    """No pixels stay: of pictures with 30,000 px each, less than 200 bytes."""
    first = tmp_path / "0.png"
    draw("circle", 0, side=100).save(first)
    for number in range(1, 4000):
        os.link(first, tmp_path / f"{number}.png")
    files = [f"{number}.png" for number in range(4000)]
    survey(tmp_path, files[:300])  # what is imported on the way stays, too
    tracemalloc.start()
    found = survey(tmp_path, files)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    names = sum(map(len, files)) + 60 * len(files)
    assert (held + names) / len(found.files) < 200
