import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import call, silent, small_recipe
from rich.console import Console

from benchmarks.memory import HIGHEST, LOWEST, TEN, WITHIN_BUDGET, Case, Outcome, run_case
from candid.data.catalog import open_data_set
from candid.data.examples import DataSet, FileExamples
from candid.device import machine_memory, resident_bytes
from candid.errors import InputError
from candid.recipe import Recipe, RecipeError
from candid.sizes import parse_size, reading, size
from candid.training.memory import Pictures, Predictor
from candid.training.planning import find_limit, largest_batch, make_plan, predict_within_budget
from candid.training.progress import Reporter
from candid.training.run import resume_run, train_run
from candid.training.setup import resolve_recipe
from candid.training.simulation import simulate
from candid.training.stopping import Stopped

CPU = torch.device("cpu")
NAMES = tuple("abcdefghij")
SMALL = (
    Case("resnet20-cifar", 32, 64, steps=2),
    Case("densenet-40-12", 32, 16, steps=2, settings={"training.precision": "fp32", "training.memory": "shared"}),
    Case("mobilenetv2-cifar", 32, 16, steps=2, settings={"optimizer.name": "adam", "training.ema_decay": 0.9}),
)


def files(number: int = 5000, test: int = 1000) -> DataSet:
    """A folder of pictures that nobody reads."""

    def split(size: int) -> FileExamples:
        return FileExamples(Path("nowhere"), tuple(map(str, range(size))), torch.zeros(size))

    return DataSet("photos", NAMES, 3, None, {"train": lambda: split(number), "test": lambda: split(test)})


def recipes(model: str, **changes: object) -> tuple[Recipe, Recipe]:
    """A recipe as it is wanted, and resolved, at 32 px."""
    values: dict[str, Any] = {
        "data.name": "photos", "data.image_size": 32, "data.channels": 3, "data.validation": 500.0,
        "training.precision": "fp32", "training.deterministic": True, "model.name": model,
    }  # fmt: skip
    wanted = Recipe().replace(values | {key.replace("__", "."): value for key, value in changes.items()})
    resolved = resolve_recipe(wanted, files(), CPU)
    return wanted, resolved.replace({"data.name": "photos"})


