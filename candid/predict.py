"""A checkpoint and pictures become ranked classes."""

import csv
import io
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from candid.calibration import FILE_NAME, Calibration
from candid.checkpoint import Checkpoint, RunFolder, Which, restore_network
from candid.data.decoding import UnreadablePicture
from candid.data.reading import decode_square
from candid.data.sources import Picture, find_pictures
from candid.device import choose_device
from candid.errors import InputError
from candid.evaluation import rank_classes
from candid.explaining import explain
from candid.notebook import paragraphs, table
from candid.views import prepare
from candid.words import percent

BATCH_SIZE = 8
"""Pictures for a forward pass: enough for fast convolutions, few enough for their maps to stay near the processor."""
UNKNOWN = "unknown"
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
    data: bytes = field(default=b"", compare=False, repr=False)
    """The encoded picture, where it was to be kept."""
    threshold: float = 0.0
    """Less than this probability makes no answer."""

    @property
    def answer(self) -> str:
        """What the picture is said to show: the best class, or UNKNOWN where its probability is too low."""
        return self.classes[0] if self.probabilities[0] >= self.threshold else UNKNOWN

    @property
    def label(self) -> str:
        """The answer and its probability, such as "circle 98.20 %"."""
        return f"{self.answer} {percent(self.probabilities[0])}"

    def as_dict(self) -> dict[str, object]:
        """For programs: file, answer, classes with their probabilities, and the time it took; or what went wrong."""
        if self.problem:
            return {"file": self.file, "problem": self.problem}
        pairs = zip(self.classes, self.probabilities, strict=True)
        classes = [{"class": name, "probability": round(probability, 6)} for name, probability in pairs]
        times = {"decode_ms": round(self.decode_ms, 3), "network_ms": round(self.network_ms, 3)}
        return {"file": self.file, "answer": self.answer, "classes": classes, **times}


class Predictions(list[Prediction]):
    """Predictions in the order of their pictures; a notebook shows them as a table."""

    def rows(self) -> list[tuple[str, ...]]:
        """Those of pictures as cells of a table, the headings first; the answer where one may be unknown."""
        named = [prediction for prediction in self if not prediction.problem]
        has_unknown = any(prediction.threshold for prediction in named)
        ranks = range(1, 1 + max((len(prediction.classes) for prediction in named), default=0))
        rows: list[tuple[str, ...]] = [("picture", *["answer"] * has_unknown, *(f"{rank}." for rank in ranks))]
        for prediction in named:
            pairs = zip(prediction.classes, prediction.probabilities, strict=True)
            cells = (f"{name} {percent(probability)}" for name, probability in pairs)
            rows.append((Path(prediction.file).name, *[prediction.answer] * has_unknown, *cells))
        return rows

    def _repr_html_(self) -> str:
        """What a notebook shows: the table, and what went wrong."""
        return table(self.rows()) + paragraphs(prediction.problem for prediction in self if prediction.problem)


