"""What candid says when it cannot go on: what was given, what was expected, what to do."""

import difflib
from collections.abc import Iterable


class CandidError(Exception):
    """An error whose text is meant for the user; the command line prints it without a traceback."""

    exit_code = 1


class InputError(CandidError):
    """What the user typed or wrote into a recipe cannot be used."""

    exit_code = 2


class DataError(CandidError):
    """The pictures or the data set cannot be used."""

    exit_code = 3


class CheckpointError(CandidError):
    """A checkpoint is damaged, foreign or missing."""

    exit_code = 4


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A sentence with the names of `known` nearest to `name`, or `otherwise` when none is near."""
    names = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(name.lower(), names, n=3)
    likeness = [difflib.SequenceMatcher(None, name.lower(), candidate).ratio() for candidate in near]
    best = [names[near[k]] for k in range(len(near)) if likeness[k] > likeness[0] - 0.1]
    if not best and len(name) >= 3:  # a beginning, such as "val" of "validation"
        best = [names[candidate] for candidate in names if candidate.startswith(name.lower())][:3]
    return f"Did you mean {' or '.join(best)}?" if best else otherwise
