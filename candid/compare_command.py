"""`candid compare`: several runs side by side, or whether two are equal to the last bit."""

from pathlib import Path
from typing import Annotated

import typer

from candid.errors import InputError
from candid.printing import print_table


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Two run folders or more.")],
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("comparison.html"),
    exact: Annotated[
        bool, typer.Option("--exact", help="Only say whether two runs are equal to the last bit; else exit code 1.")
    ] = False,
) -> None:
    """Put runs side by side: a table, a page with curves, and where two of them differ on the same pictures."""
    if exact:
        compare_exactly(runs)
        return
    from candid.workflow import compare as compare_runs

    found = compare_runs(runs, out)
    headings, *rows = found.rows()
    print_table(headings, rows)
    for sentence in found.sentences():
        typer.echo(sentence)
    typer.echo(f"Page: {out}")


def compare_exactly(runs: list[Path]) -> None:
    """Say whether two runs are equal to the last bit."""
    if len(runs) != 2:
        raise InputError(f"--exact compares two runs, and {len(runs)} were given. Name two run folders.")
    from candid.workflow import compare_exactly as compare_two

    first, second = runs
    found = compare_two(first, second)
    for key, (one, other) in found.recipe_differences.items():
        typer.echo(f"{key}: {one!r} in {first}, {other!r} in {second}")
    num_equal, num_different = len(found.equal_checkpoints), len(found.different_checkpoints)
    typer.echo(f"Checkpoints that both kept, equal in every bit: {num_equal} of {num_equal + num_different}.")
    if found.are_equal:
        typer.echo("The runs are equal.")
        return
    where = [f"results.csv from epoch {found.first_different_epoch} on"] if found.first_different_epoch else []
    where += [f"checkpoints from {found.different_checkpoints[0]} on"] if found.different_checkpoints else []
    typer.echo(f"The runs differ: {', '.join(where)}.")
    raise typer.Exit(1)
