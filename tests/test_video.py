"""Videos, made here and read back: what is seen when, broken ones, copies."""

import csv
import io
import json
import socket
import struct
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import CLASSES, call, draw
from PIL import Image

import candid
from candid.errors import CandidError
from candid.video import find_spans, name_frames, read_frames


def write_video(path: Path, images: Sequence[Image.Image], codec: str = "png", rate: Fraction | int = 10) -> Path:
    """A video of these pictures; as PNGs it has exactly their pixels, each frame for itself."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def shown(run: Path) -> list[Image.Image]:
    """Ten frames of each shape, each shape one that the network recognises."""
    recognised: list[Image.Image] = []
    for class_name in CLASSES:
        for number in range(100, 120):
            image = draw(class_name, number).resize((64, 48))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            if answer_to(run, buffer.getvalue()) == class_name:
                recognised += 10 * [image]
                break
    assert len(recognised) == 30
    return recognised


def answer_to(run: Path, data: bytes) -> str:
    from candid.data.sources import Picture

    return next(candid.load(run).stream([Picture("one", lambda: data)])).answer


def test_frames_are_seen_as_pictures_are(capsys, here: Path, run: Path, shown: list[Image.Image]):
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (50, 70, 3), dtype=np.uint8)) for _ in range(10)] + [
        image.resize((70, 50)) for image in shown
    ]
    write_video(here / "film.mov", images)
    (here / "frames").mkdir()
    for number in range(0, 40, 3):
        images[number].save(here / "frames" / f"{number:02}.png")
    code, out, err = call(capsys, "predict", run, "film.mov", "--every", "3", "--csv", "film.csv")
    assert (code, out, err) == (0, "", "")
    rows = list(csv.DictReader(io.StringIO((here / "film.csv").read_text())))
    pictures = candid.load(run).predict("frames")
    assert [row["frame"] for row in rows] == [str(number) for number in range(0, 40, 3)]
    assert [row["seconds"] for row in rows] == [f"{number / 10:.3f}" for number in range(0, 40, 3)]
    assert [row["answer"] for row in rows] == [picture.answer for picture in pictures]
    for row, picture in zip(rows, pictures, strict=True):
        assert float(row["probability"]) == pytest.approx(picture.probabilities[0], abs=1e-5)
        assert (row["file"], row["problem"]) == ("film.mov", "")


def test_what_is_seen_when_is_a_table(capsys, here: Path, run: Path, shown: list[Image.Image]):
    write_video(here / "film.mp4", shown, "libx264")
    write_video(here / "other.mp4", shown[10:], "libx264")
    code, out, err = call(capsys, "predict", run, "*.mp4", "--every", "5")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if ".mp4" in line]
    assert [row[:4] + row[6:] for row in rows] == [
        ["film.mp4", "0:00.0", "0:01.0", "circle", "2"],
        ["film.mp4", "0:01.0", "0:02.0", "cross", "2"],
        ["film.mp4", "0:02.0", "0:02.5", "stripes", "2"],
        ["other.mp4", "0:00.0", "0:01.0", "cross", "2"],
        ["other.mp4", "0:01.0", "0:01.5", "stripes", "2"],
    ]


def test_spans_are_runs_of_the_same_answer(run: Path, here: Path, shown: list[Image.Image]):
    write_video(here / "film.mov", [*shown[:3], *shown[10:12], shown[0]])
    frames = list(name_frames(candid.load(run), here / "film.mov", every=1))
    spans = find_spans(frames)
    assert [(span.answer, span.begin_s, span.end_s, span.frames) for span in spans] == [
        ("circle", 0.0, 0.3, 3),
        ("cross", 0.3, 0.5, 2),
        ("circle", 0.5, 0.5, 1),
    ]
    assert spans[0].probability == pytest.approx(frames[0].prediction.probabilities[0], abs=1e-6)
    assert find_spans([]) == []


def test_lines_of_json_are_frames(capsys, here: Path, run: Path, shown: list[Image.Image]):
    write_video(here / "film.mov", shown)
    code, out, _ = call(capsys, "predict", run, "film.mov", "--json", "--top", "1")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(line["file"], line["frame"], line["seconds"]) for line in lines] == [
        ("film.mov", 0, 0.0),
        ("film.mov", 10, 1.0),
        ("film.mov", 20, 2.0),
    ]
    assert [line["classes"][0]["class"] for line in lines] == list(CLASSES)


@pytest.mark.parametrize("size", [(64, 48), (63, 47), (400, 300)])
def test_an_annotated_copy_has_every_frame_with_the_last_answer_below(
    capsys, here: Path, run: Path, shown: list[Image.Image], size: tuple[int, int]
):
    write_video(here / "film.mov", [image.resize(size) for image in shown], rate=Fraction(30000, 1001))
    before = (here / "film.mov").read_bytes()
    code, _, err = call(capsys, "predict", run, "film.mov", "--every", "10", "--save-annotated", "copies")
    assert (code, err) == (0, "")
    ours, theirs = list(read_frames(here / "copies" / "film.mp4")), list(read_frames(here / "film.mov"))
    assert [frame.seconds for frame in ours] == pytest.approx([frame.seconds for frame in theirs], abs=1e-3)
    for frame, original in zip(ours, shown, strict=True):
        assert frame.pixels is not None
        height, width = frame.pixels.shape[:2]
        assert height >= size[1] + 20
        left = (width - size[0]) // 2
        picture = frame.pixels[: size[1], left : left + size[0]].astype(int)
        assert abs(picture - np.asarray(original.resize(size)).astype(int)).mean() < 40
    bars = [frame.pixels[size[1] :].astype(int) for frame in ours if frame.pixels is not None]
    assert bars[0].max() > 150
    assert abs(bars[0] - bars[9]).max() < 60 < abs(bars[0] - bars[10]).max()
    assert (here / "film.mov").read_bytes() == before


def break_frame(path: Path, number: int) -> None:
    """Overwrite the middle of a frame of a video of PNGs."""
    data = bytearray(path.read_bytes())
    start = -1
    for _ in range(number + 1):
        start = data.index(b"\x89PNG", start + 1)
    end = data.index(b"IEND", start)
    middle = (start + end) // 2
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)


def test_a_broken_frame_is_reported_and_the_others_are_named(capsys, here: Path, run: Path, shown: list[Image.Image]):
    write_video(here / "film.mov", shown)
    break_frame(here / "film.mov", 7)
    problem = "film.mov has a broken frame at 0.70 s (number 7); expected a whole one."
    code, out, err = call(capsys, "predict", run, "film.mov", "--csv", "film.csv", "--save-annotated", "copies")
    rows = list(csv.DictReader(io.StringIO((here / "film.csv").read_text())))
    assert (code, out, err) == (3, "", f"{problem}\n")
    assert [(row["frame"], row["answer"], row["problem"]) for row in rows] == [
        ("0", "circle", ""),
        ("7", "", problem),
        ("10", "cross", ""),
        ("20", "stripes", ""),
    ]
    assert len(list(read_frames(here / "copies" / "film.mp4"))) == 29


def test_a_video_that_breaks_off_is_read_as_far_as_it_goes(here: Path, run: Path, shown: list[Image.Image]):
    path = write_video(here / "film.avi", [image.resize((640, 480)) for image in shown], "mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    frames = list(name_frames(candid.load(run), path, every=1))
    assert 5 < len(frames) < 30
    assert [frame.number for frame in frames] == list(range(len(frames)))


def test_no_byte_that_changes_in_a_video_escapes(here: Path, shown: list[Image.Image]):
    random = np.random.default_rng(0)
    whole = write_video(here / "film.mp4", shown[:4], "mpeg4").read_bytes()
    for _ in range(200):
        data = np.frombuffer(whole, np.uint8).copy()
        data[random.integers(0, len(data), 3)] = random.integers(0, 256, 3)
        (here / "film.mp4").write_bytes(data.tobytes())
        try:
            frames = list(read_frames(here / "film.mp4"))
        except CandidError:
            frames = []
        assert len(frames) < 50


def no_frames(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def all_broken(path: Path) -> None:
    write_video(path, 2 * [draw("cross", 0)])
    break_frame(path, 0)
    break_frame(path, 1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Path.touch, "film.mov is empty (0 bytes); expected a video."),
        (
            lambda path: path.write_text("no video"),
            "film.mov cannot be opened: Invalid data found when processing input; expected a video. "
            "Make or get it again.",
        ),
        (no_frames, "film.mov holds no pictures; expected a video. Make or get it again."),
        (all_broken, "film.mov has no frame that can be decoded; expected a video. Make or get it again."),
    ],
)
def test_what_is_no_video_is_refused(capsys, here: Path, run: Path, make, text: str):
    make(here / "film.mov")
    code, out, err = call(capsys, "predict", run, "film.mov")
    assert (code, out, err) == (3, "", f"{text}\n")


def test_a_list_of_addresses_that_is_named_as_a_video_opens_none(here: Path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.ts"
        (here / "film.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(CandidError):
            list(read_frames(here / "film.mp4"))
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_video_that_was_filmed_upright_is_seen_upright(here: Path, shown: list[Image.Image]):
    """Phones film sideways and say how to turn it: here by a quarter to the right."""
    path = write_video(here / "film.mov", [shown[0]])
    data = bytearray(path.read_bytes())
    straight = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(straight, data.index(b"tkhd"))
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(data)
    (frame,) = read_frames(path)
    assert np.array_equal(frame.pixels, np.rot90(np.asarray(shown[0]), -1))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["film.mov", "a.png"],
            "a.png is no video file; expected video files alone where there is one. "
            "Download a video that has an address; predict pictures with a command of their own.",
        ),
        (
            ["https://example.org/film.mp4"],
            "https://example.org/film.mp4 is no video file; expected video files alone where there is one. "
            "Download a video that has an address; predict pictures with a command of their own.",
        ),
        (["film.mov", "--explain", "why"], "--explain is for pictures; leave it out with videos."),
        (["a.png", "--every", "3"], "--every is for videos; leave it out with pictures."),
    ],
)
def test_what_does_not_go_with_videos_is_refused(
    capsys, here: Path, run: Path, shown: list[Image.Image], arguments: list[str], text: str
):
    write_video(here / "film.mov", shown[:1])
    shown[0].save(here / "a.png")
    code, out, err = call(capsys, "predict", run, *arguments)
    assert (code, out, err) == (2, "", f"{text}\n")


def test_without_the_extra_it_is_said_what_to_install(capsys, here: Path, run: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "film.mov").write_text("anything")
    monkeypatch.setitem(sys.modules, "av", None)
    code, out, err = call(capsys, "predict", run, "film.mov")
    assert (code, out) == (2, "")
    assert err == (
        "Videos and cameras are read by PyAV, which is not installed; expected it. "
        "Install it with: pip install candid-vision[video]\n"
    )
