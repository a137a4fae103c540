"""`candid audit`: which labels of a data set are probably wrong."""

from pathlib import Path
from typing import Annotated

import typer

from candid.plan_command import Assignments, Model, RecipeName
from candid.printing import print_table
from candid.words import count, percent

MOST_ROWS = 20


def audit(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set's name, or a folder of pictures.")],
    recipe: RecipeName = None,
    model: Model = None,
    folds: Annotated[int, typer.Option(help="How many parts; each is judged by a network trained on the others.")] = 4,
    epochs: Annotated[int | None, typer.Option(help="How often to go through the pictures.")] = None,
    assignments: Assignments = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write; default audits/DATA. An audit there goes on.")
    ] = None,
    tune: Annotated[str, typer.Option(help="As in `candid train`.")] = "quick",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else the usual places.")] = None,
) -> None:
    """List the labels that are probably wrong, the most suspect first."""
    changes = {"data.name": data, "model.name": model, "training.epochs": epochs}
    given = {key: value for key, value in changes.items() if value is not None}
    from candid.recipes import choose_recipe

    wanted = choose_recipe(recipe, data).replace(given).override(assignments or [])
    place = out or Path("audits") / Path(data).name
    from candid.audit import audit as find_wrong_labels
    from candid.report.audit_page import write_audit_page
    from candid.training.progress import Reporter
    from candid.training.tuning import as_effort

    suspects = find_wrong_labels(
        wanted, place, folds, data_dir=data_dir, device=device, effort=as_effort(tune), reporter=Reporter()
    )
    page = write_audit_page(suspects, place, wanted)
    if suspects:
        rows = [
            (s.file, f"{s.label} {percent(s.label_probability)}", f"{s.suggestion} {percent(s.suggestion_probability)}")
            for s in suspects[:MOST_ROWS]
        ]
        print_table(("picture", "label", "rather"), rows)
    typer.echo(f"{count(len(suspects), 'label')} to look at. List: {place / 'suspects' / 'suspects.csv'}, page: {page}")
