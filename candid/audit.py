"""Labels that are probably wrong, found by networks that never learned from the pictures that they judge.

The training pictures are dealt into folds. For each fold a network is trained on the others, and says what it thinks
of this one, by which some labels are suspected (see `candid.scores.find_suspects`). The list says where to look first;
who looks decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from candid.checkpoint import RunFolder
from candid.data.catalog import open_data_set
from candid.data.examples import DataSet, Examples
from candid.data.loading import decode_once
from candid.device import choose_device
from candid.durable import new_folder
from candid.errors import InputError
from candid.evaluation import open_batches
from candid.kept_evaluation import make_thumbnail, write_table
from candid.randomness import shuffled
from candid.recipe import Recipe
from candid.scores import find_suspects
from candid.training.progress import Reporter
from candid.training.run import resume_run, train_run
from candid.training.tuning import Effort
from candid.views import prepare

MOST_PICTURES = 200
"""Of the suspects, so many have their picture beside the list."""


@dataclass(frozen=True)
class Suspect:
    """A picture whose label is doubted."""

    position: int
    """Among the training pictures."""
    file: str
    label: str
    suggestion: str
    label_probability: float
    suggestion_probability: float
    """Both by a network that did not learn from this picture."""


def audit(
    recipe: Recipe,
    out: Path,
    folds: int = 4,
    *,
    data_dir: Path | None = None,
    device: str = "auto",
    effort: Effort = "quick",
    data_set: DataSet | None = None,
    reporter: Reporter,
) -> list[Suspect]:
    """Train a network for each fold into `out`, and write the suspects there, the most suspect first.

    `data_set` is what to look through where it is not the one that the recipe names. An audit that was broken off goes
    on: finished folds stay, one that was begun is resumed.

    Raises:
        InputError: if there are too few pictures for the folds, or `out` holds something else.
        CandidError: as in training.
    """
    data_set = data_set or open_data_set(recipe.data.name, data_dir)
    examples = data_set.openers["train"]()
    fewest = int(torch.bincount(examples.labels, minlength=len(data_set.class_names)).min())
    if not 2 <= folds <= fewest:
        raise InputError(
            f"--folds is {folds}; it must be from 2 to {fewest}, the number of training pictures of the smallest class "
            f"of {data_set.name}. Choose another number."
        )
    if out.exists() and not any(out.glob("fold-*/recipe.toml")):
        raise InputError(
            f"{out} exists and is no audit; expected a new folder, or one to go on with. Choose another --out."
        )
    fold_of = deal(examples.labels, folds, recipe.seed)
    probabilities = torch.zeros(len(examples), len(data_set.class_names))
    for fold in range(folds):
        reporter.say(f"Fold {fold + 1} of {folds}")
        run = _train_fold(
            recipe, data_set, examples, fold_of == fold, out / f"fold-{fold + 1}", device, effort, reporter
        )
        probabilities[fold_of == fold] = _judge(run, examples.select(torch.nonzero(fold_of == fold).flatten()), device)
    classes = torch.arange(len(data_set.class_names)).expand_as(probabilities)
    own = probabilities.gather(1, examples.labels[:, None]).squeeze(1)
    suspects = [
        Suspect(
            position=position,
            file=examples.files[position],
            label=data_set.class_names[int(examples.labels[position])],
            suggestion=data_set.class_names[suggestion],
            label_probability=float(own[position]),
            suggestion_probability=float(probabilities[position, suggestion]),
        )
        for position, suggestion in find_suspects(classes, probabilities, own, examples.labels)
    ]
    _write(suspects, examples, out / "suspects")
    return suspects


def deal(labels: Tensor, folds: int, seed: int) -> Tensor:
    """The fold of each example, int64 [N]; every class is dealt evenly, by chance that the seed decides."""
    order = shuffled(len(labels), seed, "folds", 0)
    by_class = order[labels[order].argsort(stable=True)]
    fold_of = torch.empty_like(labels)
    fold_of[by_class] = torch.arange(len(labels)) % folds
    return fold_of


def _train_fold(
    recipe: Recipe,
    data_set: DataSet,
    examples: Examples,
    is_held_out: Tensor,
    out: Path,
    device: str,
    effort: Effort,
    reporter: Reporter,
) -> RunFolder:
    """The network of a fold; it sees no test split, and nothing is chosen by the pictures that it will judge."""
    kept = examples.select(torch.nonzero(~is_held_out).flatten())
    fold = replace(data_set, openers={"train": lambda: kept})
    wanted = recipe.replace({"data.validation": 0.0, "data.bad_images": "stop"})
    if not out.exists():
        return train_run(wanted, out, device=device, effort=effort, reporter=reporter, data_set=fold)
    run = RunFolder.open(out)
    return run if run.is_finished else resume_run(out, device=device, reporter=reporter, data_set=fold)


def _judge(run: RunFolder, examples: Examples, device: str) -> Tensor:
    """Probabilities [N, classes] of examples that the run did not see."""
    checkpoint, chosen = run.load(), choose_device(device)
    decoded = decode_once(examples, checkpoint.preprocessing, run.recipe.data)
    model, batches = open_batches(checkpoint, decoded, chosen)
    network = prepare(model.eval())
    with torch.inference_mode():
        return torch.cat([network(inputs).float().softmax(dim=1).cpu() for inputs, _ in batches])


def _write(suspects: Sequence[Suspect], examples: Examples, folder: Path) -> None:
    """suspects.csv, and the pictures of the first ones."""
    with new_folder(folder) as partial:
        rows = [
            [place, s.file, s.label, s.suggestion, f"{s.label_probability:.6f}", f"{s.suggestion_probability:.6f}"]
            for place, s in enumerate(suspects, start=1)
        ]
        headings = ["rank", "file", "label", "suggestion", "label_probability", "suggestion_probability"]
        write_table(partial / "suspects.csv", [headings, *rows])
        for suspect in suspects[:MOST_PICTURES]:
            make_thumbnail(examples, suspect.position).save(partial / f"{suspect.position}.png")
