"""The stages of a run as functions: what the command line calls, and what `import candid` offers."""

from pathlib import Path

from candid.checkpoint import RunFolder
from candid.data.catalog import full_name, open_data_set
from candid.data.examples import DataSet, Examples
from candid.data.loading import hold_out, keep_in_memory
from candid.device import choose_device
from candid.errors import InputError, did_you_mean
from candid.evaluation import Evaluation, evaluate_checkpoint
from candid.recipe import Recipe
from candid.recipes import find_recipe
from candid.report import write_report
from candid.training.progress import Reporter, command_line
from candid.training.run import resume_run, train_run


def train(
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    data_dir: Path | None = None,
    device: str = "auto",
) -> Path:
    """Train, look at the test split once, write the report; the run folder.

    `recipe` None is the default one. `out` None is a new folder in runs/ named after network and data. With
    `resume`, the run in `out` goes on by its own recipe.

    Raises:
        InputError: if the recipe, the device or `out` cannot be used. Nothing has been written then.
        DataError: if the pictures cannot be used.
        CheckpointError: if there is no good checkpoint to go on from.
    """
    if resume:
        if recipe is not None or out is None:
            raise InputError("To resume, use --out RUN and nothing that changes the run's recipe.")
        run = resume_run(Path(out), data_dir=data_dir, device=device, reporter=Reporter())
    else:
        recipe = recipe or find_recipe("default")
        path = _new_run_path(recipe) if out is None else Path(out)
        run = train_run(recipe, path, data_dir=data_dir, device=device, reporter=Reporter())
    write_report(run.path)
    return run.path


def evaluate(
    run: str | Path,
    split: str = "validation",
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """What the run's checkpoint predicts for a split of its data set, or of another with the same classes.

    The evaluation is kept in the run folder (see `evaluation_folder`). A look at the run's own test split is
    recorded.

    Raises:
        InputError: if there is no such run, split or data set.
        DataError: if the pictures cannot be used, or their classes are not those of the network.
        CheckpointError: if the checkpoint is damaged.
    """
    folder = RunFolder.open(Path(run))
    chosen_device = choose_device(device)
    checkpoint = folder.load()
    name = data or checkpoint.recipe.data.name
    data_set = open_data_set(name, data_dir)
    if data_set.class_names != checkpoint.class_names:
        raise InputError(_class_mismatch(data_set, checkpoint.class_names))
    examples = keep_in_memory(open_split(data_set, split, checkpoint.recipe), checkpoint.preprocessing)
    evaluation = evaluate_checkpoint(checkpoint, examples, split, chosen_device)
    if split == "test" and (data is None or _is_own_data(checkpoint.recipe, data)):
        folder.record_test_look(checkpoint.name, evaluation.num_images, evaluation.accuracy, command_line())
    provenance: dict[str, object] = {"checkpoint": checkpoint.name, "data": name}
    evaluation.save(evaluation_folder(folder.path, split, data), examples, provenance)
    return evaluation


def evaluation_folder(run: Path, split: str, data: str | None = None) -> Path:
    """Where an evaluation is kept: evaluation-SPLIT, and for data other than the run's evaluation-SPLIT-NAME.

    So the report never shows a number on other data as the run's own.
    """
    if data is None or _is_own_data(RunFolder.open(run).recipe, data):
        return run / f"evaluation-{split}"
    return run / f"evaluation-{split}-{Path(data).resolve().name}"


def report(run: str | Path) -> Path:
    """Write the run's page anew; its path."""
    return write_report(RunFolder.open(Path(run)).path)


def open_split(data_set: DataSet, split: str, recipe: Recipe) -> Examples:
    """The examples of a split; validation as the recipe held it out."""
    available = ["train", *(["validation"] if recipe.data.validation else [])]
    available += ["test"] if "test" in data_set.openers else []
    if split not in available:
        advice = did_you_mean(split, available, f"It has {', '.join(available)}.")
        raise InputError(f"{data_set.name} has no split {split!r} in this run. {advice}")
    if split == "test":
        return data_set.openers["test"]()
    train_examples, validation = hold_out(data_set, recipe)
    return train_examples if validation is None or split == "train" else validation


def _is_own_data(recipe: Recipe, data: str) -> bool:
    return full_name(data) == recipe.data.name


def _class_mismatch(data_set: DataSet, known: tuple[str, ...]) -> str:
    strange = sorted(set(data_set.class_names) - set(known))
    missing = sorted(set(known) - set(data_set.class_names))
    facts = [f"the network does not know {', '.join(strange)}"] if strange else []
    facts += [f"the data set lacks {', '.join(missing)}"] if missing else []
    facts = facts or ["they come in another order"]
    return (
        f"The classes of {data_set.name} are not those of the run: {'; '.join(facts)}. "
        "Evaluate on data with the same class names."
    )


def _new_run_path(recipe: Recipe) -> Path:
    """runs/MODEL-DATA, with a number when that is taken."""
    stem = f"{recipe.model.name}-{Path(recipe.data.name).name}"
    candidates = (Path("runs") / (stem if number == 1 else f"{stem}-{number}") for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())
