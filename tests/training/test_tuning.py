import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, call, make_pictures, silent, small_recipe
from processes import be_rank, free_port, outcome, start

from candid.checkpoint import RunFolder
from candid.comparison import compare_runs
from candid.data.catalog import open_data_set
from candid.data.examples import DataSet, FileExamples, hold_out
from candid.data.loading import Batch
from candid.data.preprocessing import Preprocessing
from candid.device import choose_device, num_cores
from candid.durable import cache_folder
from candid.recipe import Recipe
from candid.training import choices, stopwatch, tuning
from candid.training.choices import choose_settings
from candid.training.loop import Trainer
from candid.training.planning import make_plan
from candid.training.progress import Reporter
from candid.training.ranks import ALONE, joined
from candid.training.run import resume_run, train_run
from candid.training.setup import resolve_recipe
from candid.training.stopping import Stopped
from candid.training.stopwatch import Stopwatch, Timing, pick, settings_of, with_settings
from candid.training.tuning import (
    Tuning,
    budget_for,
    choose_workers,
    list_open,
    tune,
    vary_arithmetic,
    vary_compiling,
    vary_memory,
    vary_micro_batches,
    vary_threads,
)

CPU = torch.device("cpu")
LONG = 10**7  # steps of a run that is worth measuring
NO_PICTURES = DataSet("nothing", CLASSES, 1, 28, {})


def recipes(**changes: object) -> tuple[Recipe, Recipe]:
    """A recipe as it is wanted, and resolved."""
    wanted = small_recipe(Path("nothing"), **changes)
    return wanted, resolve_recipe(wanted, NO_PICTURES, CPU)


