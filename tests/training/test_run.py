import csv
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_pictures, silent, small_recipe
from rich.console import Console
from safetensors.torch import load_file

import candid
from candid.checkpoint import RunFolder
from candid.data.catalog import open_data_set
from candid.data.loading import open_training_data
from candid.errors import CandidError, CheckpointError, DataError, InputError
from candid.kept_evaluation import load_evaluation
from candid.randomness import shuffled
from candid.recipe import Recipe
from candid.training import session as session_module
from candid.training.progress import Reporter
from candid.training.run import resume_run, train_run
from candid.training.setup import resolve_recipe

TIME_COLUMNS = ("seconds", "images_per_second", "peak_memory_mib")


def table(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in csv.DictReader(file)]


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    last = sorted((run / "checkpoints").iterdir())[-1]
    return load_file(last / "model.safetensors") | load_file(last / "optimizer.safetensors")


def same_tensors(a: Path, b: Path) -> bool:
    ours, theirs = final_tensors(a), final_tensors(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_leaves_what_the_design_promises(run: Path):
    rows = table(run)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    result = json.loads((run / "result.json").read_text())
    evaluation = load_evaluation(run / "evaluation-test")
    assert result["test_accuracy"] == evaluation.accuracy
    assert result["test_accuracy_interval"] == list(evaluation.accuracy_interval)
    assert result["test_images"] == evaluation.num_images
    assert result["validation_accuracy"] == max(float(row["validation_accuracy"]) for row in rows)
    best = next(row for row in rows if float(row["validation_accuracy"]) == result["validation_accuracy"])
    assert (result["best_step"], result["best_epoch"]) == (int(best["step"]), int(best["epoch"]))
    assert json.loads((run / "best.json").read_text())["checkpoint"] == f"step-{result['best_step']:08d}"
    looks = [json.loads(line) for line in (run / "test_looks.jsonl").read_text().splitlines()]
    assert [look["accuracy"] for look in looks] == [result["test_accuracy"]]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["training_images"] == int(rows[0]["images"])
    assert not list(run.rglob("*.partial"))


def test_re_evaluating_the_best_gives_its_stored_accuracy(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert candid.evaluate(copy, "validation").accuracy == RunFolder(run).load().validation_accuracy


def test_the_recipe_in_the_folder_repeats_the_run_bit_for_bit(run: Path, tmp_path: Path):
    again = train_run(Recipe.from_toml(run / "recipe.toml"), tmp_path / "again", reporter=silent()).path
    assert table(again) == table(run)
    assert same_tensors(again, run)
    assert (again / "recipe.toml").read_text() == (run / "recipe.toml").read_text()


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


@pytest.mark.parametrize(
    "changes", [{}, {"training__ema_decay": 0.9, "schedule__name": "plateau"}], ids=["plain", "ema"]
)
def test_a_killed_run_goes_on_to_the_same_bits(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
):
    recipe = small_recipe(pictures, augmentation__crop_padding=2, **changes)
    straight = train_run(recipe, tmp_path / "straight", reporter=silent()).path
    train_one_epoch = session_module.train_one_epoch

    def die_in_the_third_epoch(trainer, batches, losses, after_step):
        if len(losses) == 2:
            next(iter(batches))
            raise Killed
        train_one_epoch(trainer, batches, losses, after_step)

    monkeypatch.setattr(session_module, "train_one_epoch", die_in_the_third_epoch)
    with pytest.raises(Killed):
        train_run(recipe, tmp_path / "killed", reporter=silent())
    monkeypatch.setattr(session_module, "train_one_epoch", train_one_epoch)
    heard = io.StringIO()
    resumed = resume_run(tmp_path / "killed", reporter=Reporter(Console(file=heard, width=200))).path
    assert "Resumed at step 8, after 2 of 4 epochs." in heard.getvalue().splitlines()
    assert table(resumed) == table(straight)
    assert same_tensors(resumed, straight)
    for name in ("best.json", "latest.json"):
        assert (resumed / name).read_text() == (straight / name).read_text()


def test_a_finished_run_is_not_resumed(run: Path):
    with pytest.raises(InputError) as caught:
        resume_run(run, reporter=silent())
    assert str(caught.value) == (
        f"{run} is finished; there is nothing to resume. "
        f"Use another --out to train again, or more --epochs than 4; `candid report {run}` shows it."
    )


def test_a_run_is_not_resumed_on_other_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_pictures(tmp_path / "pictures")
    monkeypatch.setattr(session_module, "finish_run", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_run(small_recipe(folder, training__epochs=1), tmp_path / "run", reporter=silent())
    file = open_data_set(str(folder)).openers["train"]().files[0]
    (folder / file).unlink()
    with pytest.raises(DataError) as caught:
        resume_run(tmp_path / "run", reporter=silent())
    assert str(caught.value) == (
        f"The training pictures of {folder} are not those that {tmp_path}/run began with; expected the same ones. "
        "Bring them back, or train a new run with another --out."
    )


def test_divergence_stops_the_run_and_saves_nothing_of_it(pictures: Path, tmp_path: Path):
    recipe = small_recipe(pictures, optimizer__name="sgd", optimizer__rate=1e30, schedule__name="constant")
    with pytest.raises(CandidError) as caught:
        train_run(recipe, tmp_path / "run", reporter=silent())
    data_set = open_data_set(str(pictures))
    files = open_training_data(data_set, resolve_recipe(recipe, data_set, torch.device("cpu"))).train.files
    order = shuffled(len(files), 0, "order", 0).tolist()[16:32]  # the second batch: the first step broke the weights
    assert str(caught.value) == (
        "Training diverged at step 2 (epoch 1, rate 1e+30): the loss is nan. "
        f"The batch: {', '.join(files[index] for index in order[:3])} and 13 more. Nothing of this step was saved. "
        "Lower optimizer.rate (now 1e+30), or set schedule.warmup or training.clip_norm."
    )
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    with pytest.raises(CheckpointError):
        RunFolder(tmp_path / "run").load()


def test_the_test_split_is_not_opened_before_the_end(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "data"
    for split in ("train", "val", "test"):
        make_pictures(folder / split, per_class=4)
    for path in (folder / "test").rglob("*.png"):
        path.write_text("not readable, and nobody should notice before training is over")
    finished = []
    finish_run = session_module.finish_run
    monkeypatch.setattr(session_module, "finish_run", lambda *arguments: finished.append(1) or finish_run(*arguments))
    with pytest.raises(CandidError, match="12 pictures cannot be used"):
        train_run(small_recipe(folder, training__epochs=2), tmp_path / "run", reporter=silent())
    assert finished == [1]
    assert len(table(tmp_path / "run")) == 2


def test_without_a_test_split_the_result_says_so(tmp_path: Path):
    make_pictures(tmp_path / "data" / "train", per_class=8)
    heard = io.StringIO()
    reporter = Reporter(Console(file=heard, width=300))
    out = train_run(small_recipe(tmp_path / "data", training__epochs=1), tmp_path / "run", reporter=reporter).path
    accuracy = json.loads((out / "result.json").read_text())["validation_accuracy"]
    assert heard.getvalue().splitlines()[-1] == (
        "This data set has no test split, so there is no independent number. "
        f"Validation accuracy {100 * accuracy:.2f} %; it chose the checkpoint, which flatters it."
    )
    assert not (out / "test_looks.jsonl").exists()
    assert load_evaluation(out / "evaluation-validation").accuracy == accuracy


def test_training_on_everything_reports_the_last_epoch(tmp_path: Path):
    for split in ("train", "test"):
        make_pictures(tmp_path / "data" / split, per_class=5)
    recipe = small_recipe(tmp_path / "data", training__epochs=2, data__validation=0)
    heard = io.StringIO()
    out = train_run(recipe, tmp_path / "run", reporter=Reporter(Console(file=heard, width=300))).path
    assert "the last epoch: nothing was held out to choose by." in heard.getvalue()
    assert not (out / "best.json").exists()
    assert {row["validation_accuracy"] for row in table(out)} == {""}
    assert json.loads((out / "result.json").read_text())["best_epoch"] == 2


def test_the_first_of_equal_bests_is_kept(pictures: Path, tmp_path: Path):
    recipe = small_recipe(pictures, optimizer__rate=1e-9, training__epochs=3)
    out = train_run(recipe, tmp_path / "run", reporter=silent()).path
    assert len({row["validation_accuracy"] for row in table(out)}) == 1
    assert json.loads((out / "result.json").read_text())["best_epoch"] == 1


def test_a_line_an_epoch_says_what_matters(pictures: Path, tmp_path: Path):
    heard = io.StringIO()
    reporter = Reporter(Console(file=heard, width=300))
    train_run(small_recipe(pictures, training__epochs=2), tmp_path / "run", reporter=reporter)
    lines = heard.getvalue().splitlines()
    train, validation = (len(open_data_set(str(pictures)).openers[split]()) for split in ("train", "validation"))
    assert lines[0] == (
        f"lenet-relu (44,131 parameters) on {pictures}: {train} pictures to train, {validation} to validate, "
        "3 classes, 28 px"
    )
    assert lines[1] == f"cpu (1 threads), fp32, channels-last; run folder {tmp_path}/run"
    for word in ("epoch   1/2", "rate", "train loss", "validation loss", "accuracy", "images/s", "MiB"):
        assert word in lines[2]


def test_auto_values_are_resolved_and_recorded(pictures: Path):
    data_set = open_data_set(str(pictures))
    recipe = resolve_recipe(small_recipe(pictures), data_set, torch.device("cpu"))
    assert recipe.data.name == str(pictures.resolve())
    assert recipe.data.image_size == 28
    assert recipe.data.channels == 3
    assert recipe.data.validation == 0.1
    assert recipe.training.memory_format == "channels-last"
    assert recipe.training.precision == "fp32"  # without normalisation layers, rounding costs more than it saves
    assert resolve_recipe(recipe, data_set, torch.device("cpu")) == recipe


def test_users_pictures_are_left_as_they_are(tmp_path: Path):
    folder = make_pictures(tmp_path / "pictures", per_class=8)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.png")}
    train_run(small_recipe(folder, training__epochs=1), tmp_path / "run", reporter=silent())
    assert {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()
    } == before
