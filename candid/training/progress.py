"""What a person sees of a run while it trains, and its table results.csv; nothing else prints."""

import csv
import io
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

COLUMNS: tuple[str, ...] = (
    "epoch",
    "step",
    "images",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "seconds",
    "images_per_second",
    "peak_memory_mib",
)


class Reporter:
    """Says how a run goes: a moving bar on a terminal, one line an epoch everywhere."""

    def __init__(self, console: Console | None = None) -> None:
        """Print to `console`; by default to standard error, so that standard output stays for results."""
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._epochs, self._images_seen, self._started_at_s = 0, 0, time.perf_counter()

    @classmethod
    def silent(cls) -> "Reporter":
        """One that nobody hears."""
        return cls(Console(file=io.StringIO(), force_jupyter=False))  # else a notebook shows it, whatever the file

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False)

    @contextmanager
    def watch(self, epochs: int, epochs_done: float, images_per_epoch: int) -> Generator[None]:
        """Show a bar over the images of all epochs while the block runs, if this is a terminal."""
        self._epochs, self._images_seen, self._started_at_s = epochs, 0, time.perf_counter()
        if not self._console.is_terminal:
            yield
            return
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("images, {task.fields[rate]:,.0f}/s,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            transient=True,
        ) as self._bar:
            total, done = epochs * images_per_epoch, epochs_done * images_per_epoch
            self._task = self._bar.add_task("Training", total=total, completed=int(done), rate=0.0)
            yield
        self._bar = None

    def advance(self, images: int) -> None:
        """Note that a step has learnt from so many images."""
        self._images_seen += images
        if self._bar is not None:
            rate = self._images_seen / (time.perf_counter() - self._started_at_s)
            self._bar.update(self._task, advance=images, rate=rate)

    def epoch_line(self, row: Mapping[str, float | int | None]) -> None:
        """Print the line of one finished epoch."""
        validation = ""
        if row["validation_accuracy"] is not None:
            validation = f"  validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.4f}"
        self.say(
            f"epoch {row['epoch']:>3}/{self._epochs}"
            f"  rate {row['learning_rate']:.5f}"
            f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f}{validation}"
            f"  {row['images_per_second']:,.0f} images/s  {row['seconds']:.1f} s"
            f"  {row['peak_memory_mib']:,.0f} MiB"
        )


def table_text(history: Sequence[Mapping[str, object]]) -> str:
    """results.csv: a row an epoch; an empty cell where there was nothing to measure."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return buffer.getvalue()


def command_line() -> str:
    """The command that this process runs, for the record."""
    program = "candid" if sys.argv[0].endswith(("candid", "candid/__main__.py")) else sys.argv[0]
    return " ".join([program, *sys.argv[1:]])
