"""A checkpoint and pictures become ranked classes."""

import csv
import io
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from candid.calibration import find_temperature
from candid.checkpoint import Checkpoint, RunFolder, Which, restore_network
from candid.data.decoding import UnreadablePicture
from candid.data.folders import list_pictures
from candid.data.loading import read_square
from candid.device import choose_device
from candid.errors import DataError
from candid.evaluation import rank_classes
from candid.views import prepare

BATCH_SIZE = 8
"""Pictures for a forward pass: enough for fast convolutions, few enough for their maps to stay near the processor."""
MOST_STREAMS = 8
"""Batches under way at once."""


@dataclass(frozen=True)
class Prediction:
    """What a network says about one file."""

    file: str
    classes: tuple[str, ...]
    """Class names, best first; empty when the file is no picture."""
    probabilities: tuple[float, ...]
    """Matching `classes`, in [0, 1]."""
    problem: str | None = None
    """Why there is no prediction."""

    def as_dict(self) -> dict[str, object]:
        """For programs: the file, and its classes with their probabilities or what went wrong."""
        if self.problem:
            return {"file": self.file, "problem": self.problem}
        pairs = zip(self.classes, self.probabilities, strict=True)
        classes = [{"class": name, "probability": round(probability, 6)} for name, probability in pairs]
        return {"file": self.file, "classes": classes}


class Predictor:
    """A network ready to name pictures, with the preprocessing it was measured with."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, temperature: float = 1.0) -> None:
        """Put the checkpoint's network on `device`; its logits are divided by the temperature."""
        self.checkpoint, self._device, self._temperature = checkpoint, device, temperature
        self._apply = prepare(restore_network(checkpoint).to(device))

    def predict(self, sources: str | Path | Iterable[str | Path], top: int = 5) -> list[Prediction]:
        """One Prediction for each picture among the files and folders (recursive) in `sources`, in order."""
        given = [sources] if isinstance(sources, str | Path) else sources
        return list(self.stream(list_sources([Path(source) for source in given]), top))

    def stream(self, files: Sequence[Path], top: int = 5) -> Generator[Prediction]:
        """One Prediction for each file, in order, while the next ones are made; in memory are a few batches at most.

        Batches go side by side from the file to the ranked classes, each with its share of the threads, so that one
        is decoded while another passes through the network, and no thread waits for the others after every layer.
        """
        batches = [files[start : start + BATCH_SIZE] for start in range(0, len(files), BATCH_SIZE)]
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
    def _predict_batch(self, files: Sequence[Path], top: int) -> list[Prediction]:
        preprocessing, names = self.checkpoint.preprocessing, self.checkpoint.class_names
        pictures: list[Tensor] = []
        problems: dict[Path, str] = {}
        for file in files:
            try:
                pictures.append(read_square(file, preprocessing))
            except UnreadablePicture as error:
                problems[file] = str(error)
        ranked: Iterator[tuple[Tensor, Tensor]] = iter(())
        if pictures:
            logits = self._apply(preprocessing.normalise(torch.stack(pictures).to(self._device))).float()
            ranked = zip(*rank_classes(logits / self._temperature, top), strict=True)
        predictions: list[Prediction] = []
        for file in files:
            if file in problems:
                predictions.append(Prediction(str(file), (), (), problems[file]))
            else:
                probabilities, classes = next(ranked)
                found = tuple(names[index] for index in classes.tolist())
                predictions.append(Prediction(str(file), found, tuple(probabilities.tolist())))
        return predictions


def load(run: str | Path, which: Which | None = None, device: str = "auto") -> Predictor:
    """The network of a run, ready to predict: its best checkpoint, or the latest when nothing was held out."""
    checkpoint = RunFolder.open(Path(run)).load(which)
    return Predictor(checkpoint, choose_device(device), find_temperature(Path(run), checkpoint.name))


def list_sources(sources: Sequence[Path]) -> list[Path]:
    """The files among `sources` and all pictures below the folders among them."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            found = [source / file for file in list_pictures(source)]
            if not found:
                raise DataError(
                    f"{source} holds no pictures; expected at least one. "
                    "Choose a file, or a folder with pictures in it."
                )
            files += found
        elif source.exists():
            files.append(source)
        else:
            raise DataError(f"{source} does not exist; expected a picture file or a folder of pictures.")
    return files


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
