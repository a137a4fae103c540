"""The number a run comes to, and how it came about, in plain words."""

from dataclasses import dataclass

from candid.report.reading import Look, Result, RunRecord
from candid.words import count, interval, moment, percent


@dataclass(frozen=True)
class Score:
    """An accuracy in [0, 1] and what it was measured on."""

    split: str
    accuracy: float
    interval: tuple[float, float] | None
    images: int | None


@dataclass(frozen=True)
class Headline:
    """What stands at the top of the page."""

    number: str
    """Such as "87.30 %"."""
    meaning: str
    """What the number is."""
    uncertainty: str
    """Its interval; empty where the number of pictures is not known."""
    story: tuple[str, ...]
    """Sentences that say how the number came about and how far it can be trusted."""


def write_headline(record: RunRecord) -> Headline:
    """The headline of a run."""
    score = find_score(record)
    story = [_choice(record), *_test_story(record, score), *_doubts(record, score)]
    if score is None:
        number = "No accuracy yet" if record.result is None else "No accuracy"
        return Headline(number, "Nothing was measured on pictures that were held out.", "", tuple(story))
    meaning = f"accuracy on the {score.split} split"
    if score.images is not None:
        meaning += f", {count(score.images, 'picture')}"
    uncertainty = f"95 % Wilson interval {interval(score.interval)}" if score.interval else ""
    return Headline(percent(score.accuracy), meaning, uncertainty, tuple(story))


def find_score(record: RunRecord) -> Score | None:
    """The run's accuracy: on test if that was measured, else on validation.

    The evaluation goes before result.json, because the rest of the page shows the evaluation.
    """
    result = record.result or Result()
    scores: list[Score] = []
    if record.evaluation:
        e = record.evaluation
        scores.append(Score(e.split, e.accuracy, e.accuracy_interval, e.num_images))
    if result.test_accuracy is not None:
        scores.append(Score("test", result.test_accuracy, result.test_accuracy_interval, result.test_images))
    if result.validation_accuracy is not None:
        scores.append(Score("validation", result.validation_accuracy, None, None))
    return next((score for score in scores if score.split == "test"), scores[0] if scores else None)


def _choice(record: RunRecord) -> str:
    """Which checkpoint is the result and why."""
    result = record.result
    if record.was_imported:
        return (
            "The weights were imported, not trained here: what they were chosen by, and how often their makers looked "
            "at the test split, is not known."
        )
    if result is None:
        return _unfinished(record)
    if result.validation_accuracy is None:
        return "No validation split was held out, so nothing was chosen: the last checkpoint is the result."
    epoch = "the best epoch" if result.best_epoch is None else f"epoch {result.best_epoch}"
    return f"Validation chose the checkpoint of {epoch} ({percent(result.validation_accuracy)} there)."


def _unfinished(record: RunRecord) -> str:
    sentence = "This run is not finished: it has no result.json."
    if record.epochs:
        of_all = f" of {record.recipe.training.epochs}" if record.recipe.training.epochs else ""
        sentence += f" Its last complete epoch is {record.epochs[-1].epoch}{of_all}."
    measured = [(e.validation_accuracy, -e.epoch) for e in record.epochs if e.validation_accuracy is not None]
    if measured:
        best, epoch = max(measured)
        sentence += f" The highest accuracy on validation so far is {percent(best)}, in epoch {-epoch}."
    return sentence


def _test_story(record: RunRecord, score: Score | None) -> list[str]:
    """How often the test split was looked at, and what stands in for it where it was not."""
    if record.looks:
        story = [_looks(record.looks)]
    elif score and score.split == "test":
        story = ["No look at the test split is recorded, so how often it was looked at is not known."]
    elif record.result is None:
        story = ["The test split has not been looked at."]
    else:
        story = ["There is no number on a test split: the data set has none, or it has not been looked at."]
    if score and score.split == "validation" and not record.was_imported:
        story.append("The number is the accuracy on validation, which chose the checkpoint, so it is optimistic.")
    return story


def _looks(looks: tuple[Look, ...]) -> str:
    if len(looks) == 1:
        return f"The test split was looked at once, {moment(looks[0].time)}."
    return (
        f"The test split was looked at {len(looks)} times, first {moment(looks[0].time)}, last "
        f"{moment(looks[-1].time)}: the test number is no longer a single look, and whoever chose by it "
        "made it optimistic."
    )


def _doubts(record: RunRecord, score: Score | None) -> list[str]:
    """What else a reader should know before quoting the number."""
    doubts: list[str] = []
    recorded = record.result.test_accuracy if record.result else None
    if score and score.split == "test" and recorded is not None and abs(recorded - score.accuracy) > 1e-6:
        doubts.append(
            f"When training ended, result.json recorded {percent(recorded)}; the predictions shown here are "
            "of another evaluation."
        )
    if score and score.interval and score.images:
        doubts.append(
            f"The interval covers the chance in drawing {count(score.images, 'picture')}; "
            "training again with another seed varies the number too."
        )
    return doubts
