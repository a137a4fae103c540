"""`candid plan`: what training a recipe needs, and how it fits a budget of memory, before any of it is done."""

from pathlib import Path
from typing import Annotated

import typer

from candid.errors import InputError
from candid.printing import show

RecipeName = Annotated[str | None, typer.Argument(help="A shipped recipe (`candid recipes`) or a TOML file.")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="The same, as an option.")]
Data = Annotated[str | None, typer.Option(help="A data set (`candid datasets`) or a folder.")]
Model = Annotated[str | None, typer.Option(help="A network (`candid models`).")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="PART.KEY=VALUE", help="Change any key of the recipe.")
]
Memory = Annotated[str | None, typer.Option(help="Most memory to hold, such as 2GiB; the settings are chosen to fit.")]
Allow = Annotated[str | None, typer.Option(metavar="bf16", help="What a plan may change beside: bf16, the precision.")]


def allows_bf16(allow: str | None) -> bool:
    """Whether --allow names bf16, the only thing that it may name."""
    if allow not in (None, "bf16"):
        raise InputError(
            f"--allow is {allow!r}; it must be bf16. Everything else keeps the mathematics and needs no leave."
        )
    return allow is not None


def plan(
    recipe: RecipeName = None,
    recipe_option: RecipeOption = None,
    data: Data = None,
    model: Model = None,
    assignments: Assignments = None,
    memory: Memory = None,
    allow: Allow = None,
    what_if: Annotated[bool, typer.Option("--what-if", help="Draw memory and time against the batch.")] = False,
    figure: Annotated[Path | None, typer.Option(help="Where --what-if draws; default MODEL-memory.png.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie, as in `candid train`.")] = None,
) -> None:
    """Predict the memory that training needs, and choose the settings that fit a budget."""
    if figure is not None and not what_if:
        raise InputError("--figure goes with --what-if; write candid plan --what-if --figure FILE.")
    bf16 = allows_bf16(allow)
    from candid.recipes import choose_recipe

    given = {"data.name": data, "model.name": model, "limits.memory": memory}
    changes = {key: value for key, value in given.items() if value is not None}
    wanted = choose_recipe(recipe or recipe_option, data).replace(changes).override(assignments or [])

    from candid import workflow

    if what_if:
        place, text = workflow.plan_what_if(wanted, figure, data_dir=data_dir, device=device)
        show(f"{text}\n\nFigure: {place}")
    else:
        show(workflow.plan(wanted, allow_bf16=bf16, data_dir=data_dir, device=device).text())
