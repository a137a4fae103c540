"""A video becomes answers frame by frame, spans of equal answers, and a copy with the answers below it."""

import importlib
import io
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from candid.annotating import with_label
from candid.data.decoding import MAX_PIXELS
from candid.errors import DataError, InputError
from candid.predict import BATCH_SIZE, Prediction, Predictor

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"})
"""What a file name must end with to be taken for a video."""
STRICT = {"err_detect": "explode"}
"""Has the decoder say what is broken; else it makes a picture up from its neighbours."""
TICKS_PER_S = 60_000
"""In which the usual rates, that of American television too, are whole numbers, and no more than MPEG-4 allows."""
NOTHING_ELSE = {"protocol_whitelist": ""}
"""Keeps a file that is a list of other files or addresses from having them opened."""


@dataclass(frozen=True)
class Frame:
    """One picture of a video, upright."""

    number: int
    """From 0."""
    seconds: float
    """From the beginning of the video."""
    pixels: np.ndarray | None
    """RGB, uint8 [H, W, 3]; None where it is broken."""


@dataclass(frozen=True)
class NamedFrame:
    """What a network says about one frame."""

    number: int
    seconds: float
    prediction: Prediction

    def as_dict(self) -> dict[str, object]:
        """For programs: the video, the frame and its time, and what `Prediction.as_dict` has."""
        facts = self.prediction.as_dict()
        return {"file": facts.pop("file"), "frame": self.number, "seconds": round(self.seconds, 3), **facts}


@dataclass(frozen=True)
class Span:
    """A part of a video in which all frames that were looked at had the same answer."""

    answer: str
    begin_s: float
    end_s: float
    """Where the next span begins, or of its last frame."""
    frames: int
    """How many were looked at."""
    probability: float
    """The answer's mean probability, in [0, 1]."""


def is_video(source: str) -> bool:
    """Whether a source is named as a video."""
    return Path(source).suffix.lower() in SUFFIXES


def name_frames(predictor: Predictor, path: Path, every: int, top: int = 5) -> Generator[NamedFrame]:
    """What the network says of every n-th frame, and which frames are broken, in order.

    Raises:
        DataError: if it is no video, or none of its frames can be decoded.
        InputError: if PyAV is not installed.
    """
    waiting: list[Frame] = []
    num_whole = 0
    for frame in read_frames(path, every):
        waiting.append(frame)
        num_whole += frame.pixels is not None
        if len(waiting) == BATCH_SIZE:
            yield from _name(predictor, path, waiting, top)
            waiting = []
    yield from _name(predictor, path, waiting, top)
    if num_whole == 0:
        raise DataError(f"{path} has no frame that can be decoded; expected a video. Make or get it again.")


def read_frames(path: Path, every: int = 1) -> Generator[Frame]:
    """Frames 0, n, 2n, ... and all broken ones, one at a time in memory."""
    av = import_av()
    number = -1
    broken: set[float] = set()
    with _open(path) as file, _open_container(av, file, path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"  # threads for frames say later, and elsewhere, what is broken
        stream.codec_context.options = STRICT
        for part in _decoded(av, container, stream):
            is_whole = isinstance(part, av.VideoFrame) and not part.is_corrupt
            seconds = float(((part.pts or 0) - (stream.start_time or 0)) * stream.time_base)
            if not is_whole and seconds in broken:
                continue  # the remains of what was said to be broken
            number += 1
            if not is_whole:
                broken.add(seconds)
                yield Frame(number, seconds, None)
            elif number % every == 0:
                yield Frame(number, seconds, upright(part))


def find_spans(frames: Iterable[NamedFrame]) -> list[Span]:
    """Runs of the same answer among the frames that are not broken."""
    whole = [frame for frame in frames if not frame.prediction.problem]
    runs = [list(run) for _, run in groupby(whole, key=lambda frame: frame.prediction.answer)]
    ends = [run[0].seconds for run in runs[1:]] + [whole[-1].seconds for _ in runs[-1:]]
    return [
        Span(
            answer=run[0].prediction.answer,
            begin_s=run[0].seconds,
            end_s=end_s,
            frames=len(run),
            probability=sum(frame.prediction.probabilities[0] for frame in run) / len(run),
        )
        for run, end_s in zip(runs, ends, strict=True)
    ]


def write_annotated(path: Path, labels: Mapping[int, str], target: BinaryIO) -> None:
    """Write an MP4, without sound, of all whole frames, each with the last of the labels, by number, below it."""
    av = import_av()
    label, stream, ticks, width = "", None, -1, 0
    with av.open(target, "w", format="mp4") as container:
        for frame in read_frames(path):
            label = labels.get(frame.number, label)
            if frame.pixels is None:
                continue
            image = Image.fromarray(frame.pixels)
            if stream is None:
                width = max(
                    with_label(image.crop((0, 0, image.width, 1)), one).width for one in {label, *labels.values()}
                )
                stream = _add_stream(av, container, with_label(image, label, width))
            labelled = with_label(image, label, width).crop((0, 0, stream.width, stream.height))
            encoded = av.VideoFrame.from_ndarray(np.asarray(labelled), format="rgb24")
            ticks = max(round(frame.seconds * TICKS_PER_S), ticks + 1)
            encoded.pts, encoded.time_base = ticks, Fraction(1, TICKS_PER_S)
            container.mux(stream.encode(encoded))
        if stream is not None:
            container.mux(stream.encode())


def _add_stream(av: Any, container: Any, image: Image.Image) -> Any:
    """A stream of frames of this size, or a line and a column more: video halves the sides of its colours."""
    stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=30)
    stream.width, stream.height = image.width + image.width % 2, image.height + image.height % 2
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = Fraction(1, TICKS_PER_S)
    return stream


