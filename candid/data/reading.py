"""Picture files to squares of pixels: one by one, or many at once with threads and a bar."""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from candid.data.ahead import use_one_core
from candid.data.decoding import UnreadablePicture, decode, decode_file
from candid.data.examples import FileExamples
from candid.data.preprocessing import Preprocessing
from candid.device import num_cores
from candid.errors import DataError
from candid.words import count

MOST_THREADS = 8
MOST_LISTED = 100
"""Unreadable pictures that an error names."""
FILES_AT_ONCE = 256

Decode = Callable[[Sequence[Path]], tuple[Tensor, dict[Path, str]]]
"""From files to their squares, uint8 [N, C, side, side], and what is wrong with those that cannot be read."""


class UnreadablePictures(DataError):
    """Files that are no pictures, as many as were met before somebody said so."""

    problems: Mapping[Path, str] = {}
    """What is wrong with each file, in a sentence that names it."""


def read_square(path: Path, preprocessing: Preprocessing) -> Tensor:
    """One picture file as uint8 [C, image_size, image_size], the same in training and in prediction."""
    decoded = decode_file(path, preprocessing.channels, preprocessing.shrinkage)
    return preprocessing.make_square(decoded)


def decode_square(data: bytes, name: str, preprocessing: Preprocessing) -> Tensor:
    """What `read_square` gives of a file with these bytes; `name` is what an error calls it."""
    return preprocessing.make_square(decode(data, preprocessing.channels, name, preprocessing.shrinkage))


def read_window(path: Path, window: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The window (top, left, height, width as shares) of a picture file, as `read_square` gives the whole of it.

    It is cut before anything is resized, and takes the picture's place whatever its shape.
    """
    squash = preprocessing.model_copy(update={"fit": "squash"})
    top, left, window_height, window_width = window.tolist()
    decoded = decode_file(
        path,
        preprocessing.channels,
        lambda height, width: squash.shrinkage(window_height * height, window_width * width),
    )
    height, width = decoded.shape[-2:]
    rows, columns = max(1, round(window_height * height)), max(1, round(window_width * width))
    top, left = min(round(top * height), height - rows), min(round(left * width), width - columns)
    return squash.make_square(decoded[:, top : top + rows, left : left + columns])


def find_unreadable(examples: FileExamples, preprocessing: Preprocessing) -> dict[Path, str]:
    """What is wrong with each file that cannot be read; nothing of the others stays."""
    problems: dict[Path, str] = {}
    with decoding(len(examples), preprocessing) as decode:
        for start in range(0, len(examples), FILES_AT_ONCE):
            problems |= decode([examples.root / file for file in examples.files[start : start + FILES_AT_ONCE]])[1]
    return problems


def decode_all(examples: FileExamples, preprocessing: Preprocessing) -> Tensor:
    """All pictures, squared, uint8 [N, C, image_size, image_size]; UnreadablePictures are those that are not."""
    with decoding(len(examples), preprocessing) as decode:
        pictures, problems = decode([examples.root / file for file in examples.files])
    refuse_unreadable(problems)
    return pictures


def progress_bar() -> Progress:
    """One that is seen on a terminal alone, and only while it is needed."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def decoding(num_pictures: int, preprocessing: Preprocessing) -> Generator[Decode]:
    """Threads that decode so many pictures, in as many calls as one likes; a terminal shows how far they are."""
    bar, side = progress_bar(), preprocessing.image_size
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(MOST_THREADS, num_cores()), initializer=use_one_core)

    def decode(files: Sequence[Path]) -> tuple[Tensor, dict[Path, str]]:
        pictures = torch.empty(len(files), preprocessing.channels, side, side, dtype=torch.uint8)

        def read(position: int) -> str | None:
            try:
                pictures[position] = read_square(files[position], preprocessing)
            except UnreadablePicture as error:
                return str(error)
            return None

        problems: dict[Path, str] = {}
        for file, problem in zip(files, pool.map(read, range(len(files))), strict=True):
            bar.advance(task)
            problems |= {} if problem is None else {file: problem}
        return pictures, problems

    try:
        with bar, pool:
            task = bar.add_task(f"Reading {num_pictures:,} pictures", total=num_pictures)
            yield decode
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def noting_unreadable(problems: dict[Path, str]) -> Generator[None]:
    """Go on behind pictures that cannot be read, to know all of them before anybody is told."""
    try:
        yield
    except UnreadablePictures as error:
        problems |= error.problems


def refuse_unreadable(problems: Mapping[Path, str]) -> None:
    """Raise one UnreadablePictures that lists them, if there are any."""
    if problems:
        shown = "".join(f"\n  {problem}" for problem in list(problems.values())[:MOST_LISTED])
        more = len(problems) - MOST_LISTED
        error = UnreadablePictures(
            f"{count(len(problems), 'picture')} cannot be used; expected whole pictures, so replace or remove them, "
            f"or go on without by --bad-images skip:{shown}"
            + (f"\n  and {more:,} more; `candid doctor` lists all of a folder" if more > 0 else "")
        )
        error.problems = problems
        raise error
