"""A run from recipe to result, and a run that goes on."""

import contextlib
import math
import os
from collections.abc import Generator, Set
from dataclasses import replace
from pathlib import Path

import torch

from candid.checkpoint import Checkpoint, RunFolder, TrainingState, refuse_existing
from candid.data.catalog import open_data_set
from candid.data.examples import DataSet, FileExamples
from candid.data.loading import TrainingData, cut_epoch, open_training_data
from candid.data.quick_look import look_quickly
from candid.device import choose_device, keep_freed_memory, return_freed_memory
from candid.errors import CheckpointError, DataError, InputError
from candid.recipe import Recipe, list_differences
from candid.training.choices import choose_settings
from candid.training.planning import Plan, make_plan, predict_within_budget
from candid.training.progress import Reporter
from candid.training.ranks import Ranks, joined
from candid.training.session import Session
from candid.training.setup import (
    are_those,
    describe_changes,
    describe_environment,
    describe_left_out,
    load_start,
    resolve_recipe,
    use_settings,
)
from candid.training.stopping import Stop, stop_for
from candid.training.stopwatch import with_settings
from candid.training.tuning import Effort, Tuning, choose_workers
from candid.weights import Loaded

PLANNED = ("memory_format", "memory", "micro_batch_size", "compile")
"""What measuring leaves as the memory plan has it: predictions know what precision and threads cost, not these."""
FIXED_PARTS = ("data.", "model.", "seed")
"""What a run cannot change when it goes on: its state would mean something else."""
FREE = ("data.workers", "data.bad_images")
"""What it can, of those parts; that the training pictures are the same ones is seen to in any case."""


def train_run(
    recipe: Recipe,
    out: Path,
    *,
    last_step: int | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    allow_bf16: bool = False,
    effort: Effort = "quick",
    data_set: DataSet | None = None,
    reporter: Reporter,
) -> RunFolder:
    """Train `recipe` into the new run folder `out`, and look at the test split once at the end.

    `data_set` is what to train on where it is not the whole one that the recipe names.

    With `last_step`, stop and save after so many steps. Where the recipe has a budget of memory, its plan may take
    bf16 if `allow_bf16`. What the recipe leaves open is chosen by measuring, with so much `effort`.
    """
    refuse_existing(out)
    with _joined(device, reporter) as (ranks, chosen_device, speaker):
        data_set = data_set or open_data_set(recipe.data.name, data_dir)
        if warning := look_quickly(data_set):
            speaker.say(warning)
        wanted, recipe = recipe, resolve_recipe(recipe, data_set, chosen_device)
        start = load_start(recipe, len(data_set.class_names))  # weights that are missing are missed at once
        plan = None
        if recipe.limits.memory:
            return_freed_memory()
            plan = make_plan(wanted, recipe, data_set, chosen_device, allow_bf16=allow_bf16, num_ranks=ranks.number)
            speaker.say(plan.text())
            plan = replace(plan, chosen=ranks.gather(plan.chosen)[0])  # what each process holds before differs a little
            recipe = plan.chosen.recipe
        else:
            keep_freed_memory()
        data = open_training_data(data_set, recipe)
        for line in describe_left_out(data.unreadable):
            speaker.say(line)
        if effort == "full":
            speaker.say("Measuring settings; with torch.compile this takes minutes where no earlier run did it.")
        tuning = _tune(wanted, recipe, data, len(data_set.class_names), chosen_device, ranks, plan, effort)
        recipe = recipe if tuning is None else tuning.recipe
        if tuning is not None and len(tuning.timings) > 1:
            speaker.say(tuning.text())
        predicted = None if plan is None else plan.predict_trying([recipe, *_tried(tuning)])
        use_settings(recipe, chosen_device)
        environment = describe_environment(recipe, chosen_device, data.train, ranks.number) | {
            "weights_sha256": _sha256(start),
            "tuning": None if tuning is None else tuning.record(),
            "unreadable_pictures": data.unreadable,
        }
        run = RunFolder.create(out, recipe, environment) if ranks.is_first else RunFolder(out)
        with _locked(run, ranks):
            stop = Stop(recipe.limits.max_seconds, last_step)
            session = Session(run, recipe, data_set, data, chosen_device, speaker, ranks, stop, predicted)
            session.begin(start)
            _run_session(session)
    return run


