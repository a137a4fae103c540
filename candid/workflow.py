"""The stages of a run as functions: what the command line calls, and what `import candid` offers."""

import os
from collections.abc import Sequence, Set
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from candid.calibration import calibrate, find_temperature
from candid.checkpoint import RunFolder
from candid.comparison import Comparison, compare_runs
from candid.data.catalog import full_name, open_data_set
from candid.data.examples import DataSet, Examples, hold_out
from candid.data.loading import decode_once
from candid.device import choose_device
from candid.errors import CheckpointError, InputError, did_you_mean
from candid.evaluation import Evaluation, describe_measurement, evaluate_checkpoint, explain_mistakes
from candid.kept_evaluation import save_evaluation
from candid.recipe import Recipe
from candid.recipes import find_recipe
from candid.report.comparison_page import write_comparison
from candid.report.memory_figure import write_memory_figure
from candid.report.side_by_side import SideBySide, read_side_by_side
from candid.report.writing import write_report
from candid.training.planning import BUDGETS, Plan, describe_largest_batches, make_plan, trace_curves
from candid.training.progress import Reporter, command_line
from candid.training.run import resume_run, train_run
from candid.training.setup import describe_left_out, resolve_recipe
from candid.training.stopping import Stopped
from candid.training.tuning import as_effort
from candid.views import PLAIN, Views

NUM_RESUME_TEST_STEPS = 8


def train(
    recipe: Recipe | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    *,
    allowed: Set[str] = frozenset(),
    allow_bf16: bool = False,
    tune: str = "quick",
    data_dir: Path | None = None,
    device: str = "auto",
) -> Path:
    """Train, look at the test split once, write the report; the run folder.

    `recipe` None is the default one. `out` None is a new folder in runs/ named after network and data. With
    `resume`, the run in `out` goes on by its own recipe, or by `recipe`, which may differ in the keys `allowed`.
    Where `limits.memory` is given, a new run chooses settings that fit it, bf16 only if `allow_bf16`. What else is
    open it measures: `tune` is off, quick (at most 20 s and 3 % of the run) or full (torch.compile too, some minutes).
    `data_dir` is where data sets lie, else $CANDID_DATA and the usual places; `device` is auto, cpu, cuda or cuda:1.

    Raises:
        InputError: if the recipe, the device or `out` cannot be used. Nothing has been written then.
        DataError: if the pictures cannot be used.
        CheckpointError: if there is no good checkpoint to go on from.
        Stopped: if a signal or the recipe's limit of time stopped the run; what it did is saved.
    """
    reporter, effort = Reporter(), as_effort(tune)
    if out is None and (resume or "WORLD_SIZE" in os.environ):
        raise InputError("To resume, and with several processes, the run needs a name; use --out RUN.")
    if resume and out is not None:
        _refuse_imported(Path(out), "there is no training to resume. Begin one from its weights with --weights.")
    if resume or _is_restarted(out):
        run = resume_run(Path(str(out)), recipe, allowed, data_dir=data_dir, device=device, reporter=reporter)
    else:
        recipe = recipe or find_recipe("default")
        path = _new_run_path(recipe) if out is None else Path(out)
        run = train_run(
            recipe, path, data_dir=data_dir, device=device, allow_bf16=allow_bf16, effort=effort, reporter=reporter
        )
    if os.environ.get("RANK", "0") == "0":
        write_report(run.path)
    return run.path


def train_seeds(
    recipe: Recipe, seeds: Sequence[int], out: Path | None = None, resume: bool = False, **options: Any
) -> list[Path]:
    """Train a recipe with each of several seeds, into OUT-seed-0 and so on; the run folders, in the seeds' order.

    With `resume`, runs that were finished stay, those that were begun go on, the rest begin. `options` are as in
    `train`, whose errors are this one's.
    """
    stem = out or _new_run_path(recipe)
    runs = [stem.with_name(f"{stem.name}-seed-{seed}") for seed in seeds]
    for seed, run in zip(seeds, runs, strict=True):
        is_begun = resume and run.exists()
        if not (is_begun and RunFolder.open(run).is_finished):
            train(None if is_begun else recipe.replace({"seed": seed}), run, is_begun, **options)
    return runs


def plan(
    recipe: Recipe | None = None, *, allow_bf16: bool = False, data_dir: Path | None = None, device: str = "auto"
) -> Plan:
    """How a recipe fits its `limits.memory`, or the machine's memory, in bytes and seconds a step; nothing is trained.

    `recipe`, `allow_bf16`, `data_dir` and `device` are as in `train`.

    Raises:
        InputError: if it does not, or the recipe or the device cannot be used.
        DataError: if the pictures cannot be used.
    """
    wanted, resolved, data_set, chosen_device = _prepare_plan(recipe, data_dir, device)
    return make_plan(wanted, resolved, data_set, chosen_device, allow_bf16=allow_bf16)


