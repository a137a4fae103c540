"""A thousand pictures of which fifty are none, in twenty ways: nothing passes them over in silence."""

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, call, draw, make_pictures
from PIL import Image

from candid.checkpoint import RunFolder
from candid.data.doctor import diagnose
from candid.data.folders import list_pictures
from candid.kept_evaluation import load_evaluation
from candid.predict import load

FAST = ("--model", "lenet-relu", "--epochs", "1", "--set", "data.image_size=28", "--tune", "off")
NUM_BAD = {"train": 30, "val": 10, "test": 10}


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    draw("circle", 500, side=64).save(buffer, form)
    return buffer.getvalue()


def cut(form: str) -> bytes:
    """A picture of which the second half is missing."""
    whole = encoded(form)
    return whole[: len(whole) // 2]


def giant() -> bytes:
    """A header that says 60,000 x 60,000 px."""
    png = encoded("PNG")
    return png[:16] + (60_000).to_bytes(4, "big") * 2 + png[24:]


def damaged_png() -> bytes:
    png = encoded("PNG")
    middle = len(png) // 2
    return png[:middle] + bytes(200) + png[middle + 200 :]


BAD = {
    "empty.jpg": b"",
    "text.jpg": b"This is no picture.\n",
    "page.jpg": b"<!doctype html><html><title>404</title></html>",
    "zeros.png": bytes(5000),
    "noise.jpg": np.random.default_rng(0).bytes(5000),
    "cut.jpg": cut("JPEG"),
    "cut.png": cut("PNG"),
    "cut.gif": cut("GIF"),
    "cut.bmp": cut("BMP"),
    "cut.tif": cut("TIFF"),
    "cut.webp": cut("WEBP"),
    "cut.ppm": cut("PPM"),
    "header.jpg": encoded("JPEG")[:20],
    "signature.png": encoded("PNG")[:8],
    "damaged.png": damaged_png(),
    "giant.png": giant(),
    "document.jpg": b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n",
    "archive.png": b"PK\x03\x04" + bytes(100),
    "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"><circle r="9"/></svg>',
    "phone.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500),
    "link.png": None,
}
"""File names and contents; of the last, a link to nowhere."""


def hash_all(folder: Path) -> dict[str, str]:
    """What each file holds, and where each link leads."""
    return {
        path.relative_to(folder).as_posix(): path.readlink().as_posix()
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """950 pictures and 50 bad ones, in train, val and test."""
    folder = tmp_path_factory.mktemp("bad") / "own"
    for class_name in CLASSES:
        for split, numbers in (("train", range(260)), ("val", range(260, 290)), ("test", range(290, 317))):
            (folder / split / class_name).mkdir(parents=True)
            for number in numbers:
                draw(class_name, number).save(folder / split / class_name / f"{number:03}.png")
    (folder / "train" / "cross" / "000.png").unlink()
    kinds = list(BAD.items())
    places = [split for split, number in NUM_BAD.items() for _ in range(number)]
    for number, split in enumerate(places):
        name, content = kinds[number % len(kinds)]
        path = folder / split / CLASSES[number % len(CLASSES)] / f"bad-{number}-{name}"
        path.symlink_to("nowhere") if content is None else path.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, str]:
    found = hash_all(folder)
    assert len(found) == 1000
    return found


def bad_ones(folder: Path, inside: str = "") -> set[str]:
    return {str(folder / inside / file) for file in list_pictures(folder / inside) if "bad-" in file}


def test_doctor_lists_all_with_path_and_reason(
    folder: Path, before: dict[str, str], capsys: pytest.CaptureFixture[str]
):
    found = diagnose(folder)
    assert {str(folder / file) for file in found.unreadable} == bad_ones(folder)
    assert len(found.unreadable) == 50
    for file, sentence in found.unreadable.items():
        assert sentence.startswith(f"{folder / file} ")
        assert len(sentence) > len(f"{folder / file} ") + 20
    assert found.errors == (
        "50 of 1,000 files cannot be used, and training stops at them. Replace or remove them, or go on without by "
        "--bad-images skip.",
    )
    code, out, _ = call(capsys, "doctor", folder)
    assert code == 3
    assert [line.strip() for line in out.splitlines() if "/bad-" in line] == list(found.unreadable.values())
    assert hash_all(folder) == before


def test_training_stops_with_the_list(
    folder: Path, before: dict[str, str], here: Path, capsys: pytest.CaptureFixture[str]
):
    code, out, err = call(capsys, "train", "--data", folder, *FAST)
    first, *listed = err.splitlines()
    assert (code, out) == (3, "")
    assert first == (
        "40 pictures cannot be used; expected whole pictures, so replace or remove them, or go on without by "
        "--bad-images skip:"
    )
    seen = bad_ones(folder, "train") | bad_ones(folder, "val")  # the test split is not opened before training is over
    assert {line.split()[0] for line in listed} == seen
    assert list(here.iterdir()) == []
    assert hash_all(folder) == before


@pytest.fixture(scope="module")
def skipping(folder: Path, before: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that left the bad ones out."""
    from conftest import small_recipe

    from candid.workflow import train  # not before the tests that start without torch's threads

    changes = {"data__image_size": 28, "data__bad_images": "skip", "training__epochs": 2}
    run = train(small_recipe(folder, **changes), tmp_path_factory.mktemp("runs") / "skipping", tune="off")
    assert hash_all(folder) == before
    return run


def test_skipping_goes_on_and_records_the_count(folder: Path, skipping: Path):
    result = json.loads((skipping / "result.json").read_text())
    assert result["unreadable_pictures"] == {"train": 30, "validation": 10, "test": 10}
    recorded = RunFolder.open(skipping).environment["unreadable_pictures"]
    for split, inside in (("train", "train"), ("validation", "val")):
        assert {sentence.split()[0] for sentence in recorded[split]} == bad_ones(folder, inside)
    assert RunFolder.open(skipping).environment["training_images"] == 779


def test_evaluation_scores_what_it_found_but_for_what_failed(folder: Path, skipping: Path):
    """And nothing is scored in the place of another."""
    scored = load_evaluation(skipping / "evaluation-test")
    summary = json.loads((skipping / "evaluation-test" / "summary.json").read_text())
    failed = {sentence.split()[0] for sentence in summary["unreadable"]}
    found = {str(folder / "test" / file) for file in list_pictures(folder / "test")}
    assert failed == bad_ones(folder, "test")
    assert {str(folder / file) for file in scored.files} == found - failed
    assert scored.num_images + len(failed) == len(found) == 91
    assert max(Counter(scored.files).values()) == 1
    names = scored.class_names
    for file, label, top in zip(scored.files, scored.labels.tolist(), scored.top_classes.tolist(), strict=True):
        assert names[label] == file.split("/")[1]
        [own] = load(skipping).predict(folder / file, top=1)
        assert own.classes == (names[top[0]],)


def test_evaluate_says_what_it_left_out(folder: Path, skipping: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = call(capsys, "evaluate", skipping, "--split", "validation")
    assert code == 0
    assert "90 pictures)" in out
    first = next(path for path in sorted(bad_ones(folder, "val")))
    assert err.startswith("Left out of the validation split: 10 files that cannot be used; the first: ")
    assert str(Path(first).parent.parent) in err


def test_evaluate_stops_at_them_where_it_is_told_to(folder: Path, skipping: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = call(capsys, "evaluate", skipping, "--split", "test", "--bad-images", "stop")
    assert code == 3
    assert err.startswith("10 pictures cannot be used; ")
    assert {line.split()[0] for line in err.splitlines()[1:]} == bad_ones(folder, "test")


def test_streamed_pictures_are_left_out_too(
    folder: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """With neither memory nor cache, all are read once before the first step."""
    from candid.data import picture_cache

    monkeypatch.setattr(picture_cache, "MAX_BYTES", 0)
    changes = ("--set", "data.in_memory=false", "--set", "data.workers=0", "--bad-images", "skip", "--out", "streamed")
    code, _, err = call(capsys, "train", "--data", folder, *FAST, *changes)
    assert code == 0, err
    result = json.loads((here / "streamed" / "result.json").read_text())
    assert result["unreadable_pictures"] == {"train": 30, "validation": 10, "test": 10}


def test_a_run_that_stopped_at_its_test_split_can_go_on_without_them(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    pictures = make_pictures(tmp_path / "own" / "train", per_class=6).parent
    make_pictures(pictures / "test", per_class=4)
    (pictures / "test" / "cross" / "02.png").write_bytes(b"")
    code, _, err = call(capsys, "train", "--data", pictures, *FAST, "--out", "run")
    assert (code, err.splitlines()[-1]) == (
        3,
        f"  {pictures}/test/cross/02.png is empty (0 bytes); expected a picture.",
    )
    code, _, err = call(capsys, "train", "--resume", "--out", "run", "--bad-images", "skip")
    assert code == 0, err
    assert err.splitlines()[-1].endswith(" Not counted: 1 file of the test split that cannot be used.")
    assert json.loads((here / "run" / "result.json").read_text())["test_images"] == 11


def test_a_class_of_bad_ones_alone_is_refused(tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    pictures = make_pictures(tmp_path / "own" / "train", per_class=6).parent
    for path in (pictures / "train" / "cross").iterdir():
        path.write_bytes(b"")
    code, _, err = call(capsys, "train", "--data", pictures, *FAST, "--bad-images", "skip")
    assert (code, err.splitlines()[-1]) == (
        3,
        f"No picture of the class of {pictures}/train/cross/00.png can be used; expected one at least to go on without "
        f"the others. `candid doctor {pictures}` says what is wrong with each.",
    )


def test_another_word_than_stop_or_skip_is_refused(pictures: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = call(capsys, "train", "--data", pictures, "--bad-images", "ski")
    assert (code, err) == (2, "data.bad_images is 'ski'; it must be 'stop' or 'skip'. Did you mean skip?\n")


def test_a_picture_is_never_replaced_while_it_is_streamed(
    tmp_path: Path, here: Path, capsys: pytest.CaptureFixture[str]
):
    """One that goes bad after the beginning stops the run, whatever was said."""
    from candid.data.catalog import open_data_set
    from candid.data.loading import EvaluationBatches
    from candid.data.preprocessing import Preprocessing
    from candid.data.reading import UnreadablePictures

    pictures = make_pictures(tmp_path / "own" / "train", per_class=6).parent
    examples = open_data_set(str(pictures)).openers["train"]()
    Image.new("RGB", (28, 28)).save(pictures / "train" / "cross" / "03.png")
    (pictures / "train" / "circle" / "02.png").write_bytes(b"")
    preprocessing = Preprocessing(image_size=28, channels=3, fit="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(UnreadablePictures):
        list(EvaluationBatches(examples, preprocessing, "cpu", 4))