@pytest.fixture(autouse=True)
def _brief_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "TIMED_S", 0.01)
    monkeypatch.setattr(stopwatch, "BUSY_CORES", math.inf)  # tests run side by side


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "candid"
    return cache_folder() / "tuning"


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even runs of a moment are measured."""
    monkeypatch.setattr(choices, "LEAST_STEPS", 0)
    monkeypatch.setattr(tuning, "LEAST_RUN_S", 0.0)
    monkeypatch.setattr(tuning, "SHARE", 1e9)


def test_another_choice_has_to_win_by_three_percent():
    assert pick({"static": 100.0, "a": 97.1, "b": 98.0}, "static") == "static"
    assert pick({"static": 100.0, "a": 97.0, "b": 96.9}, "static") == "b"
    assert pick({"static": 100.0, "a": 120.0}, "static") == "static"
    assert pick({"static": math.inf, "a": 120.0}, "static") == "a"
    assert pick({"static": 100.0, "a": math.inf}, "static") == "static"


def test_measuring_takes_a_small_share_of_the_run():
    assert budget_for(0.1, 5000, "quick") == pytest.approx(15.0)
    assert budget_for(1.0, 5000, "quick") == 20.0
    assert budget_for(0.01, 5000, "quick") == 0.0  # 50 s: over before it pays
    assert budget_for(0.01, 5, "full") == 180.0


def test_what_was_given_is_not_open_and_a_resolved_recipe_leaves_nothing():
    wanted, resolved = recipes()
    assert list_open(wanted) == ["precision", "memory_format", "memory", "micro_batch_size", "threads", "compile"]
    assert list_open(resolved) == []
    given = {"training.precision": "fp32", "training.memory": "plain", "training.compile": False}
    assert list_open(wanted.replace(given)) == ["memory_format", "threads"]


def test_arithmetic_is_varied_as_far_as_it_is_open():
    _, resolved = recipes()
    both = {
        (r.training.precision, r.training.memory_format) for r in vary_arithmetic(resolved, list_open(recipes()[0]))
    }
    assert both == {("fp32", "contiguous"), ("bf16", "channels-last"), ("bf16", "contiguous")}
    formats = [recipe.training.memory_format for recipe in vary_arithmetic(resolved, ["memory_format"])]
    assert formats == ["contiguous"]
    assert vary_arithmetic(resolved, []) == []


def test_networks_that_take_statistics_of_a_batch_get_no_micro_batches():
    _, plain = recipes(training__batch_size=64)
    assert [recipe.training.micro_batch_size for recipe in vary_micro_batches(plain, 64, 3)] == [32, 16]
    assert [recipe.training.micro_batch_size for recipe in vary_micro_batches(plain, 32, 3)] == [16]
    for name in ("lenet-bn", "resnet20-cifar"):
        assert vary_micro_batches(plain.replace({"model.name": name}), 64, 3) == []
    assert vary_micro_batches(plain.replace({"training.micro_batch_size": 8}), 64, 3) == []


def test_dense_blocks_threads_and_compiling_are_varied_where_they_can_be():
    _, plain = recipes()
    dense = plain.replace({"model.name": "densenet-40-12", "training.memory": "shared", "training.threads": 4})
    assert [recipe.training.memory for recipe in vary_memory(dense)] == ["plain"]
    assert vary_memory(plain) == []
    [compiled] = vary_compiling(dense, ["memory", "compile"])
    assert (compiled.training.memory, compiled.training.compile) == ("plain", True)
    assert vary_compiling(dense, ["compile"]) == vary_compiling(dense, ["memory"]) == []


def test_fewer_threads_are_tried_for_short_steps_on_a_quiet_machine(monkeypatch: pytest.MonkeyPatch):
    _, resolved = recipes()
    several, watch = with_settings(resolved, {"threads": 4}), Stopwatch(resolved, 2, 3, CPU, 20.0)
    assert vary_threads(several, watch) == []  # nobody knows how long its step is
    watch.step_s = {several: 0.01, resolved: 0.01}
    assert [recipe.training.threads for recipe in vary_threads(several, watch)] == [2]
    assert vary_threads(resolved, watch) == []  # it has one
    watch.step_s = {several: 0.2}
    assert vary_threads(several, watch) == []
    watch.step_s = {several: 0.01}
    monkeypatch.setattr(Stopwatch, "busy_cores", 0.94)
    assert vary_threads(several, watch) == []


def test_what_was_measured_on_a_busy_machine_is_said_and_not_kept(
    cache: Path, always: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Stopwatch, "busy_cores", 0.94)
    found = choose_settings(*reversed(recipes()), 3, CPU, LONG, ALONE)
    assert found is not None
    assert found.text().splitlines()[-1] == (
        "Other programs took 0.9 cores meanwhile, so that the next run measures anew."
    )
    assert not cache.exists()


def test_real_steps_are_timed_and_nothing_is_disturbed():
    wanted, resolved = recipes(training__batch_size=64)
    torch.use_deterministic_algorithms(False)
    state = torch.get_rng_state()
    found = tune(resolved, wanted, 3, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert found.seconds < 20
    arithmetic = {(row.settings["precision"], row.settings["memory_format"]) for row in found.timings}
    assert len(arithmetic) == 4
    assert {row.settings["micro_batch_size"] for row in found.timings} == {0, 32, 16}
    assert all(0 < row.step_s < 1 for row in found.timings)
    assert found.step_s <= next(row.step_s for row in found.timings if row.settings == settings_of(resolved))
    assert with_settings(resolved, settings_of(found.recipe)) == found.recipe


def test_slow_steps_leave_time_for_the_other_ways(monkeypatch: pytest.MonkeyPatch):
    """Of 10 s, steps of 2 s as it would be without measuring must not take all."""
    wanted, resolved = recipes()
    now_s = 0.0

    def train(trainer: Trainer, batches: Iterator[Batch], frozen: object, after_step: Callable[[int], None]) -> None:
        nonlocal now_s
        for _ in batches:
            now_s += 2.0 if trainer.recipe.training.precision == resolved.training.precision else 1.0
            after_step(0)

    monkeypatch.setattr("candid.training.stopwatch.train_one_epoch", train)
    monkeypatch.setattr("candid.training.stopwatch.time.perf_counter", lambda: now_s)
    found = tune(resolved, wanted, 3, CPU, budget_s=10.0)
    assert found.recipe.training.precision != resolved.training.precision
    assert found.seconds <= 11.0  # whoever turns out to be slower than expected ends its first turn


def test_what_was_given_stays():
    given = {"training__precision": "fp32", "training__memory": "plain", "training__compile": False}
    found = tune(*reversed(recipes(**given)), 3, CPU, effort="full")
    kept = {(row.settings["precision"], row.settings["micro_batch_size"]) for row in found.timings}
    assert kept == {("fp32", 0)}
    assert len(found.timings) == 2


@pytest.mark.long
def test_everything_is_compiling_too():
    wanted, resolved = recipes()
    found = tune(resolved, wanted, 3, CPU, effort="full")
    compiled = [row.step_s for row in found.timings if row.settings["compile"]]
    assert len(compiled) == 1
    assert compiled[0] < 1


def test_only_what_fits_is_tried():
    wanted, resolved = recipes()
    found = tune(resolved, wanted, 3, CPU, fits=lambda recipe: recipe.training.precision == "fp32")
    assert {row.settings["precision"] for row in found.timings} == {"fp32"}


def test_the_table_marks_the_chosen_and_shows_what_failed():
    _, resolved = recipes()
    failed = with_settings(resolved, {"precision": "fp16"})
    timings = (Timing(settings_of(failed), math.inf), Timing(settings_of(resolved), 0.0123))
    found = Tuning(resolved, timings, 1.24)
    assert found.text() == (
        "2 ways to train, timed in 1.2 s, with batches of 16:\n"
        "   precision  memory format   a step\n"
        "────────────────────────────────────\n"
        ">  fp32       channels-last  12.3 ms\n"
        "   fp16       channels-last    fails"
    )
    assert (
        replace(found, is_cached=True).text().startswith("2 ways to train, an earlier run timed with batches of 16:\n")
    )
    assert json.loads(json.dumps(found.record()))["timings"][0]["step_ms"] is None


def test_the_second_run_takes_what_the_first_measured(cache: Path, always: None):
    wanted, resolved = recipes(training__batch_size=64)
    first = choose_settings(resolved, wanted, 3, CPU, LONG, ALONE)
    second = choose_settings(resolved, wanted, 3, CPU, LONG, ALONE)
    assert first is not None
    assert second == replace(first, is_cached=True)
    other_network = choose_settings(*reversed(recipes(training__batch_size=32)), 3, CPU, LONG, ALONE)
    assert other_network is not None
    assert not other_network.is_cached
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"facts"', '"fats"'),
        lambda text: text.replace("lenet-relu", "lenet"),
        lambda text: text.replace('"chosen": {', '"chosen": {"speed": 9, '),
        lambda text: text.replace('"threads": 1', '"threads": "many"'),
        lambda text: text.replace('"compile": false', '"compile": true'),
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(cache: Path, always: None, damage):
    wanted, resolved = recipes(training__compile=False, training__memory="plain", training__memory_format="contiguous")
    choose_settings(resolved, wanted, 3, CPU, LONG, ALONE)
    [file] = cache.iterdir()
    damaged = damage(file.read_text())
    file.write_text(damaged)
    found = choose_settings(resolved, wanted, 3, CPU, LONG, ALONE)
    assert found is not None
    assert not found.is_cached
    assert [path.name for path in cache.iterdir()] == [file.name]
    again = choose_settings(resolved, wanted, 3, CPU, LONG, ALONE)
    assert again == replace(found, is_cached=True)


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path: Path, always: None, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert choose_settings(*reversed(recipes()), 3, CPU, LONG, ALONE) is not None
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_of_few_steps_measures_nothing(cache: Path, pictures: Path, tmp_path: Path):
    run = train_run(small_recipe(pictures), tmp_path / "run", reporter=silent())
    assert run.environment["tuning"] is None
    assert not cache.exists()


def test_a_run_that_is_over_soon_keeps_its_settings_whatever_longer_ones_find(cache: Path):
    wanted, resolved = recipes()
    brief = choose_settings(resolved, wanted, 3, CPU, 400, ALONE)
    assert brief is not None
    assert (brief.recipe, len(brief.timings)) == (resolved, 1)
    longer = choose_settings(resolved, wanted, 3, CPU, LONG, ALONE)
    assert longer is not None
    assert len(longer.timings) > 1
    assert choose_settings(resolved, wanted, 3, CPU, 400, ALONE) == replace(brief, is_cached=True)
    other = choose_settings(resolved, wanted, 3, CPU, 500, ALONE)
    assert other == replace(longer, is_cached=True)
    assert choose_settings(resolved, wanted, 3, CPU, LONG, ALONE, effort="off") is None


def test_a_run_says_and_records_its_choice_and_goes_on_by_it(
    cache: Path, always: None, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    wanted = small_recipe(pictures, training__epochs=2)
    run = train_run(wanted, tmp_path / "run", reporter=Reporter())
    said, tuned = capsys.readouterr().err.splitlines(), run.environment["tuning"]
    assert said[0] == f"{len(tuned['timings'])} ways to train, timed in {tuned['seconds']:.1f} s, with batches of 16:"
    assert not tuned["cached"]
    [chosen] = [row for row in tuned["timings"] if row["chosen"]]
    assert {key: chosen[key] for key in settings_of(run.recipe)} == settings_of(run.recipe)
    with pytest.raises(Stopped):
        train_run(wanted, tmp_path / "stopped", last_step=3, reporter=silent())
    shutil.rmtree(cache)
    stopped = resume_run(tmp_path / "stopped", reporter=silent())
    assert stopped.environment["tuning"]["cached"]
    repeated = train_run(run.recipe, tmp_path / "repeated", reporter=silent())
    assert repeated.environment["tuning"] is None
    assert not cache.exists()  # neither measured anything
    for other in (stopped, repeated):
        assert compare_runs(run, other).are_equal


def test_the_memory_plan_stays(cache: Path, always: None, pictures: Path, tmp_path: Path):
    wanted = small_recipe(pictures, limits__memory="8GiB", training__epochs=1)
    run = train_run(wanted, tmp_path / "run", reporter=silent())
    rows = run.environment["tuning"]["timings"]
    assert {row["precision"] for row in rows} == {"fp32", "bf16"}
    assert {(row["memory_format"], row["memory"], row["micro_batch_size"]) for row in rows} == {
        ("channels-last", "plain", 0)
    }


def test_code_of_two_precisions_is_held_side_by_side(pictures: Path):
    wanted = small_recipe(pictures, model__name="resnet20-cifar", data__image_size=32, limits__memory="8GiB")
    data_set = open_data_set(wanted.data.name)
    wanted = wanted.replace({"training.precision": "fp32"})
    plan = make_plan(wanted, resolve_recipe(wanted, data_set, CPU), data_set, CPU)
    other = with_settings(plan.chosen.recipe, {"precision": "bf16"})
    beside, alone = plan.predict_trying([other]), plan.chosen.prediction
    assert beside.total == alone.total + plan.predictor.simulation(other).code
    assert plan.predict_trying([with_settings(plan.chosen.recipe, {"threads": 2})]).total == alone.total


def test_an_effort_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str], here: Path):
    assert call(capsys, "train", "--tune", "fast") == (2, "", "--tune is 'fast'; it must be off, quick or full.\n")
    assert list(here.iterdir()) == []


def test_workers_are_as_many_as_reading_needs(pictures: Path, tmp_path: Path):
    data_set = open_data_set(str(pictures))
    recipe = resolve_recipe(small_recipe(pictures, data__in_memory=False), data_set, CPU)
    train, _ = hold_out(data_set, recipe)
    assert isinstance(train, FileExamples)
    preprocessing = Preprocessing(image_size=28, channels=3, fit="crop", mean=(0.5,) * 3, std=(0.5,) * 3)
    state = torch.get_rng_state()
    assert choose_workers(train, preprocessing, recipe, step_s=60.0) == 1
    assert choose_workers(train, preprocessing, recipe, step_s=1e-6) == min(8, num_cores())
    assert torch.equal(torch.get_rng_state(), state)
    broken = make_pictures(tmp_path / "broken", per_class=2)
    for file in broken.glob("*/*.png"):
        file.write_text("no picture")
    unreadable = FileExamples(broken, tuple(f"{name}/00.png" for name in CLASSES), torch.arange(3))
    assert choose_workers(unreadable, preprocessing, recipe, step_s=1.0) is None


def test_a_streamed_run_records_its_workers(cache: Path, always: None, pictures: Path, tmp_path: Path):
    wanted = small_recipe(pictures, data__in_memory=False, training__epochs=1)
    run = train_run(wanted, tmp_path / "run", reporter=silent())
    assert run.recipe.data.workers in range(1, 9)


def choose_as_rank(rank: int, port: int, out: Path) -> None:
    """In a process of its own."""
    be_rank(rank, 2, port)
    choices.LEAST_STEPS, tuning.LEAST_RUN_S, tuning.SHARE = 0, 0.0, 1e9
    os.environ["XDG_CACHE_HOME"] = str(out / f"cache-{rank}")
    with joined(choose_device("cpu")) as ranks:
        found = choose_settings(*reversed(recipes(training__batch_size=64)), 3, CPU, LONG, ranks)
    assert found is not None
    (out / f"{rank}.json").write_text(json.dumps([settings_of(found.recipe), found.record()]))


def test_the_first_ranks_choice_counts(tmp_path: Path):
    port = free_port()
    processes = [start(choose_as_rank, rank, port, tmp_path) for rank in range(2)]
    assert [outcome(process) for process in processes] == [0, 0]
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()
    assert [path.name for path in tmp_path.glob("cache-*")] == ["cache-0"]


def test_a_run_keeps_the_threads_of_the_process_as_they_are(pictures: Path, tmp_path: Path):
    wanted = small_recipe(pictures, training__epochs=1, training__threads=2)
    run = train_run(wanted, tmp_path / "run", reporter=silent())
    assert run.environment["threads"] == 2
    assert torch.get_num_threads() == 1
    assert RunFolder.open(run.path).recipe.training.threads == 2
