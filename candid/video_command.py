"""`candid predict` of videos: the answers by span of time as a table, or frame by frame as lines of JSON or CSV."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from candid.errors import InputError
from candid.printing import print_table
from candid.words import percent

if TYPE_CHECKING:
    from candid.annotating import NewFolder
    from candid.predict import Predictor
    from candid.video import NamedFrame

EVERY = 10
"""Of so many frames, one is looked at: three in a second of most videos."""
COLUMNS = ("file", "frame", "seconds", "answer", "probability", "problem")


def predict_videos(
    predictor: "Predictor",
    videos: Sequence[Path],
    every: int,
    top: int,
    as_json: bool,
    csv_file: Path | None,
    annotated: "NewFolder | None",
) -> list[str]:
    """Print or write what is seen when, and save annotated copies where there is a folder for them; what is broken."""
    from candid.durable import write_file
    from candid.video import name_frames

    seen: list[NamedFrame] = []
    frames = (frame for video in videos for frame in name_frames(predictor, video, every, top))
    frames = _note(_print_json(frames) if as_json else frames, seen)
    if csv_file is not None:
        write_file(csv_file, (line.encode() for line in _csv_lines(frames)))
    else:
        for _ in frames:
            pass
    if annotated is not None:
        for video in videos:
            _save_annotated(video, [frame for frame in seen if frame.prediction.file == str(video)], annotated)
    if csv_file is None and not as_json:
        _print_spans(videos, seen)
    return [frame.prediction.problem for frame in seen if frame.prediction.problem]


def as_videos(sources: Sequence[str]) -> list[Path]:
    """The files that the sources name; InputError where some are not videos."""
    from candid.data.fetching import is_address
    from candid.data.sources import find_pictures
    from candid.video import is_video

    names = [source.name for source in find_pictures(sources)]
    for name in names:
        if not is_video(name) or is_address(name):
            raise InputError(
                f"{name} is no video file; expected video files alone where there is one. "
                "Download a video that has an address; predict pictures with a command of their own."
            )
    return [Path(name) for name in names]


def _note(frames: Iterable["NamedFrame"], seen: list["NamedFrame"]) -> Iterator["NamedFrame"]:
    for frame in frames:
        seen.append(frame)
        yield frame


def _print_json(frames: Iterable["NamedFrame"]) -> Iterator["NamedFrame"]:
    for frame in frames:
        typer.echo(json.dumps(frame.as_dict(), ensure_ascii=False))
        yield frame


def _csv_lines(frames: Iterable["NamedFrame"]) -> Iterator[str]:
    from candid.predict import csv_line

    yield csv_line(COLUMNS)
    for frame in frames:
        said = frame.prediction
        answer = ("", "") if said.problem else (said.answer, f"{said.probabilities[0]:.6f}")
        yield csv_line((said.file, str(frame.number), f"{frame.seconds:.3f}", *answer, said.problem or ""))


def _save_annotated(video: Path, frames: Sequence["NamedFrame"], folder: "NewFolder") -> None:
    from candid.video import write_annotated

    labels = {frame.number: frame.prediction.label for frame in frames if not frame.prediction.problem}
    with folder.create(str(video), ".mp4") as file:
        write_annotated(video, labels, file)


def _print_spans(videos: Sequence[Path], frames: Sequence["NamedFrame"]) -> None:
    from candid.video import find_spans

    print_table(
        ("video", "from", "to", "answer", "mean probability", "frames"),
        [
            (
                video.name,
                _clock(span.begin_s),
                _clock(span.end_s),
                span.answer,
                percent(span.probability),
                str(span.frames),
            )
            for video in videos
            for span in find_spans(frame for frame in frames if frame.prediction.file == str(video))
        ],
    )


def _clock(seconds: float) -> str:
    """Such as "0:07.5" or "61:00.0", in minutes and seconds."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths % 600 // 10:02}.{tenths % 10}"