def plan(model: str, above_floor_mib: float, allow_bf16: bool = False, data: DataSet | None = None, **changes: object):
    """The plan for a budget so far above the floor; the floor of the process that runs the tests is its own."""
    wanted, resolved = recipes(model, **changes)
    floor = Predictor(files(), resolved, CPU).floor
    memory = {"limits.memory": f"{math.ceil(floor / 2**20 + above_floor_mib)}MiB"}
    return make_plan(wanted.replace(memory), resolved.replace(memory), data or files(), CPU, allow_bf16=allow_bf16)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_prediction_is_near_the_measured_peak(case: Case, tmp_path: Path):
    assert_near(run_case(case, tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("case", TEN, ids=str)
def test_the_predictions_for_ten_recipes_over_six_families(case: Case, tmp_path: Path):
    assert_near(run_case(case, tmp_path))


@pytest.mark.long
@pytest.mark.parametrize("case", WITHIN_BUDGET, ids=str)
def test_four_large_trainings_fit_two_gib(case: Case, tmp_path: Path):
    assert run_case(case, tmp_path).peak_mib < 2048


def assert_near(outcome: Outcome) -> None:
    assert LOWEST <= outcome.ratio <= HIGHEST, outcome


def test_what_depends_on_the_batch_is_linear_in_it():
    _, recipe = recipes("resnet20-cifar")
    simulation = simulate(recipe, len(NAMES), CPU)
    saved = saved_by_autograd(recipe, batch_size=4)
    assert simulation.saved_per_image * 4 == pytest.approx(saved, rel=1e-3)  # which leaves logits out
    assert all(moment.parts(8)["batch"] == 2 * moment.parts(4)["batch"] for moment in simulation.training)


def saved_by_autograd(recipe: Recipe, batch_size: int) -> int:
    """Bytes of the storages that a real forward pass keeps and that grow with the batch."""
    from candid.checkpoint import build_network

    model = build_network(recipe, len(NAMES))
    images = torch.rand(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.state_dict().values(), images)}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own and any(side % batch_size == 0 for side in tensor.shape[:1]):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(images)
        torch.nn.functional.cross_entropy(logits, torch.rand(batch_size, len(NAMES)))
    return sum(storage.nbytes() for storage in storages.values() if storage.nbytes() > batch_size * 1000)


def test_the_options_are_tried_in_the_order_that_keeps_the_mathematics():
    chosen = [plan("resnet20-cifar", mib).chosen.settings for mib in (2000, 90, 55)]
    assert chosen[0] == {"training.memory": "plain", "training.precision": "fp32"}
    assert chosen[1] == {"training.memory": "recompute", "training.precision": "fp32"}
    assert chosen[2]["training.micro_batch_size"] < 64


def test_pictures_are_read_from_disk_before_the_precision_is_lowered():
    disk = plan("lenet-relu", 60, data=files(20_000), allow_bf16=True).chosen
    assert (disk.settings["data.in_memory"], disk.recipe.training.precision) == (False, "fp32")
    whole = {"data__image_size": 512, "training__memory": "plain", "training__batch_size": 2}
    lowered = plan("resnet20-cifar", 600, allow_bf16=True, **whole).chosen
    assert (lowered.recipe.training.precision, lowered.recipe.training.micro_batch_size) == ("bf16", 0)
    with pytest.raises(InputError, match="none of 2 ways to train"):
        plan("resnet20-cifar", 600, **whole)


def test_what_the_recipe_settles_is_left_alone():
    settled = plan("resnet20-cifar", 100, training__memory="plain")
    assert {option.recipe.training.memory for option in settled.options} == {"plain"}
    assert settled.chosen.recipe.training.micro_batch_size == 32


def test_the_plan_says_what_splitting_means_for_batch_normalisation():
    said = (
        "Batch normalisation sees micro-batches of 32 and takes its statistics from them, where the recipe has batches "
        "of 64: not quite the same training. To keep even that exact, "
    )
    split = plan("resnet20-cifar", 100, training__memory="plain")
    assert split.text().splitlines()[-1] == f"{said}read the pictures from disk: --set data.in_memory=false."
    kept = plan("resnet20-cifar", 90, training__memory="plain", data__in_memory=True)
    needed = math.ceil(kept.options[0].prediction.total / 2**20)
    assert kept.text().splitlines()[-1] == (
        f"{said}give --memory {needed}MiB: then training.memory=plain, training.precision=fp32 does, without splitting."
    )
    without = plan("all-cnn-c", 230, training__memory="plain", training__batch_size=128)
    assert without.chosen.recipe.training.micro_batch_size == 64
    assert without.text().splitlines()[-1] == (
        "The gradients of the micro-batches add up to those of the batch: nothing else changes."
    )


def test_the_table_marks_what_was_chosen_and_shows_its_parts():
    found = plan("resnet20-cifar", 100.0)
    lines, parts = found.text().splitlines(), found.chosen.prediction.parts
    assert lines[0] == f"{reading(found.given)}."
    assert lines[1].split() == ["keeps", "micro-batch", "pictures", "precision", "evaluates", "memory", "a", "step"]
    rows = [line.split() for line in lines[3:5]]
    assert [row[:2] for row in rows] == [["plain", "whole"], [">", "recompute"]]
    assert lines[5] == (
        f"The fullest moment is {found.chosen.prediction.phase}: "
        f"{', '.join(f'{name} {size(num_bytes)}' for name, num_bytes in parts.items())}."
    )


def test_when_nothing_fits_the_least_that_would_is_named():
    plan("resnet20-cifar", 100)  # the first one leaves a few MiB behind
    with pytest.raises(InputError) as caught:
        plan("resnet20-cifar", 3)
    text = str(caught.value)
    needed = text.rpartition("--memory ")[2].partition("MiB")[0]
    given = text.partition("limits.memory is ")[2].partition(" ")[0]
    evaluated = re.search(r"limits.evaluation_batch_size=(4|8),", text)  # both are below what training needs
    assert evaluated is not None
    assert text == (
        f"limits.memory is {given} ({size(parse_size(given))}), and none of 24 ways to train resnet20-cifar at batch "
        f"64 fits; the least needs {size(int(needed) * 2**20)}, with training.memory=recompute, "
        f"training.micro_batch_size=2, data.in_memory=false, {evaluated[0]} training.precision=fp32. "
        f"Use --memory {needed}MiB, a smaller data.image_size, or a smaller network."
    )


def test_a_budget_below_the_floor_is_refused():
    wanted, resolved = recipes("resnet20-cifar", limits__memory="50MiB")
    with pytest.raises(InputError) as caught:
        make_plan(wanted, resolved, files(), CPU)
    floor = str(caught.value).partition("hold ")[2].partition(" here")[0]
    assert str(caught.value) == (
        f"limits.memory is 50MiB (50 MiB), but Python, PyTorch and candid alone hold {floor} here; it must be more. "
        "Use a larger --memory."
    )


def test_a_budget_above_the_machine_is_refused():
    _, resolved = recipes("resnet20-cifar", limits__memory="900TiB")
    with pytest.raises(InputError) as caught:
        find_limit(resolved, CPU)
    assert str(caught.value) == (
        f"limits.memory is 900TiB (921,600.00 GiB), but there are {size(machine_memory(CPU))} (cpu); it must be at "
        "most that. Use a smaller --memory, or leave it out."
    )


@pytest.mark.parametrize("memory", ["2", "-2GiB", "2 gigs", "GiB", "2XB", "1e3MiB"])
def test_a_budget_that_is_no_size_is_refused(memory: str):
    with pytest.raises(RecipeError) as caught:
        Recipe().replace({"limits.memory": memory})
    assert str(caught.value) == (
        f"limits.memory is {memory!r}; it must be a size with its unit, such as 2GiB (2 x 1024^3 bytes) or 2GB "
        "(2 x 1000^3)."
    )


def test_decimal_and_binary_units_are_told_apart():
    assert reading("2GB") == "2GB is read as 2,000,000,000 bytes, 1.86 GiB"
    assert reading("2GiB") == "2GiB is read as 2,147,483,648 bytes, 2.00 GiB"
    assert (parse_size("1.5 MiB"), parse_size("")) == (3 * 2**19, 0)


def test_a_network_that_cannot_be_followed_is_refused(monkeypatch: pytest.MonkeyPatch):
    _, recipe = recipes("lenet-relu")
    from candid.models.lenet import LeNet

    forward = LeNet.forward
    monkeypatch.setattr(LeNet, "forward", lambda self, x: forward(self, x) if x.sum() > 0 else x)
    with pytest.raises(InputError) as caught:
        simulate(recipe, len(NAMES), CPU)
    reason = str(caught.value).partition("(")[2].partition("); expected")[0]
    assert str(caught.value) == (
        "The memory of lenet-relu cannot be predicted, because what it does depends on the values that it meets "
        f"({reason}); expected a network whose shapes tell all. Train it without --memory."
    )


def test_memory_on_other_devices_is_not_predicted():
    _, recipe = recipes("lenet-relu")
    with pytest.raises(InputError) as caught:
        Predictor(files(), recipe, torch.device("mps"))
    assert str(caught.value) == (
        "The memory of mps cannot be predicted; expected cpu or cuda. Train there without --memory."
    )


def test_a_simulation_draws_no_number_and_makes_nothing_large():
    _, recipe = recipes("wrn-28-10")
    state, before = torch.get_rng_state(), resident_bytes()
    simulate(recipe, len(NAMES), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert resident_bytes() - before < 50 * 2**20  # its weights alone are 139 MiB


def test_the_largest_batch_fits_and_one_more_does_not():
    _, recipe = recipes("resnet20-cifar")
    predictor = Predictor(files(), recipe, CPU)
    limit = predictor.predict(recipe).total
    largest = largest_batch(predictor, recipe.replace({"limits.evaluation_batch_size": 1}), limit)
    sized = recipe.replace({"training.batch_size": largest, "limits.evaluation_batch_size": 1})
    assert predictor.predict(sized).total <= limit
    assert predictor.predict(sized.replace({"training.batch_size": largest + 1})).total > limit


def test_pictures_are_counted_without_reading_them():
    _, recipe = recipes("lenet-relu")
    assert Pictures.of(files(), recipe) == Pictures(4500, 500, 1000, None)
    mini = open_data_set("fashion-mnist-mini")
    share = recipe.replace({"data.validation": 0.1, "data.channels": 1})
    assert Pictures.of(mini, share) == Pictures(5400, 600, 1000, 28 * 28)
    assert Pictures.of(mini, share.replace({"data.validation": 0.0})).validation == 0


def test_a_budgeted_run_is_the_same_bit_for_bit_and_records_its_choice(pictures: Path, tmp_path: Path):
    memory = f"{resident_bytes() // 2**20 + 600}MiB"
    free = train_run(small_recipe(pictures), tmp_path / "free", reporter=silent())
    tight = train_run(small_recipe(pictures, limits__memory=memory), tmp_path / "tight", reporter=silent())
    ours, theirs = free.load("latest"), tight.load("latest")
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)
    assert (tight.recipe.training.memory, tight.recipe.limits.memory) == ("plain", memory)
    result = json.loads((tight.path / "result.json").read_text())
    assert result["predicted_memory_mib"] > 0
    assert json.loads((free.path / "result.json").read_text())["predicted_memory_mib"] is None
    assert result["peak_memory_mib"] > 0


def test_a_run_says_what_it_is_predicted_to_need_and_goes_on_with_its_settings(pictures: Path, tmp_path: Path):
    memory = f"{resident_bytes() // 2**20 + 600}MiB"
    recipe = small_recipe(pictures, limits__memory=memory, model__name="resnet20-cifar", training__memory="recompute")
    heard = io.StringIO()
    reporter = Reporter(Console(file=heard, width=300))
    with pytest.raises(Stopped):
        train_run(recipe, tmp_path / "run", last_step=2, reporter=reporter)
    settings = (tmp_path / "run" / "recipe.toml").read_text()
    resume_run(tmp_path / "run", reporter=reporter)
    assert (tmp_path / "run" / "recipe.toml").read_text() == settings
    said, result = heard.getvalue().splitlines(), json.loads((tmp_path / "run" / "result.json").read_text())
    predictions = [line for line in said if line.startswith("Predicted to need ")]
    needed = [line.partition("need ")[2].partition(" of ")[0] for line in predictions]
    assert predictions == [f"Predicted to need {what} of {limit(memory)} of memory" for what in needed]
    assert len(predictions) == 2
    held, predicted = (size(result[key] * 2**20) for key in ("peak_memory_mib", "predicted_memory_mib"))
    assert said[-1].endswith(f" Memory: at most {held} were held, {predicted} predicted.")


def limit(memory: str) -> str:
    return size(parse_size(memory))


def test_a_run_that_goes_on_keeps_its_settings_or_is_refused():
    _, recipe = recipes("resnet20-cifar", limits__memory="20GiB")
    prediction = predict_within_budget(recipe, files(), CPU)
    assert prediction.total < 20 * 2**30
    tight = recipe.replace({"limits.memory": "60MiB"})
    with pytest.raises(InputError) as caught:
        predict_within_budget(tight, files(), CPU)
    needed = str(caught.value).partition("needs ")[2].partition(" with")[0]
    assert str(caught.value) == (
        f"limits.memory is 60MiB (60 MiB), but the run needs {needed} with the settings that it began with, and it "
        "goes on by those. Use a larger --memory."
    )


def test_the_command_shows_the_plan_and_draws_what_if(pictures: Path, here: Path, capsys: pytest.CaptureFixture[str]):
    # the plan counts what this process holds already, which grows with the tests before
    code, out, err = call(capsys, "plan", "--data", pictures, "--memory", "8GB", "--set", "training.batch_size=8")
    assert code == 0, err
    assert out.splitlines()[0] == "8GB is read as 8,000,000,000 bytes, 7.45 GiB."
    code, out, _ = call(capsys, "plan", "--data", pictures, "--what-if", "--model", "resnet20-cifar")
    lines = out.splitlines()
    assert lines[0] == "The largest batch, taken whole, by what the forward pass keeps:"
    assert lines[1].split() == ["budget", "plain", "recompute"]
    assert [line[:6].strip() for line in lines[3:9]] == ["1 GiB", "2 GiB", "4 GiB", "8 GiB", "16 GiB", "24 GiB"]
    assert lines[-1] == "Figure: resnet20-cifar-memory.png"
    assert (here / "resnet20-cifar-memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--figure", "x.png"], "--figure goes with --what-if; write candid plan --what-if --figure FILE."),
        (
            ["--allow", "fp16"],
            "--allow is 'fp16'; it must be bf16. Everything else keeps the mathematics and needs no leave.",
        ),
        (
            ["--what-if", "--figure", "mine.png"],
            "mine.png is no figure that candid drew, so it stays as it is. Give another --figure FILE.",
        ),
    ],
)
def test_wrong_arguments_of_the_command(
    arguments: list[str], text: str, here: Path, capsys: pytest.CaptureFixture[str]
):
    (here / "mine.png").write_bytes(b"\x89PNG of mine")
    assert call(capsys, "plan", *arguments) == (2, "", f"{text}\n")
