"""Picture files to squares of pixels: one by one, or many at once with threads and a bar."""

from collections.abc import Callable, Generator, Sequence
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

MOST_THREADS = 8

Decode = Callable[[Sequence[Path]], tuple[Tensor, list[str]]]
"""From files to their squares, uint8 [N, C, side, side], and what is wrong with those that cannot be read."""


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


def decode_all(examples: FileExamples, preprocessing: Preprocessing) -> Tensor:
    """All pictures, squared, uint8 [N, C, image_size, image_size]; DataError lists those that are unreadable."""
    with decoding(len(examples), preprocessing) as decode:
        pictures, problems = decode([examples.root / file for file in examples.files])
    refuse_unreadable(problems)
    return pictures


@contextmanager
def decoding(num_pictures: int, preprocessing: Preprocessing) -> Generator[Decode]:
    """Threads that decode so many pictures, in as many calls as one likes; a terminal shows how far they are."""
    console, side = Console(stderr=True), preprocessing.image_size
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(min(MOST_THREADS, num_cores()), initializer=use_one_core)

    def decode(files: Sequence[Path]) -> tuple[Tensor, list[str]]:
        pictures = torch.empty(len(files), preprocessing.channels, side, side, dtype=torch.uint8)

        def read(position: int) -> str | None:
            try:
                pictures[position] = read_square(files[position], preprocessing)
            except UnreadablePicture as error:
                return str(error)
            return None

        problems: list[str] = []
        for problem in pool.map(read, range(len(files))):
            bar.advance(task)
            problems += [] if problem is None else [problem]
        return pictures, problems

    try:
        with bar, pool:
            task = bar.add_task(f"Reading {num_pictures:,} pictures", total=num_pictures)
            yield decode
    finally:
        torch.set_num_threads(num_threads)


def refuse_unreadable(problems: Sequence[str]) -> None:
    """Raise one DataError that lists the unreadable pictures, if there are any."""
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        number = "1 picture" if len(problems) == 1 else f"{len(problems)} pictures"
        raise DataError(f"{number} cannot be used; expected whole pictures, so replace or remove:\n{shown}{more}")