def resume_run(
    out: Path,
    wanted: Recipe | None = None,
    allowed: Set[str] = frozenset(),
    *,
    last_step: int | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    data_set: DataSet | None = None,
    reporter: Reporter,
) -> RunFolder:
    """Go on with the run in `out` from its newest good checkpoint, at the step where that stands.

    `wanted` is the recipe to go on with, None the run's own; it may differ from the run's in the keys `allowed`.
    Where it differs, the result is no longer what one recipe gives. More epochs stretch every schedule from where
    the run stands: only with a constant rate or a plateau, and a warm-up counted in epochs, are the bits those of a
    run that was meant to be so long from the start. `data_set` is as in `train_run`.

    Raises:
        InputError: if the run is finished, or is not to go on like this.
        DataError: if its pictures are others now.
        CheckpointError: if no checkpoint is good.
        Stopped: after `last_step`, or as in `Session.train`.
    """
    run = RunFolder.open(out)
    with _joined(device, reporter) as (ranks, chosen_device, speaker), _locked(run, ranks):
        data_set = data_set or open_data_set(run.recipe.data.name, data_dir)
        own = resolve_recipe(run.recipe, data_set, chosen_device)  # where it is older than a key, that is still open
        recipe = own if wanted is None else resolve_recipe(wanted, data_set, chosen_device)
        changes = list_differences(own, recipe)
        _refuse_changes(run, changes, allowed)
        _refuse_finished(run, recipe)
        predicted = None
        if recipe.limits.memory:
            return_freed_memory()
            predicted = predict_within_budget(recipe, data_set, chosen_device, ranks.number)
        else:
            keep_freed_memory()
        data = open_training_data(data_set, recipe)
        use_settings(recipe, chosen_device)
        environment = describe_environment(recipe, chosen_device, data.train, ranks.number)
        if not are_those(data.train, run.environment.get("training_data_sha256")):
            raise DataError(
                f"The training pictures of {data_set.name} are not those that {out} began with; expected the same "
                "ones. Bring them back, or train a new run with another --out."
            )
        stop = Stop(recipe.limits.max_seconds, last_step)
        session = Session(run, recipe, data_set, data, chosen_device, speaker, ranks, stop, predicted)
        for line in describe_changes(run.environment, environment, changes):
            speaker.say(line)
        _go_where_it_stands(session)
        if ranks.is_first:
            run.record_resume(recipe, environment)
        _run_session(session)
    return run


def _tune(
    wanted: Recipe,
    recipe: Recipe,
    data: TrainingData,
    num_classes: int,
    device: torch.device,
    ranks: Ranks,
    plan: Plan | None,
    effort: Effort,
) -> Tuning | None:
    """Choose what `wanted` and the plan leave open by measuring; None where that would not pay."""
    if plan is not None:
        wanted = wanted.replace({f"training.{key}": getattr(recipe.training, key) for key in PLANNED})
    num_steps = recipe.training.epochs * len(cut_epoch(torch.arange(len(data.train)), recipe.training.batch_size))
    tuning = choose_settings(
        recipe, wanted, num_classes, device, num_steps, ranks, effort=effort,
        fits=lambda tried: plan is None or plan.predict_trying([tried]).total <= plan.limit,
    )  # fmt: skip
    if tuning is None or wanted.data.workers is not None or not isinstance(data.train, FileExamples):
        return tuning
    workers = choose_workers(data.train, data.preprocessing, recipe, tuning.step_s, ranks.number)
    return replace(tuning, recipe=tuning.recipe.replace({"data.workers": workers}))


def _tried(tuning: Tuning | None) -> list[Recipe]:
    """The recipes whose networks this process has built."""
    if tuning is None or tuning.is_cached:
        return []
    return [with_settings(tuning.recipe, timing.settings) for timing in tuning.timings]


