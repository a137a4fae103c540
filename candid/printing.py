"""What commands print on standard output: text, JSON and tables, as wide as the terminal."""

import json
import shutil
import sys
from collections.abc import Sequence

import typer


def show(answer: object) -> None:
    """Print text as it is, anything else as JSON."""
    typer.echo(answer if isinstance(answer, str) else json.dumps(answer, indent=2))


def terminal_width() -> int | None:
    """In columns; None where nobody looks: a pipe or a file has no edge at which to shorten."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, a line each where there is room."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*headings, box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 200  # a pipe has no edge at which to wrap
    console.print(table)
