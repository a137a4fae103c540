"""A camera that FFmpeg draws, and one that is not there."""

import json
import sys
from pathlib import Path

import pytest
from conftest import CLASSES, call

from candid import camera
from candid.camera import is_camera


@pytest.fixture
def drawn_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten pictures of bars in place of a camera; the same library opens and decodes them."""
    monkeypatch.setitem(camera.DEVICES, sys.platform, ("lavfi", "testsrc=size=64x48:rate=10:duration=1"))


@pytest.mark.usefixtures("drawn_camera")
def test_a_camera_is_watched_picture_by_picture(run: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = call(capsys, "predict", run, "camera:0", "--json", "--top", 2)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(lines) == 10
    assert {line["file"] for line in lines} == {"camera:0"}
    assert all(line["answer"] in CLASSES and len(line["classes"]) == 2 for line in lines)
    assert all(line["network_ms"] > 0 and line["decode_ms"] > 0 for line in lines)
    assert err.startswith("10 pictures in ")


@pytest.mark.usefixtures("drawn_camera")
def test_where_nobody_watches_a_line_is_printed_when_the_answer_changes(run: Path, capsys: pytest.CaptureFixture[str]):
    code, out, _ = call(capsys, "predict", run, "camera:0")
    answers = [line.partition(":")[0] for line in out.splitlines()]
    assert code == 0
    assert answers
    assert set(answers) <= set(CLASSES)
    assert all(one != other for one, other in zip(answers, answers[1:], strict=False))


def test_a_camera_that_is_not_there(run: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatched = camera.DEVICES | {sys.platform: ("v4l2", "/dev/candid-has-no-camera-{}")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(camera, "DEVICES", monkeypatched)
        code, out, err = call(capsys, "predict", run, "camera:7")
    assert (code, out) == (3, "")
    assert err == (
        "camera:7 (/dev/candid-has-no-camera-7) cannot be opened: No such file or directory; expected a camera that "
        "nothing else is using. camera:0 is the first one.\n"
    )


def test_where_cameras_cannot_be_read(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(camera.DEVICES, sys.platform)
    code, _, err = call(capsys, "predict", run, "camera:0")
    assert code == 2
    assert err == "camera:0 cannot be opened: candid reads cameras on Linux and macOS. Give it a video file.\n"


def test_a_camera_is_watched_alone_and_kept_nowhere(run: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = call(capsys, "predict", run, "camera:0", "camera:1")
    assert code == 2
    assert err == "2 sources were given; a camera is watched alone. Leave the others out.\n"
    code, _, err = call(capsys, "predict", run, "camera:0", "--csv", here / "seen.csv")
    assert code == 2
    assert err == "A camera is watched with --top, --json, --fit and --precision; leave other options out.\n"
    assert not (here / "seen.csv").exists()


@pytest.mark.parametrize(
    ("source", "expected"), [("camera:0", True), ("camera:12", True), ("camera", False), ("camera:front", False)]
)
def test_names_of_cameras(source: str, expected: bool):
    assert is_camera(source) == expected