def plan_what_if(
    recipe: Recipe | None = None, figure: Path | None = None, *, data_dir: Path | None = None, device: str = "auto"
) -> tuple[Path, str]:
    """The figure of memory and time against the batch, and the largest batches for usual budgets in words."""
    _, resolved, data_set, chosen_device = _prepare_plan(recipe, data_dir, device)
    curves = trace_curves(resolved, data_set, chosen_device)
    title = f"{resolved.model.name} at {resolved.data.image_size} px, {resolved.training.precision}"
    path = figure or Path(f"{resolved.model.name}-memory.png")
    return write_memory_figure(path, title, curves, BUDGETS), describe_largest_batches(curves)


def _prepare_plan(
    recipe: Recipe | None, data_dir: Path | None, device: str
) -> tuple[Recipe, Recipe, DataSet, torch.device]:
    """The recipe as it is wanted and resolved, its data set and its device."""
    wanted, chosen_device = recipe or find_recipe("default"), choose_device(device)
    data_set = open_data_set(wanted.data.name, data_dir)
    return wanted, resolve_recipe(wanted, data_set, chosen_device), data_set, chosen_device


def _is_restarted(out: str | Path | None) -> bool:
    """Whether torchrun started this command again after a process died, so that it shall go on."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return restarts > 0 and out is not None and (Path(out) / "recipe.toml").is_file()


def compare(runs: Sequence[str | Path], out: str | Path = "comparison.html") -> SideBySide:
    """Put two or more runs side by side and write the page `out`.

    Accuracies are in [0, 1]. Two runs on the same pictures are told apart by McNemar's exact test (1947).

    Raises:
        InputError: if one of them is no run, there are fewer than two, or another file lies at `out`.
        CheckpointError: if nothing of a run can be shown yet, or what it holds is damaged.
    """
    found = read_side_by_side(list(map(Path, runs)))
    write_comparison(Path(out), found)
    return found


def compare_exactly(first: str | Path, second: str | Path) -> Comparison:
    """Whether two runs are equal in every recorded epoch and every bit of the checkpoints that both kept."""
    return compare_runs(RunFolder.open(Path(first)), RunFolder.open(Path(second)))


def verify(run: str | Path) -> dict[str, str | None]:
    """For each checkpoint's name what is wrong with it, None where every file is as it was saved."""
    return RunFolder.open(Path(run)).verify()


def check_resume(run: str | Path, *, data_dir: Path | None = None, device: str = "auto") -> str:
    """Train a run's recipe for some steps, straight and interrupted; say that both gave the same bits.

    Nothing of the run changes: both happen in a temporary folder.

    Raises:
        CheckpointError: if they differ, so that a resumed run would not be what a straight one is.
    """
    _refuse_imported(Path(run), "there is no training to resume.")
    recipe, half = RunFolder.open(Path(run)).recipe, NUM_RESUME_TEST_STEPS // 2
    enough = max(recipe.training.epochs, NUM_RESUME_TEST_STEPS + 1)  # a run that ends looks at the test split
    recipe = recipe.replace({"training.epochs": enough, "limits.max_time": "", "limits.save_every": "1epoch"})
    with TemporaryDirectory() as folder:
        runs = [Path(folder) / name for name in ("straight", "interrupted")]
        for path, last_steps in zip(runs, ((2 * half,), (half, 2 * half)), strict=True):
            for last_step in last_steps:
                begin = resume_run if path.exists() else partial(train_run, recipe, effort="off")
                with suppress(Stopped):
                    begin(path, last_step=last_step, data_dir=data_dir, device=device, reporter=Reporter.silent())
        found = compare_runs(*map(RunFolder.open, runs))
    if found.different_checkpoints or not found.equal_checkpoints:
        raise CheckpointError(
            f"After {2 * half} steps, the recipe of {run} gives other weights where it is interrupted half-way than "
            "where it is not; expected the same bits. Set training.deterministic=true."
        )
    return f"{2 * half} steps straight and {half} + {half} interrupted give the same bits."


