"""A camera, and what a network says of each picture that it gives, for as long as somebody watches."""

import re
import sys
import time
from collections.abc import Generator
from typing import Any

from candid.errors import DataError, InputError
from candid.predict import Prediction, Predictor
from candid.video import import_av, square, upright

CAMERA = re.compile(r"camera:(\d{1,3})")
"""How a camera is named among the sources."""
DEVICES = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none")}
"""By `sys.platform`: FFmpeg's format for cameras, and what it calls one by its number."""


def is_camera(source: str) -> bool:
    """Whether a source is named as a camera."""
    return CAMERA.fullmatch(source) is not None


def watch(predictor: Predictor, source: str, top: int = 5) -> Generator[Prediction]:
    """What the network says of each picture of a camera, as soon as it is there, until the camera is gone.

    Raises:
        DataError: if there is no such camera, or it cannot be opened.
        InputError: if PyAV is not installed, or cameras cannot be read on this system.
    """
    av = import_av()
    with _open(av, source) as camera:
        frames = camera.decode(video=0)
        while True:
            began_at_s = time.perf_counter()
            try:
                frame = next(frames)
            except (StopIteration, av.FFmpegError):
                return
            pixels = square(predictor, upright(frame))
            decoded_at_s = time.perf_counter()
            [ranked] = predictor.rank(pixels[None], top)
            yield Prediction(
                source,
                *ranked,
                decode_ms=1000 * (decoded_at_s - began_at_s),
                network_ms=1000 * (time.perf_counter() - decoded_at_s),
                threshold=predictor.threshold,
            )


def _open(av: Any, source: str) -> Any:
    number = source.partition(":")[2]
    if sys.platform not in DEVICES:
        raise InputError(f"{source} cannot be opened: candid reads cameras on Linux and macOS. Give it a video file.")
    kind, name = DEVICES[sys.platform]
    name = name.format(number)
    try:
        return av.open(name, format=kind)
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{source} ({name}) cannot be opened: {reason}; expected a camera that nothing else is using. "
            "camera:0 is the first one."
        ) from None
