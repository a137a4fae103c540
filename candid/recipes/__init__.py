"""The recipes that ship: name to function. Their docstrings say where they come from and what they gave."""

import inspect
from collections.abc import Callable
from pathlib import Path

from candid.errors import InputError, did_you_mean
from candid.recipe import Recipe
from candid.recipes import notes, papers, speed, starting

RECIPES: dict[str, Callable[[], Recipe]] = {
    "default": starting.default,
    "photos": starting.photos,
    "notes/lenet": notes.lenet,
    "notes/lenet-bn": notes.lenet_bn,
    "notes/resnet18": notes.resnet18,
    "notes/densenet": notes.densenet,
    "papers/resnet20": papers.resnet20,
    "papers/densenet-40-12": papers.densenet_40_12,
    "papers/densenet-bc-100-12": papers.densenet_bc_100_12,
    "speed/airbench90": speed.airbench90,
    "speed/airbench94": speed.airbench94,
    "speed/densenet90": speed.densenet90,
}


def find_recipe(name: str) -> Recipe:
    """The shipped recipe called `name`; InputError with the nearest names where there is none."""
    if name not in RECIPES:
        advice = did_you_mean(name, RECIPES, "`candid recipes` shows all names.")
        raise InputError(f"No recipe is called {name!r}, and no file is. {advice}")
    return RECIPES[name]().replace({"name": name})


def choose_recipe(name: str | None, data: str | None) -> Recipe:
    """The recipe in a TOML file or the shipped one of that name; without a name, the default for the data.

    The shipped default suits the pictures that ship; on other data, training starts from every key's own default.
    """
    if name is None:
        return find_recipe("default") if data is None else Recipe()
    return Recipe.from_toml(Path(name)) if Path(name).is_file() else find_recipe(name)


def describe_recipe(name: str) -> str:
    """The first sentence of a shipped recipe's docstring."""
    return (inspect.getdoc(RECIPES[name]) or "").partition("\n")[0]
