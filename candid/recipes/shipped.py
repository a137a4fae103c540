"""What ships: a recipe and what is said of it, in groups that share a source."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from candid.recipe import Recipe


@dataclass(frozen=True)
class Shipped:
    """One recipe."""

    make: Callable[[], Recipe]
    summary: str
    """What it is, or what its source says that it gives, in a line without full stop."""
    details: str = ""
    """What else there is to know of it alone, as paragraphs."""


@dataclass(frozen=True)
class Group:
    """Recipes of one source."""

    title: str
    text: str
    """How all of them train, after which source, and where they depart from it, as paragraphs."""
    recipes: Mapping[str, Shipped]
    """By their whole names."""


def written(make: Callable[[], Recipe]) -> Shipped:
    """The recipe of a function, described by its docstring: a first line, and paragraphs below it."""
    summary, _, details = (inspect.getdoc(make) or "").partition("\n")
    return Shipped(make, summary.removesuffix("."), unwrapped(details))


def unwrapped(text: str) -> str:
    """The text with each paragraph on one line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def describe(function: Callable[..., Recipe]) -> str:
    """The paragraphs of the docstring of a function that makes a whole group."""
    return unwrapped(inspect.getdoc(function) or "")