def evaluate(
    run: str | Path,
    split: str = "validation",
    *,
    views: Views = PLAIN,
    data: str | None = None,
    bad_images: str | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
) -> Evaluation:
    """What the run's checkpoint predicts for a split of its data set, or of other `data` with the same classes.

    Several `views` of each picture are another way to measure, which gives another number. On the run's own validation
    split, probabilities are calibrated (see `candid.calibration`). The evaluation is kept in the run folder (see
    `evaluation_folder`). A look at the run's own test split is recorded. `bad_images` is as in the recipe, which
    decides where it is None: what is scored and what is skipped are together what was found. `data_dir` and `device`
    are as in `train`. Shares are in [0, 1], the loss is in nats, and intervals are of 95 % (Wilson 1927).

    Raises:
        InputError: if there is no such run, split, data set or device, or its classes are not those of the network.
        DataError: if the pictures cannot be used.
        CheckpointError: if the run has no checkpoint yet, or it is damaged.
    """
    folder = RunFolder.open(Path(run))
    chosen_device = choose_device(device)
    checkpoint = folder.load()
    name = data or checkpoint.recipe.data.name
    data_set = open_data_set(name, data_dir)
    if data_set.class_names != checkpoint.class_names:
        raise InputError(_class_mismatch(data_set, checkpoint.class_names))
    in_split = open_split(data_set, split, checkpoint.recipe)
    settings = checkpoint.recipe.replace({"data.bad_images": bad_images or folder.recipe.data.bad_images}).data
    examples = decode_once(in_split, views.enlarge(checkpoint.preprocessing), settings)
    for line in describe_left_out({split: examples.unreadable}):
        Reporter().say(line)
    if split == "validation" and data is None and views == PLAIN:
        calibration, evaluation = calibrate(checkpoint, examples, chosen_device)
        calibration.save(folder.path)
    else:
        temperature = find_temperature(folder.path, checkpoint.name) if views == PLAIN else 1.0
        evaluation = evaluate_checkpoint(
            checkpoint, examples, split, chosen_device, views=views, temperature=temperature
        )
    if split == "test" and (data is None or _is_own_data(checkpoint.recipe, data)):
        folder.record_test_look(checkpoint.name, evaluation.num_images, evaluation.accuracy, command_line())
    kept_in = evaluation_folder(folder.path, split, data, views)
    provenance = describe_measurement(checkpoint, name, views)
    explained = explain_mistakes(evaluation, checkpoint, examples, chosen_device) if views == PLAIN else {}
    save_evaluation(evaluation, kept_in, examples, provenance, explained)
    return evaluation


def evaluation_folder(run: Path, split: str, data: str | None = None, views: Views = PLAIN) -> Path:
    """Where an evaluation is kept: evaluation-SPLIT, with -NAME for data other than the run's, and with its views.

    So the report never shows a number on other data, or by another way to measure, as the run's own.
    """
    parts = ["evaluation", split]
    if data is not None and not _is_own_data(RunFolder.open(run).recipe, data):
        parts.append(Path(data).resolve().name)
    return run / "-".join([*parts, *views.names])


def report(run: str | Path) -> Path:
    """Write the run's page anew, `report.html` with its figures in the run folder; its path.

    Raises:
        InputError: if there is no such run, or nothing was measured of imported weights.
        CheckpointError: if the run has nothing to show yet, or what it holds is damaged.
    """
    folder = RunFolder.open(Path(run))
    if not any(folder.path.glob("evaluation-*/summary.json")):
        _refuse_imported(
            folder.path,
            "nothing was measured yet, so there is nothing to report. "
            f"Run `candid evaluate {folder.path} --split test` first.",
        )
    return write_report(folder.path)


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


def _refuse_imported(run: Path, consequence: str) -> None:
    """Raise an InputError where the weights of a run came from elsewhere."""
    try:
        environment = RunFolder.open(run).environment
    except CheckpointError:
        return  # whoever needs it says what is wrong with it
    if "imported" in environment:
        raise InputError(f"{run} holds weights that were imported: {consequence}")


def _is_own_data(recipe: Recipe, data: str) -> bool:
    return full_name(data) == recipe.data.name


def _class_mismatch(data_set: DataSet, known: tuple[str, ...]) -> str:
    strange = sorted(set(data_set.class_names) - set(known))
    missing = sorted(set(known) - set(data_set.class_names))
    facts = [f"the network does not know {_some(strange)}"] if strange else []
    facts += [f"the data set lacks {_some(missing)}"] if missing else []
    facts = facts or ["they come in another order"]
    return (
        f"The classes of {data_set.name} are not those of the run: {'; '.join(facts)}. "
        "Evaluate on data with the same class names."
    )


def _some(names: Sequence[str], most: int = 10) -> str:
    others = f" and {len(names) - most:,} others" if len(names) > most else ""
    return ", ".join(names[:most]) + others


def _new_run_path(recipe: Recipe) -> Path:
    """runs/MODEL-DATA, with a number when that is taken."""
    stem = f"{recipe.model.name}-{Path(recipe.data.name).name}"
    candidates = (Path("runs") / (stem if number == 1 else f"{stem}-{number}") for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())