def _name(predictor: Predictor, path: Path, frames: list[Frame], top: int) -> Iterator[NamedFrame]:
    squares = [square(predictor, frame.pixels) for frame in frames if frame.pixels is not None]
    ranked = iter(predictor.rank(torch.stack(squares), top) if squares else [])
    for frame in frames:
        if frame.pixels is None:
            problem = (
                f"{path} has a broken frame at {frame.seconds:.2f} s (number {frame.number}); expected a whole one."
            )
            yield NamedFrame(frame.number, frame.seconds, Prediction(str(path), (), (), problem))
        else:
            yield NamedFrame(
                frame.number, frame.seconds, Prediction(str(path), *next(ranked), threshold=predictor.threshold)
            )


def square(predictor: Predictor, pixels: np.ndarray) -> Tensor:
    """As the decoder and the preprocessing make it of a picture with these pixels."""
    channels = predictor.preprocessing.channels
    values = np.array(Image.fromarray(pixels).convert("L")) if channels == 1 else pixels
    planes = torch.from_numpy(np.ascontiguousarray(values)).view(*pixels.shape[:2], channels).permute(2, 0, 1)
    return predictor.preprocessing.make_square(planes)


def _open(path: Path) -> io.BufferedReader:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected a video file.") from None
    if not file.peek(1):
        file.close()
        raise DataError(f"{path} is empty (0 bytes); expected a video.")
    return file


def _open_container(av: Any, file: BinaryIO, path: Path) -> Any:
    try:
        container = av.open(file, options=NOTHING_ELSE, metadata_errors="replace")
    except av.FFmpegError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}; expected a video. Make or get it again.") from None
    if not container.streams.video:
        container.close()
        raise DataError(f"{path} holds no pictures; expected a video. Make or get it again.")
    context = container.streams.video[0].codec_context
    if context is None:
        container.close()
        raise DataError(f"{path} is encoded in a way that is not known; expected a usual video. Convert it to MP4.")
    if context.width * context.height > MAX_PIXELS:
        container.close()
        raise DataError(
            f"{path} has frames of more than {MAX_PIXELS // 1_000_000} million pixels; make them smaller to use it."
        )
    return container


def _decoded(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """Frames, and packets that cannot be decoded, until the video ends or breaks off."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        try:
            yield from packet.decode()
        except av.FFmpegError:
            yield packet


def upright(frame: Any) -> np.ndarray:
    """RGB, uint8 [H, W, 3], turned as the camera was held."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def import_av() -> Any:
    """PyAV, which says nothing by itself; InputError where it is not installed."""
    try:
        av = importlib.import_module("av")
    except ImportError:
        raise InputError(
            "Videos and cameras are read by PyAV, which is not installed; expected it. "
            "Install it with: pip install candid-vision[video]"
        ) from None
    av.logging.set_level(None)  # what is broken is said once, by us
    return av
