"""The thumbnails an evaluation saved, each with what was predicted and what is true."""

from base64 import b64encode
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from candid.evaluation import ConfusedPair, Evaluation
from candid.kept_evaluation import EXPLAINED
from candid.report.reading import RunRecord

LARGEST_PNG_BYTES = 8192
"""Thumbnails above become JPEGs in the page, so that 144 of them stay below two megabytes."""
TINY_PX = 64
"""Pictures up to this side are shown with their pixels as squares instead of blurred."""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture and what a person calls it."""

    png: bytes
    """The file, grey or RGB."""
    file: str
    truth: str

    def as_data(self) -> tuple[str, bool]:
        """The picture as a data URI, and whether it is tiny."""
        data, kind = self.png, "png"
        with Image.open(BytesIO(data)) as image:
            tiny = max(image.size) <= TINY_PX
            if len(data) > LARGEST_PNG_BYTES:
                smaller = BytesIO()
                image.save(smaller, "JPEG", quality=85)
                data, kind = smaller.getvalue(), "jpeg"
        return f"data:image/{kind};base64,{b64encode(data).decode()}", tiny


@dataclass(frozen=True)
class Picture(Thumbnail):
    """A thumbnail and the prediction for it."""

    prediction: str
    probability: float
    """Of the prediction, in [0, 1]."""
    is_suspect: bool = False
    """Whether its label is probably wrong."""
    explanation: Thumbnail | None = None
    """What spoke for the prediction."""

    @property
    def right(self) -> bool:
        """Whether the prediction is the truth."""
        return self.prediction == self.truth


@dataclass(frozen=True)
class Pictures:
    """What the report shows of an evaluation; empty where there is none."""

    grid: tuple[Picture, ...] = ()
    """Drawn at random."""
    mistakes: tuple[Picture, ...] = ()
    """The most confident first."""
    hits: tuple[Picture, ...] = ()
    """Right, the least confident first."""
    seen: tuple[Thumbnail, ...] = ()
    """Training pictures after all variations."""
    pairs: tuple[tuple[ConfusedPair, tuple[Picture, ...]], ...] = ()
    """The most confused pairs of classes with some of their pictures, most confused first."""
    suspects: tuple[str, ...] = ()
    """Files of all pictures whose label is probably wrong, the most suspect first."""


def gather_pictures(record: RunRecord) -> Pictures:
    """The pictures of the run's evaluation."""
    evaluation, seen = record.evaluation, tuple(_gather_seen(record))
    if evaluation is None:
        return Pictures(seen=seen)
    suspects = evaluation.label_suspects()
    return Pictures(
        seen=seen,
        grid=gather(evaluation, evaluation.grid(), record.pictures),
        mistakes=gather(evaluation, evaluation.most_confident_mistakes(), record.pictures, suspects),
        hits=gather(evaluation, evaluation.least_certain_hits(), record.pictures),
        pairs=tuple(
            (pair, gather(evaluation, pair.positions, record.pictures)) for pair in evaluation.confused_pairs()
        ),
        suspects=tuple(evaluation.files[position] for position in suspects),
    )


def _gather_seen(record: RunRecord) -> Iterator[Thumbnail]:
    for position, seen in enumerate(record.seen):
        path = record.seen_pictures / f"{position}.png"
        if path.exists():
            yield Thumbnail(path.read_bytes(), seen.file, seen.truth)


def gather(
    evaluation: Evaluation, positions: Iterable[int], folder: Path, suspects: Collection[int] = ()
) -> tuple[Picture, ...]:
    """The pictures at these positions, without those whose file was removed."""
    pictures: list[Picture] = []
    for position in positions:
        path, explained = (place / f"{position}.png" for place in (folder, folder.with_name(EXPLAINED)))
        file = evaluation.files[position]
        truth = evaluation.class_names[int(evaluation.labels[position])]
        if path.exists():
            pictures.append(
                Picture(
                    png=path.read_bytes(),
                    file=file,
                    truth=truth,
                    prediction=evaluation.class_names[int(evaluation.top_classes[position, 0])],
                    probability=float(evaluation.top_probabilities[position, 0]),
                    is_suspect=position in suspects,
                    explanation=Thumbnail(explained.read_bytes(), file, truth) if explained.exists() else None,
                )
            )
    return tuple(pictures)
