"""A checkpoint and pictures become ranked classes."""

import csv
import io
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from candid.checkpoint import Checkpoint, RunFolder, Which, restore_network
from candid.data.decoding import UnreadablePicture
from candid.data.reading import decode_square
from candid.data.sources import Picture, find_pictures
from candid.device import choose_device
from candid.evaluation import prepare, rank_classes

BATCH_SIZE = 8
"""Pictures for a forward pass: enough for fast convolutions, few enough for their maps to stay near the processor."""
MOST_STREAMS = 8
"""Batches under way at once."""


@dataclass(frozen=True)
class Prediction:
    """What a network says about one picture."""

    file: str
    """The name of the picture."""
    classes: tuple[str, ...]
    """Class names, best first; empty when the file is no picture."""
    probabilities: tuple[float, ...]
    """Matching `classes`, in [0, 1]."""
    problem: str | None = None
    """Why there is no prediction."""
    decode_ms: float = field(default=0.0, compare=False)
    """Milliseconds to read and decode it: an equal share of its batch's, as is the next."""
    network_ms: float = field(default=0.0, compare=False)
    """Milliseconds in the network."""

    @property
    def answer(self) -> str:
        """What the picture is said to show: the best class, whose probability is the first."""
        return self.classes[0]

    def as_dict(self) -> dict[str, object]:
        """For programs: the file, its classes with their probabilities, and the time it took; or what went wrong."""
        if self.problem:
            return {"file": self.file, "problem": self.problem}
        pairs = zip(self.classes, self.probabilities, strict=True)
        classes = [{"class": name, "probability": round(probability, 6)} for name, probability in pairs]
        times = {"decode_ms": round(self.decode_ms, 3), "network_ms": round(self.network_ms, 3)}
        return {"file": self.file, "classes": classes, **times}


class Predictor:
    """A network ready to name pictures, with the preprocessing it was measured with."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Put the checkpoint's network on `device`."""
        self.checkpoint, self._device = checkpoint, device
        self._apply = prepare(restore_network(checkpoint).to(device))

    def predict(self, sources: str | Path | Iterable[str | Path], top: int = 5) -> list[Prediction]:
        """One Prediction for each picture among `sources`, as `find_pictures` reads them, in order."""
        return list(self.stream(find_pictures([sources] if isinstance(sources, str | Path) else sources), top))

    def stream(self, pictures: Sequence[Picture], top: int = 5) -> Generator[Prediction]:
        """One Prediction for each picture, in order, while the next are made; in memory are a few batches at most.

        Batches go side by side from the bytes to the ranked classes, each with its share of the threads, so that one
        is decoded while another passes through the network, and no thread waits for the others after every layer.
        """
        batches = [pictures[start : start + BATCH_SIZE] for start in range(0, len(pictures), BATCH_SIZE)]
        num_threads = torch.get_num_threads()
        num_streams = max(1, min(MOST_STREAMS, num_threads, len(batches)))
        pool = ThreadPoolExecutor(num_streams, "predict", torch.set_num_threads, (num_threads // num_streams,))
        under_way: deque[Future[list[Prediction]]] = deque()
        try:
            for batch in batches:
                under_way.append(pool.submit(self._predict_batch, batch, top))
                if len(under_way) > 2 * num_streams:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(num_threads)  # what threads that begin later have; ours never had another

    @torch.inference_mode()
    def _predict_batch(self, pictures: Sequence[Picture], top: int) -> list[Prediction]:
        squares: list[Tensor] = []
        problems: dict[int, str] = {}
        begun_at_s = time.perf_counter()
        for position, picture in enumerate(pictures):
            try:
                squares.append(decode_square(picture.read(), picture.name, self.checkpoint.preprocessing))
            except UnreadablePicture as error:
                problems[position] = str(error)
        decoded_at_s = time.perf_counter()
        ranked = iter(self._rank(torch.stack(squares), top) if squares else [])
        decode_ms = 1000 * (decoded_at_s - begun_at_s) / len(pictures)
        network_ms = 1000 * (time.perf_counter() - decoded_at_s) / max(1, len(squares))
        return [
            Prediction(picture.name, (), (), problems[position])
            if position in problems
            else Prediction(picture.name, *next(ranked), decode_ms=decode_ms, network_ms=network_ms)
            for position, picture in enumerate(pictures)
        ]

    def _rank(self, squares: Tensor, top: int) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
        """Classes and probabilities, best first, of each of the pictures uint8 [N, C, image_size, image_size]."""
        logits = self._apply(self.checkpoint.preprocessing.normalise(squares.to(self._device))).float()
        names = self.checkpoint.class_names
        return [
            (tuple(names[index] for index in classes.tolist()), tuple(probabilities.tolist()))
            for probabilities, classes in zip(*rank_classes(logits, top), strict=True)
        ]


def load(run: str | Path, which: Which | None = None, device: str = "auto") -> Predictor:
    """The network of a run, ready to predict: its best checkpoint, or the latest when nothing was held out."""
    return Predictor(RunFolder.open(Path(run)).load(which), choose_device(device))


def csv_lines(predictions: Iterable[Prediction], num_ranks: int) -> Generator[str]:
    """The header and a line a picture: file, the best `num_ranks` classes and probabilities, and what went wrong."""
    named = [column for rank in range(1, num_ranks + 1) for column in (f"class_{rank}", f"probability_{rank}")]
    yield _csv_line(["file", *named, "problem"])
    for prediction in predictions:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        cells = [cell for name, probability in pairs for cell in (name, f"{probability:.6f}")]
        yield _csv_line([prediction.file, *(cells or [""] * len(named)), prediction.problem or ""])


def _csv_line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
