"""The page: the words, tables, pictures and figures of a run put into `page.html.jinja`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from candid import words
from candid.calibration import Calibration
from candid.evaluation import Evaluation
from candid.report.drawing import Drawing, draw_twice
from candid.report.figures import (
    MOST_BARS,
    PANELS,
    classes_to_draw,
    draw_confusion,
    draw_curves,
    draw_per_class,
    draw_reliability,
    worst_first,
)
from candid.report.headline import find_score, write_headline
from candid.report.pictures import Pictures
from candid.report.reading import DataSummary, Result, RunRecord, command_text
from candid.report.templates import render

LONGEST_OPEN_TABLE = 40


def render_page(record: RunRecord, pictures: Pictures) -> str:
    """The HTML of the report."""
    environment = {key: value for key, value in record.environment.items() if key != "command"}
    return render(
        "page.html.jinja",
        title=" on ".join(filter(None, (record.recipe.model.name, record.data_set))) or record.name,
        run=record,
        headline=write_headline(record),
        facts=list(state_facts(record)),
        curves=draw_panels(record),
        evaluation=describe_evaluation(record.evaluation) if record.evaluation else None,
        calibration=describe_calibration(record.evaluation, record.calibration) if record.evaluation else None,
        pictures=pictures,
        data=describe_data(record.data) if record.data else None,
        environment=list(flatten(environment)),
        command=command_text(record.environment.get("command")),
    )


def state_facts(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Name and text of each fact beside the headline, where it is known."""
    result = record.result or Result()
    score = find_score(record)
    facts = {
        "Network": record.recipe.model.name,
        "Data set": record.data_set,
        "Split": score.split if score else "",
        "Checkpoint": _checkpoint(record),
        "Last checkpoint": _told(result.last_test_accuracy, lambda share: f"{words.percent(share)} on the test split"),
        "Validation": _told(result.validation_accuracy, words.percent),
        "Balanced": _told(record.evaluation and record.evaluation.balanced_accuracy, words.percent),
        "Top five": _told(record.evaluation and record.evaluation.top5_accuracy, words.percent),
        "Loss": _told(record.evaluation and record.evaluation.loss, lambda nats: f"{nats:.4f} nats"),
        "Training": _told(result.train_seconds, words.duration),
        "Speed": _told(result.images_per_second, lambda speed: f"{speed:,.0f} pictures/s"),
        "Peak memory": _told(result.peak_memory_mib, lambda mib: f"{mib:,.0f} MiB"),
    }
    return ((name, text) for name, text in facts.items() if text)


def _told(value: float | None, tell: Callable[[float], str]) -> str:
    return "" if value is None else tell(value)


def _checkpoint(record: RunRecord) -> str:
    result = record.result
    if result is None:
        return ""
    chosen = "last" if result.validation_accuracy is None else "best on validation"
    epoch = None if result.best_epoch is None else f"epoch {result.best_epoch}"
    step = None if result.best_step is None else f"step {result.best_step:,}"
    return ", ".join(filter(None, (chosen, epoch, step)))


def draw_panels(record: RunRecord) -> list[Drawing]:
    """The curves, one drawing for each panel so that they stack on a narrow page."""
    if not record.epochs:
        return []
    epochs, best = record.epochs, record.best_epoch
    span = f"over epochs {epochs[0].epoch} to {epochs[-1].epoch}"
    chosen = "" if best is None else f"; epoch {best} was chosen"
    return [
        draw_twice(
            partial(draw_curves, epochs=epochs, best_epoch=best, panels=[panel]),
            f"Curve of the {panel} {span}{chosen}.",
        )
        for panel in PANELS
    ]


def describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """What the template shows of an evaluation."""
    scores = worst_first(evaluation.per_class())
    present = [score for score in scores if score.images]
    names, confusion = evaluation.class_names, evaluation.confusion
    drawn = classes_to_draw(confusion)
    return {
        "split": evaluation.split,
        "images": evaluation.num_images,
        "num_classes": len(names),
        "scores": scores,
        "table_is_long": len(scores) > LONGEST_OPEN_TABLE,
        "bars_drawn": min(len(present), MOST_BARS),
        "bars": draw_twice(
            partial(draw_per_class, scores=scores),
            f"Bars of the recall per class, worst first: {words.shorten(present[0].class_name, 40)} has "
            f"{words.percent(present[0].recall)}, {words.shorten(present[-1].class_name, 40)} "
            f"{words.percent(present[-1].recall)}.",
        ),
        "matrix_classes": len(drawn),
        "matrix": draw_twice(
            partial(draw_confusion, confusion=confusion, class_names=names),
            f"Confusion matrix of {len(drawn)} classes, truth by row and prediction by column.",
        ),
    }


def describe_data(data: DataSummary) -> dict[str, Any]:
    """What the template shows of the pictures that were trained and validated on."""
    train = data.images.get("train", ())
    rows = sorted(zip(data.classes, *data.images.values(), strict=True), key=lambda row: row[1])
    return {
        "images": sum(train),
        "num_classes": len(data.classes),
        "fewest": min(train, default=0),
        "most": max(train, default=0),
        "remarks": list(remark_on(data)),
        "splits": list(data.images),
        "rows": rows,
    }


def remark_on(data: DataSummary) -> Iterator[str]:
    """Sentences about sizes and copies of pictures, where they are known."""
    if data.sizes:
        wide, high = map(_describe_span, (data.sizes.widths_px, data.sizes.heights_px))
        yield f"They are {wide} px wide and {high} px high."
    if data.copies is None:
        return
    copies, leaks = data.copies["train"], data.copies.get("validation", 0)
    if copies:
        yield f"{words.count(copies, 'picture')} to train on {'is a copy' if copies == 1 else 'are copies'} of others."
    if leaks:
        yield f"{words.count(leaks, 'picture')} to validate on can be trained on too, which flatters validation."
    if not copies and not leaks:
        yield "No two of the pictures to train and to validate on are equal."


def _describe_span(lengths: tuple[int, int, int]) -> str:
    least, median, most = lengths
    return f"{least}" if least == most else f"{least} to {most} (median {median})"


def describe_calibration(evaluation: Evaluation, calibration: Calibration | None) -> dict[str, Any]:
    """What the template shows of how far probabilities can be trusted."""
    bins, points = evaluation.reliability(), f"{100 * evaluation.calibration_error:.1f} points"
    return {
        "error": points,
        "text": calibration.text() if calibration else "",
        "thresholds": [t for t in calibration.thresholds if t.coverage < 1] if calibration else [],
        "diagram": draw_twice(
            partial(draw_reliability, bins=bins),
            f"Accuracy over confidence in {len(bins)} bins; on average they lie {points} apart.",
        ),
    }


def flatten(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Rows of a table from nested JSON: dotted names, lists of plain values on one line."""
    if isinstance(value, dict):
        for key, part in cast("dict[str, object]", value).items():
            yield from flatten(part, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        parts = cast("list[object]", value)
        if any(isinstance(part, dict | list) for part in parts):
            for position, part in enumerate(parts):
                yield from flatten(part, f"{name}.{position}")
        else:
            yield name, ", ".join(map(_plain, parts))
    else:
        yield name, _plain(value)


def _plain(value: object) -> str:
    named = {None: "–", True: "yes", False: "no"}
    return named[value] if value is None or isinstance(value, bool) else str(value)
