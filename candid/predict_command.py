"""`candid predict`: what a network says of pictures, as a table, lines of JSON or CSV, picture by picture."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from candid.camera_command import predict_camera
from candid.errors import InputError
from candid.printing import print_table
from candid.video_command import EVERY, as_videos, predict_videos
from candid.words import count, milliseconds

if TYPE_CHECKING:
    from PIL.Image import Image

    from candid.annotating import NewFolder
    from candid.predict import Prediction, Predictor

SOURCES = (
    "Pictures, folders of them (searched recursively), zip files, patterns such as 'pictures/**/*.jpg', "
    "http and https addresses, - for standard input; or video files; or a camera, camera:0."
)


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder, such as runs/lenet-relu-fashion-mnist-mini.")],
    sources: Annotated[list[str], typer.Argument(help=SOURCES)],
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each picture.")] = False,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a table to this file.")] = None,
    annotated: Annotated[
        Path | None, typer.Option("--save-annotated", help="Save copies with the answer below them in this new folder.")
    ] = None,
    explained: Annotated[
        Path | None, typer.Option("--explain", help="Save in this new folder which places speak for the answer.")
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help=f"Of a video, look at every n-th frame; default {EVERY}.")
    ] = None,
    fit: Annotated[
        str | None, typer.Option(help="Make pictures square by crop, pad or squash, not as learned.")
    ] = None,
    precision: Annotated[
        float | None, typer.Option(help="Answer unknown, so that so many of the other answers are right, such as 0.95.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
) -> None:
    """Name your pictures with a trained network; exit code 3 when a file is no picture."""
    from candid.annotating import NewFolder
    from candid.camera import is_camera
    from candid.predict import load
    from candid.video import is_video

    predictor = load(run, device=device, fit=fit, precision=precision)
    _say_what_was_measured(predictor)
    problems: list[str] = []
    if any(map(is_camera, sources)):
        if any(option is not None for option in (csv_file, annotated, explained, every)):
            raise InputError("A camera is watched with --top, --json, --fit and --precision; leave other options out.")
        predict_camera(predictor, sources, top, as_json)
    elif any(is_video(source) for source in sources):
        if explained is not None:
            raise InputError("--explain is for pictures; leave it out with videos.")
        videos = as_videos(sources)
        folder = None if annotated is None else NewFolder(annotated)
        problems = predict_videos(predictor, videos, every or EVERY, top, as_json, csv_file, folder)
    else:
        if every is not None:
            raise InputError("--every is for videos; leave it out with pictures.")
        problems = _predict_pictures(predictor, sources, top, as_json, csv_file, annotated, explained)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(3)


def _predict_pictures(
    predictor: "Predictor",
    sources: Sequence[str],
    top: int,
    as_json: bool,
    csv_file: Path | None,
    annotated: Path | None,
    explained: Path | None,
) -> list[str]:
    """Print or write what the pictures show, and save copies in the folders that are named; what is wrong with them."""
    from candid.annotating import NewFolder, annotate, explain
    from candid.data.sources import find_pictures
    from candid.durable import write_file
    from candid.predict import csv_lines

    pictures = find_pictures(sources)
    num_ranks = min(top, len(predictor.checkpoint.class_names))
    problems: list[str] = []
    drawings = ((annotated, annotate), (explained, partial(explain, predictor)))
    copies = [(NewFolder(place), draw) for place, draw in drawings if place is not None]
    predictions = predictor.stream(pictures, top, keep=bool(copies))
    predictions = _note_problems(_show_progress(predictions, len(pictures), as_json), problems)
    for folder, draw in copies:
        predictions = _save_copies(predictions, folder, draw)
    if as_json:
        predictions = _print_json(predictions)
    if csv_file is not None:
        write_file(csv_file, (line.encode() for line in csv_lines(predictions, num_ranks)))
    elif as_json:
        for _ in predictions:
            pass
    else:
        _print_predictions(predictions)
    return problems


def _show_progress(predictions: Iterable["Prediction"], number: int, as_json: bool) -> Iterable["Prediction"]:
    """The same, with a bar for whoever watches a terminal on which nothing else is printed meanwhile."""
    if number == 1 or not sys.stderr.isatty() or (as_json and sys.stdout.isatty()):
        return predictions
    from rich.console import Console
    from rich.progress import track

    return track(predictions, "Predicting", total=number, console=Console(stderr=True), transient=True)


def _note_problems(predictions: Iterable["Prediction"], problems: list[str]) -> Iterator["Prediction"]:
    """The same, with what went wrong added to `problems`."""
    for prediction in predictions:
        if prediction.problem:
            problems.append(prediction.problem)
        yield prediction


def _say_what_was_measured(predictor: "Predictor") -> None:
    """Where pictures are made square in another way than in training, the run's accuracy is not theirs."""
    ours, learned = predictor.preprocessing.fit, predictor.checkpoint.preprocessing.fit
    if ours != learned:
        typer.echo(f"With --fit {ours}, the run's accuracy does not count: it was measured with {learned}.", err=True)


def _save_copies(
    predictions: Iterable["Prediction"], folder: "NewFolder", draw: Callable[["Prediction"], "Image"]
) -> Iterator["Prediction"]:
    """The same, with what is drawn of each picture saved in the folder."""
    for prediction in predictions:
        if not prediction.problem:
            folder.save(draw(prediction), prediction.file)
        yield prediction


def _print_json(predictions: Iterable["Prediction"]) -> Iterator["Prediction"]:
    """The same, with each one printed as a line of JSON as soon as it is there."""
    for prediction in predictions:
        typer.echo(json.dumps(prediction.as_dict(), ensure_ascii=False))
        yield prediction


def _print_predictions(predictions: Iterable["Prediction"]) -> None:
    """A table, and how long it took."""
    from candid.predict import Predictions

    begun_at_s = time.perf_counter()
    named = Predictions(prediction for prediction in predictions if not prediction.problem)
    if not named:
        return
    elapsed_s = time.perf_counter() - begun_at_s
    headings, *rows = named.rows()
    print_table(headings, rows)
    decode_ms, network_ms = fmean(p.decode_ms for p in named), fmean(p.network_ms for p in named)
    typer.echo(
        f"{count(len(named), 'picture')} in {elapsed_s:,.1f} s: {milliseconds(decode_ms)} each to read and decode, "
        f"{milliseconds(network_ms)} in the network"
    )
