"""Several runs side by side: their numbers, the spread over seeds, and which pictures tell two of them apart."""

import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev

import torch

from candid.checkpoint import build_network
from candid.errors import CandidError, InputError
from candid.evaluation import Evaluation
from candid.notebook import figure, paragraphs, table
from candid.recipe import Recipe
from candid.report.headline import Score, find_score
from candid.report.pictures import Picture, gather
from candid.report.reading import RunRecord, read_run
from candid.scores import Pairing, pair
from candid.words import count, duration, interval, p_value, percent

INDIFFERENT = (
    ("training", "memory_format"),
    ("training", "memory"),
    ("training", "threads"),
    ("training", "compile"),
    ("data", "workers"),
)
"""Keys of a recipe that are measured anew on a busy machine, and change no more than the last digits."""
MOST_SHOWN = 8
"""Pictures of those that only one of two runs was right about."""


@dataclass(frozen=True)
class Contender:
    """A run among others."""

    label: str
    record: RunRecord
    score: Score | None
    parameters: int | None
    """Trained values; None where the recipe cannot be read any more, or nothing was evaluated."""

    @property
    def train_seconds(self) -> float | None:
        """How long it trained."""
        return self.record.result.train_seconds if self.record.result else None

    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        score = self.score
        return (
            self.label,
            self.record.recipe.model.name,
            score.split if score else "–",
            percent(score.accuracy if score else None),
            interval(score.interval) if score and score.interval else "–",
            f"{self.parameters:,}" if self.parameters else "–",
            duration(self.train_seconds) if self.train_seconds else "–",
        )


@dataclass(frozen=True)
class Spread:
    """Runs on the same split whose recipes differ in the seed alone."""

    labels: tuple[str, ...]
    split: str
    mean: float
    deviation: float
    """The standard deviation of single runs, from n - 1."""


@dataclass(frozen=True)
class Duel:
    """Two runs on the same pictures."""

    first: str
    second: str
    pairing: Pairing
    only_first: tuple[str, ...]
    """Pictures that only the first was right about, those first that the second is surest of."""
    only_second: tuple[str, ...]
    shown_first: tuple[Picture, ...] = ()
    """Those that only the first was right about and whose pictures are kept, with the second one's answers."""
    shown_second: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class SideBySide:
    """What several runs come to."""

    contenders: tuple[Contender, ...]
    spreads: tuple[Spread, ...]
    duels: tuple[Duel, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """The runs as cells of a table, the headings first."""
        headings = ("run", "network", "split", "accuracy", "95 % interval", "parameters", "training")
        return [headings, *(contender.cells() for contender in self.contenders)]

    def sentences(self) -> list[str]:
        """The spread over seeds and each two runs on the same pictures, a sentence each."""
        spreads = [
            f"{count(len(spread.labels), 'run')} that differ in the seed alone ({', '.join(spread.labels)}): "
            f"{percent(spread.mean)} on the {spread.split} split, standard deviation {100 * spread.deviation:.2f} "
            "points."
            for spread in self.spreads
        ]
        return spreads + [
            f"{duel.first} and {duel.second}: of {count(duel.pairing.images, 'picture')}, "
            f"{duel.pairing.only_first:,} only the first got right, {duel.pairing.only_second:,} only the second; "
            f"McNemar's test gives {p_value(duel.pairing.p_value)}."
            for duel in self.duels
        ]

    def _repr_html_(self) -> str:
        """What a notebook shows: the table, the sentences, and the figures of the page."""
        from candid.report.comparison_page import draw_figures  # which imports this module

        figures = (figure(drawing.light, drawing.alt) for drawing in draw_figures(self.contenders))
        return table(self.rows(), numbers=(3, 4, 5, 6)) + paragraphs(self.sentences()) + "".join(figures)


def read_side_by_side(runs: Sequence[Path]) -> SideBySide:
    """What lies in run folders.

    Raises:
        CandidError: if one of them is none, or there are fewer than two.
    """
    if len({run.resolve() for run in runs}) < 2:
        raise InputError("There is one run to compare; expected two or more run folders. Name another one.")
    names = [run.resolve().name for run in runs]
    labels = names if len(set(names)) == len(names) else list(map(str, runs))
    contenders = [_enter(label, run) for label, run in zip(labels, runs, strict=True)]
    return SideBySide(tuple(contenders), tuple(find_spreads(contenders)), tuple(find_duels(contenders)))


def find_spreads(contenders: Sequence[Contender]) -> list[Spread]:
    """Mean and deviation of each group of runs that only the seed tells apart, and at most how they were computed."""
    groups: dict[tuple[str, str], list[Contender]] = {}
    for contender in contenders:
        if contender.score is not None and contender.record.recipe_text:
            groups.setdefault((_mathematics(contender.record.recipe_text), contender.score.split), []).append(contender)
    spreads: list[Spread] = []
    for (_, split), group in groups.items():
        accuracies = [contender.score.accuracy for contender in group if contender.score]
        if len(group) > 1:
            labels = tuple(contender.label for contender in group)
            spreads.append(Spread(labels, split, mean(accuracies), stdev(accuracies)))
    return spreads


def find_duels(contenders: Sequence[Contender]) -> list[Duel]:
    """Each two runs that were evaluated on the same pictures with the same classes."""
    duels: list[Duel] = []
    for one, other in combinations(contenders, 2):
        first, second = one.record.evaluation, other.record.evaluation
        if first is None or second is None or not _are_comparable(first, second):
            continue
        only_first = second.by_confidence(first.correct & ~second.correct)
        only_second = first.by_confidence(second.correct & ~first.correct)
        duels.append(
            Duel(
                first=one.label,
                second=other.label,
                pairing=pair(first.correct, second.correct),
                only_first=tuple(first.files[position] for position in only_first),
                only_second=tuple(first.files[position] for position in only_second),
                shown_first=gather(second, only_first, other.record.pictures)[:MOST_SHOWN],
                shown_second=gather(first, only_second, one.record.pictures)[:MOST_SHOWN],
            )
        )
    return duels


def _mathematics(recipe_text: str) -> str:
    """A recipe without its seed and without what only says how fast and in how much room it is trained."""
    recipe = tomllib.loads(recipe_text)
    for part, key in INDIFFERENT:
        recipe.get(part, {}).pop(key, None)
    return repr({key: value for key, value in recipe.items() if key not in ("seed", "limits")})


def _enter(label: str, run: Path) -> Contender:
    record = read_run(run)
    parameters = None
    with suppress(CandidError, OSError):  # an older candid's recipe
        recipe = Recipe.from_toml(run / "recipe.toml")
        if record.evaluation is not None and recipe.model.name:
            with torch.device("meta"):
                network = build_network(recipe, len(record.evaluation.class_names))
            parameters = sum(parameter.numel() for parameter in network.parameters())
    return Contender(label, record, find_score(record), parameters)


def _are_comparable(first: Evaluation, second: Evaluation) -> bool:
    return (
        first.files == second.files
        and first.class_names == second.class_names
        and torch.equal(first.labels, second.labels)
    )
