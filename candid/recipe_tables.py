"""What `candid recipes` prints: the list of recipes, or one as TOML with what is said of it."""

from collections.abc import Sequence
from textwrap import fill

from candid.recipes import describe_recipe, find_recipe
from candid.recipes.shipped import Group
from candid.words import aligned


def show_recipes(groups: Sequence[Group]) -> str:
    """All recipes, group by group, a line each."""
    rows = [("recipe", "data", "what it is, or gives")]
    for group in groups:
        rows += [(f"  {name}", shipped.make().data.name, shipped.summary) for name, shipped in group.recipes.items()]
    headings, rule, *lines = aligned(rows)
    shown, upcoming = [headings, rule], iter(lines)
    for group in groups:
        shown += [group.title, *(next(upcoming) for _ in group.recipes)]
    return "\n".join(shown)


def show_recipe(name: str) -> str:
    """A recipe as a TOML file, which says in comments where it comes from."""
    comments = [fill(text, 100, initial_indent="# ", subsequent_indent="# ") for text in describe_recipe(name)]
    return "\n#\n".join(comments) + "\n\n" + find_recipe(name).to_toml().rstrip("\n")
