"""candid trains, tests and uses image classifiers built from the classic convolutional networks.

The way of the data: a `Recipe` names a data set, which `candid.data` turns into batches; `build_model` makes
the network, one of `list_models`; `plan` says how training fits the memory; `train` fits the network, keeps
checkpoints in a run folder, and looks at the test split once; `evaluate` gives an `Evaluation` of any split;
`report` writes the page; `compare` puts runs side by side; `load(run).predict(files)` names your pictures.

In a notebook, where each result shows itself as tables and figures:

    import candid
    run = candid.train(candid.Recipe().override(["model.name=mlp-relu", "training.epochs=1"]))
    candid.evaluate(run)
    candid.report(run)
    candid.load(run).predict("holiday.jpg")

These ten names are all there is to use, with the errors that they raise: a `CandidError` is an `InputError`, a
`DataError` or a `CheckpointError`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from candid.errors import CandidError, CheckpointError, DataError, InputError

if TYPE_CHECKING:
    from candid.evaluation import Evaluation
    from candid.models import build_model, list_models
    from candid.predict import load
    from candid.recipe import Recipe
    from candid.workflow import compare, evaluate, plan, report, train

__all__ = [
    "CandidError",
    "CheckpointError",
    "DataError",
    "Evaluation",
    "InputError",
    "Recipe",
    "build_model",
    "compare",
    "evaluate",
    "list_models",
    "load",
    "plan",
    "report",
    "train",
]

_HOMES = {
    "Evaluation": "candid.evaluation",
    "Recipe": "candid.recipe",
    "build_model": "candid.models",
    "compare": "candid.workflow",
    "evaluate": "candid.workflow",
    "list_models": "candid.models",
    "load": "candid.predict",
    "plan": "candid.workflow",
    "report": "candid.workflow",
    "train": "candid.workflow",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `candid --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'candid' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


class _Candid(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Keep the name of the function `report`, which Python would give to the package as it imports it."""
        if name not in _HOMES:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Candid
