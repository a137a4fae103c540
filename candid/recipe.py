"""A recipe: all that decides a training run, frozen, refused at birth when it makes no sense.

`Recipe.from_toml` and `Recipe.override` report all problems together, each with the key, the value given and what is
expected, before any work begins.
"""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from candid.errors import InputError, did_you_mean
from candid.recipe_parts import PATTERNS, Augmentation, Data, Limits, Model, Optimizer, Part, Schedule, Training


class RecipeError(InputError):
    """A recipe has a key or a value that cannot be used."""


class Recipe(Part):
    """All that decides a training run: frozen parts of keys, each with its unit beside it in `candid.recipe_parts`.

    `Recipe()` has every key's default. `replace`, `override` (as `--set` does), `from_mapping` and `from_toml` give
    another recipe, and report all problems of one together.

    Raises:
        InputError: from these four, if a key is unknown, or a value or a file cannot be used. `Recipe(...)` itself
            raises pydantic's ValidationError.
    """

    name: str = ""
    """The shipped recipe that this one began as, if any."""
    seed: Annotated[int, Field(ge=0)] = 0
    data: Data = Data()
    augmentation: Augmentation = Augmentation()
    model: Model = Model()
    training: Training = Training()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.schedule.warmup >= self.training.epochs:
            raise ValueError(
                f"schedule.warmup is {self.schedule.warmup}; it must be below training.epochs "
                f"({self.training.epochs}). Train longer or warm up for less."
            )
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Recipe":
        """The recipe with these values, everything else at its default; all problems in one RecipeError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError("\n".join(map(_explain, error.errors()))) from None

    @classmethod
    def from_toml(cls, path: Path) -> "Recipe":
        """The recipe in a TOML file."""
        try:
            return cls.from_mapping(tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"{path} is not a TOML file ({error}). Choose one that `candid recipes NAME` prints as a pattern."
            ) from None
        except OSError as error:
            raise RecipeError(f"{path} cannot be read ({error.strerror}); expected a TOML file.") from None

    def to_toml(self) -> str:
        """The whole recipe as TOML; reading it gives this recipe again."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def replace(self, changes: Mapping[str, Any]) -> "Recipe":
        """This recipe with dotted keys changed, such as {"training.epochs": 20}, checked as a whole."""
        values: dict[str, Any] = self.model_dump()
        for key, value in changes.items():
            _check_key(key)
            part, _, field = key.rpartition(".")
            (values[part] if part else values)[field] = value
        return Recipe.from_mapping(values)

    def override(self, assignments: Sequence[str]) -> "Recipe":
        """This recipe with assignments as `--set` takes them, such as "training.epochs=20"."""
        return self.replace(dict(map(_parse_assignment, assignments)))


def list_differences(ours: Recipe, theirs: Recipe) -> dict[str, tuple[object, object]]:
    """The keys in which two recipes differ, each with both values; names of recipes do not count."""
    flat = [_flatten(recipe.model_dump(exclude={"name"})) for recipe in (ours, theirs)]
    return {key: (flat[0][key], flat[1][key]) for key in flat[0] if flat[0][key] != flat[1][key]}


def _flatten(values: Mapping[str, Any]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def keys_of(assignments: Sequence[str]) -> set[str]:
    """The keys that assignments name, such as "training.epochs" of "training.epochs=20"."""
    return {_parse_assignment(assignment)[0] for assignment in assignments}


def list_keys() -> list[str]:
    """Every key of a recipe, dotted."""
    keys: list[str] = []
    for name, field in Recipe.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, Part):
            keys += [f"{name}.{key}" for key in part.model_fields]
        else:
            keys.append(name)
    return keys


def _check_key(key: str) -> None:
    if key not in list_keys():
        raise RecipeError(_unknown_key(key))


def _unknown_key(key: str) -> str:
    advice = did_you_mean(key, [*list_keys(), *Recipe.model_fields], "`candid recipes default` shows all keys.")
    return f"{key} is not a key of a recipe. {advice}"


def _parse_assignment(assignment: str) -> tuple[str, Any]:
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not text.strip():
        raise RecipeError(f"--set {assignment} has no value; write --set {key or 'part.key'}=VALUE.")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text.strip()  # a bare word, as in --set schedule.name=cosine


def _explain(error: ErrorDetails) -> str:
    """One problem that pydantic found, as a sentence with key, value and expectation."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown_key(key)
    if error["type"] == "value_error":  # from a validator of ours, already a sentence
        return error["msg"].removeprefix("Value error, ")
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    sentence = f"{key} is {error['input']!r}; it must be {_in_plain_words(expected)}."
    if key in PATTERNS:
        return f"{key} is {error['input']!r}; it must be {PATTERNS[key]}."
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        choices = _choices(error)
        return f"{sentence} {did_you_mean(error['input'], choices, '')}".rstrip()
    return sentence


def _choices(error: ErrorDetails) -> Iterable[str]:
    expected: str = error.get("ctx", {}).get("expected", "")
    return expected.replace("'", "").replace(" or ", ", ").split(", ")


def _in_plain_words(expected: str) -> str:
    words = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text in quotes",
        "boolean": "true or false",
        "tuple": "a list of numbers",
        "finite": "a finite number",
        "dictionary": "a table of keys; write part.key = value",
    }
    for technical, plain in words.items():
        if expected.startswith(technical):
            return plain
    return (
        expected.replace("greater than or equal to", "at least")
        .replace("less than or equal to", "at most")
        .replace("greater than", "above")
        .replace("less than", "below")
    )
