"""A checkpoint and pictures become ranked classes."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from candid.checkpoint import Checkpoint, RunFolder, Which, restore_network
from candid.data.decoding import UnreadablePicture
from candid.data.folders import list_pictures
from candid.data.loading import EVALUATION_BATCH_SIZE, read_square
from candid.device import choose_device
from candid.errors import DataError
from candid.evaluation import rank_classes
from candid.out_of_memory import WithinMemory


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

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        """Put the checkpoint's network on `device`."""
        self.checkpoint, self._device = checkpoint, device
        self._apply = WithinMemory(restore_network(checkpoint).to(device))

    def predict(self, sources: str | Path | Iterable[str | Path], top: int = 5) -> list[Prediction]:
        """One Prediction for each picture among the files and folders (recursive) in `sources`, in order."""
        given = [sources] if isinstance(sources, str | Path) else sources
        files = list_sources([Path(source) for source in given])
        return [
            prediction
            for start in range(0, len(files), EVALUATION_BATCH_SIZE)
            for prediction in self._predict_batch(files[start : start + EVALUATION_BATCH_SIZE], top)
        ]

    @torch.inference_mode()
    def _predict_batch(self, files: Sequence[Path], top: int) -> Iterator[Prediction]:
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
            ranked = zip(*rank_classes(logits, top), strict=True)
        for file in files:
            if file in problems:
                yield Prediction(str(file), (), (), problems[file])
            else:
                probabilities, classes = next(ranked)
                found = tuple(names[index] for index in classes.tolist())
                yield Prediction(str(file), found, tuple(probabilities.tolist()))


def load(run: str | Path, which: Which | None = None, device: str = "auto") -> Predictor:
    """The network of a run, ready to predict: its best checkpoint, or the latest when nothing was held out."""
    return Predictor(RunFolder.open(Path(run)).load(which), choose_device(device))


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


def as_csv(predictions: Sequence[Prediction]) -> str:
    """A row a picture: file, the classes and probabilities from the best down, and what went wrong."""
    ranks = range(max((len(prediction.classes) for prediction in predictions), default=0))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    named = [column for rank in ranks for column in (f"class_{rank + 1}", f"probability_{rank + 1}")]
    writer.writerow(["file", *named, "problem"])
    for prediction in predictions:
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        cells = [cell for name, probability in pairs for cell in (name, f"{probability:.6f}")]
        writer.writerow([prediction.file, *(cells or [""] * len(named)), prediction.problem or ""])
    return buffer.getvalue()