class Predictor:
    """A network ready to name pictures, with the preprocessing it was measured with."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        temperature: float = 1.0,
        threshold: float = 0.0,
        fit: str | None = None,
    ) -> None:
        """Put the checkpoint's network on `device`; its logits are divided by the temperature.

        Below the threshold its answer is UNKNOWN. `fit` makes pictures square in another way than it has learned.
        """
        self.checkpoint, self._device = checkpoint, device
        self._temperature, self.threshold = temperature, threshold
        self.preprocessing = checkpoint.preprocessing.with_fit(fit or checkpoint.preprocessing.fit)
        self._apply = prepare(restore_network(checkpoint).to(device))

    @cached_property
    def _network(self) -> nn.Module:
        """The checkpoint's network as it was trained, with nothing folded into it."""
        return restore_network(self.checkpoint).to(self._device)

    def explain(self, data: bytes, class_name: str, name: str = "the picture") -> Tensor:
        """How much each place of an encoded picture speaks for a class, as in `explain`: [image_size, image_size].

        An error calls the picture `name`.
        """
        inputs = self.preprocessing.normalise(decode_square(data, name, self.preprocessing)[None].to(self._device))
        index = self.checkpoint.class_names.index(class_name)
        return explain(self._network, inputs, torch.tensor([index], device=self._device))[0].cpu()

    def predict(self, sources: str | Path | Iterable[str | Path], top: int = 5) -> Predictions:
        """One Prediction for each picture among `sources`, in order, with its `top` best classes.

        Sources are files, folders, patterns, zip files, addresses and "-", as `find_pictures` reads them. A file that
        is no picture is no error: its Prediction says what the problem is.

        Raises:
            DataError: if a source does not exist or holds no pictures.
        """
        return Predictions(self.stream(find_pictures([sources] if isinstance(sources, str | Path) else sources), top))

    def stream(self, pictures: Sequence[Picture], top: int = 5, *, keep: bool = False) -> Generator[Prediction]:
        """One Prediction for each picture, in order, while the next are made; in memory are a few batches at most.

        With `keep`, each has the bytes of its picture.

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
                under_way.append(pool.submit(self._predict_batch, batch, top, keep))
                if len(under_way) > 2 * num_streams:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(num_threads)  # what threads that begin later have; ours never had another

    @torch.inference_mode()
    def _predict_batch(self, pictures: Sequence[Picture], top: int, keep: bool) -> list[Prediction]:
        begun_at_s = time.perf_counter()
        read = [self._read(picture, keep) for picture in pictures]
        decoded_at_s = time.perf_counter()
        squares = [found[0] for found in read if not isinstance(found, str)]
        ranked = iter(self.rank(torch.stack(squares), top) if squares else [])
        decode_ms = 1000 * (decoded_at_s - begun_at_s) / len(pictures)
        network_ms = 1000 * (time.perf_counter() - decoded_at_s) / max(1, len(squares))
        predictions: list[Prediction] = []
        for picture, found in zip(pictures, read, strict=True):
            if isinstance(found, str):
                predictions.append(Prediction(picture.name, (), (), found))
            else:
                said = Prediction(picture.name, *next(ranked), None, decode_ms, network_ms, found[1], self.threshold)
                predictions.append(said)
        return predictions

    def _read(self, picture: Picture, keep: bool) -> tuple[Tensor, bytes] | str:
        """A picture's square, and its bytes where they are to be kept; or what is wrong with it."""
        try:
            data = picture.read()
            return decode_square(data, picture.name, self.preprocessing), data if keep else b""
        except UnreadablePicture as error:
            return str(error)

    @torch.inference_mode()
    def rank(self, squares: Tensor, top: int) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
        """Classes and probabilities, best first, of each of the pictures uint8 [N, C, image_size, image_size]."""
        logits = self._apply(self.preprocessing.normalise(squares.to(self._device))).float()
        names = self.checkpoint.class_names
        return [
            (tuple(names[index] for index in classes.tolist()), tuple(probabilities.tolist()))
            for probabilities, classes in zip(*rank_classes(logits / self._temperature, top), strict=True)
        ]


def load(
    run: str | Path,
    which: Which | None = None,
    device: str = "auto",
    fit: str | None = None,
    precision: float | None = None,
) -> Predictor:
    """The network of a run, whose `predict` names pictures: its best checkpoint, or the latest if none was chosen.

    Probabilities are in [0, 1], calibrated on the validation split where there is one (Guo et al. 2017,
    arXiv:1706.04599). `which` is best or latest, `device` auto, cpu, cuda or cuda:1. `fit` (crop, pad or squash) is how
    pictures are made square, where not as in training. With `precision`, such as 0.95, its answer is "unknown" where so
    many of the answers would not be right, by the validation split.

    Raises:
        InputError: if there is no such run or device, or no threshold for that precision.
        CheckpointError: if the run has no checkpoint yet, or it is damaged.
    """
    checkpoint = RunFolder.open(Path(run)).load(which)
    calibration = Calibration.load(Path(run), checkpoint.name)
    temperature, threshold = 1.0 if calibration is None else calibration.temperature, 0.0
    if precision is not None:
        if calibration is None:
            raise InputError(
                f"{run} was not calibrated, so no confidence is known from which on {precision:g} of its answers are "
                f"right; expected {FILE_NAME} in it. Run `candid evaluate {run}`, which needs a validation split."
            )
        threshold = calibration.threshold(precision).confidence
    return Predictor(checkpoint, choose_device(device), temperature, threshold, fit)


def csv_lines(predictions: Iterable[Prediction], num_ranks: int) -> Generator[str]:
    """The header and a line a picture: file, answer, the best `num_ranks` classes, and what went wrong."""
    named = [column for rank in range(1, num_ranks + 1) for column in (f"class_{rank}", f"probability_{rank}")]
    yield csv_line(["file", "answer", *named, "problem"])
    for prediction in predictions:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        cells = [cell for name, probability in pairs for cell in (name, f"{probability:.6f}")]
        answer = "" if prediction.problem else prediction.answer
        yield csv_line([prediction.file, answer, *(cells or [""] * len(named)), prediction.problem or ""])


def csv_line(cells: Sequence[str]) -> str:
    """The cells as a line of a CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