def _go_where_it_stands(session: Session) -> None:
    """Take a session to its run's newest good checkpoint; to its beginning where it died before the first."""
    run, recipe, speaker = session.run, session.recipe, session.reporter
    found = _load_to_resume(run, session.ranks)
    if found is None:
        session.begin(_load_same_start(run, recipe, len(session.data_set.class_names)))
        return
    checkpoint, state, problems = found
    _refuse_fewer_epochs(run, recipe, checkpoint.step, session.batches.steps_per_epoch)
    session.restore(checkpoint, state)
    for problem in problems:
        speaker.say(f"Passed over: {problem}")
    speaker.say(f"Resumed at step {checkpoint.step}, after {checkpoint.epoch} of {recipe.training.epochs} epochs.")


def _run_session(session: Session) -> None:
    with session.stop:
        session.train()
    stop_for(session.stop.signal)  # a signal that came in the last moment
    session.finish()


def _load_same_start(run: RunFolder, recipe: Recipe, num_classes: int) -> Loaded | None:
    """The weights that the run began from; it died before its first checkpoint."""
    start = load_start(recipe, num_classes)
    if _sha256(start) != run.environment.get("weights_sha256"):
        raise CheckpointError(
            f"{recipe.model.weights} is not the file that {run.path} began with (its SHA-256 differs); expected the "
            "same weights. Bring them back, or train a new run with another --out."
        )
    return start


def _sha256(start: Loaded | None) -> str | None:
    return None if start is None else start.report.sha256


def _locked(run: RunFolder, ranks: Ranks) -> contextlib.AbstractContextManager[None]:
    return run.locked() if ranks.is_first else contextlib.nullcontext()


def _load_to_resume(run: RunFolder, ranks: Ranks) -> tuple[Checkpoint, TrainingState, list[str]] | None:
    """What rank 0 finds, for all ranks: it alone clears away what a killed process left. None before a checkpoint."""
    found = None
    if ranks.is_first:
        run.clear()
        found = run.load_to_resume() if any(run.checkpoints.glob("step-*")) else None
    return ranks.gather(found)[0]


def _refuse_changes(run: RunFolder, changes: dict[str, tuple[object, object]], allowed: Set[str]) -> None:
    limits = {key for key in changes if key.startswith("limits.")}
    fixed = [key for key in changes if key.startswith(FIXED_PARTS) and key not in FREE]
    refused = [key for key in changes if key not in allowed | limits or key in fixed]
    if refused:
        listed = "".join(f"\n  {key}: {changes[key][0]!r} in the run, {changes[key][1]!r} now" for key in refused)
        raise InputError(
            f"{run.path} has another recipe; a run goes on by its own. Leave these out, or name them with --set "
            f"(data, model and seed cannot change; use another --out for those):{listed}"
        )


def _refuse_finished(run: RunFolder, recipe: Recipe) -> None:
    epochs = len(run.history)
    if run.is_finished and recipe.training.epochs <= epochs:
        raise InputError(
            f"{run.path} is finished; there is nothing to resume. "
            f"Use another --out to train again, or more --epochs than {epochs}; `candid report {run.path}` shows it."
        )


def _refuse_fewer_epochs(run: RunFolder, recipe: Recipe, step: int, steps_per_epoch: int) -> None:
    done = math.ceil(step / steps_per_epoch)
    if recipe.training.epochs < done:
        raise InputError(
            f"training.epochs is {recipe.training.epochs}, but {run.path} is in epoch {done}; it must be at least "
            f"{done}. Use another --out for a shorter run."
        )


@contextlib.contextmanager
def _joined(device: str, reporter: Reporter) -> Generator[tuple[Ranks, torch.device, Reporter]]:
    """The ranks, this rank's device, and a reporter that is silent on all but the first."""
    chosen = choose_device(device)
    if str(chosen) == "cuda" and "LOCAL_RANK" in os.environ:
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    threads = torch.get_num_threads()
    try:
        with joined(chosen) as ranks:
            yield ranks, chosen, reporter if ranks.is_first else Reporter.silent()
    finally:
        torch.set_num_threads(threads)  # those of a run are its own
