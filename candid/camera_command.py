"""`candid predict` of a camera: a line on the terminal that follows what it sees, or lines of JSON."""

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from candid.errors import InputError
from candid.words import count, percent

if TYPE_CHECKING:
    from candid.predict import Prediction, Predictor

SHOWN_CLASSES = 3
TO_LINE_START, ERASE_LINE = "\r", "\x1b[K"


def predict_camera(predictor: "Predictor", sources: Sequence[str], top: int, as_json: bool) -> None:
    """Say what the camera sees until Ctrl-C, or until it is gone; then how many pictures that were."""
    from candid.camera import watch

    if len(sources) > 1:
        raise InputError(f"{len(sources)} sources were given; a camera is watched alone. Leave the others out.")
    began_at_s, number, answer = time.perf_counter(), 0, ""
    follows = sys.stdout.isatty() and not as_json
    try:
        for prediction in watch(predictor, sources[0], top):
            number += 1
            if as_json:
                typer.echo(json.dumps(prediction.as_dict(), ensure_ascii=False))
            elif follows:
                typer.echo(f"{TO_LINE_START}{ERASE_LINE}{_describe(prediction)}", nl=False)
            elif prediction.answer != answer:
                typer.echo(_describe(prediction))
            answer = prediction.answer
    except KeyboardInterrupt:
        pass
    if follows:
        typer.echo()
    seconds = time.perf_counter() - began_at_s
    typer.echo(f"{count(number, 'picture')} in {seconds:,.1f} s.", err=True)


def _describe(prediction: "Prediction") -> str:
    """The answer and the best classes, such as "circle: circle 98.20 %, cross 1.10 %"."""
    pairs = list(zip(prediction.classes, prediction.probabilities, strict=True))[:SHOWN_CLASSES]
    return f"{prediction.answer}: {', '.join(f'{name} {percent(probability)}' for name, probability in pairs)}"
