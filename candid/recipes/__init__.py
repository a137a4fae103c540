"""The recipes that ship, by name and in groups; each says where it comes from and what it gave."""

from pathlib import Path

from candid.errors import InputError, did_you_mean
from candid.recipe import Recipe
from candid.recipes import notes, papers, speed, starting
from candid.recipes.shipped import Group, Shipped

GROUPS: tuple[Group, ...] = (*starting.GROUPS, *speed.GROUPS, *notes.GROUPS, *papers.GROUPS)

RECIPES: dict[str, Shipped] = {name: shipped for group in GROUPS for name, shipped in group.recipes.items()}


def find_recipe(name: str) -> Recipe:
    """The shipped recipe called `name`; InputError with the nearest names where there is none."""
    return _find(name).recipes[name].make().replace({"name": name})


def choose_recipe(name: str | None, data: str | None) -> Recipe:
    """The recipe in a TOML file or the shipped one of that name; without a name, the default for the data.

    The shipped default suits the pictures that ship; on other data, training starts from every key's own default.
    """
    if name is None:
        return find_recipe("default") if data is None else Recipe()
    return Recipe.from_toml(Path(name)) if Path(name).is_file() else find_recipe(name)


def describe_recipe(name: str) -> list[str]:
    """What is said of a shipped recipe: its summary, and paragraphs about it and about all of its group.

    InputError with the nearest names where there is none.
    """
    group = _find(name)
    shipped = group.recipes[name]
    paragraphs = [f"{group.title}: {shipped.summary}.", *shipped.details.split("\n\n"), *group.text.split("\n\n")]
    return [paragraph for paragraph in paragraphs if paragraph]


def _find(name: str) -> Group:
    """The group that the recipe called `name` is in."""
    if name not in RECIPES:
        longer = [known for known in RECIPES if known.startswith(name)]  # the data was left out
        advice = did_you_mean(name, longer or RECIPES, "`candid recipes` shows all names.")
        raise InputError(f"No recipe is called {name!r}, and no file is. {advice}")
    return next(group for group in GROUPS if name in group.recipes)
