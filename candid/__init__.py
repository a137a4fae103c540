"""candid trains, tests and uses image classifiers built from the classic convolutional networks.

The way of the data: a `Recipe` names a data set, which `candid.data` turns into batches; `build_model` makes
the network; `train` fits it, keeps checkpoints in a run folder, and looks at the test split once; `evaluate`
gives an `Evaluation` of any split; `report` writes the page; `load(run).predict(files)` names your pictures.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from candid.errors import CandidError, CheckpointError, DataError, InputError

if TYPE_CHECKING:
    from candid.evaluation import Evaluation
    from candid.models import build_model, list_models
    from candid.predict import load
    from candid.recipe import Recipe
    from candid.workflow import evaluate, report, train

__all__ = [
    "CandidError",
    "CheckpointError",
    "DataError",
    "Evaluation",
    "InputError",
    "Recipe",
    "build_model",
    "evaluate",
    "list_models",
    "load",
    "report",
    "train",
]

_HOMES = {
    "Evaluation": "candid.evaluation",
    "Recipe": "candid.recipe",
    "build_model": "candid.models",
    "evaluate": "candid.workflow",
    "list_models": "candid.models",
    "load": "candid.predict",
    "report": "candid.workflow",
    "train": "candid.workflow",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `candid --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'candid' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
