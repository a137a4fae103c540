import json
import shutil
import stat
from pathlib import Path

import pytest
import torch
from conftest import silent

from candid.checkpoint import Checkpoint, RunFolder, TrainingState, restore_network
from candid.data.preprocessing import Preprocessing
from candid.errors import CheckpointError, InputError
from candid.models import build_model
from candid.recipe import Recipe
from candid.training.run import resume_run

RECIPE = Recipe().replace({"model.name": "lenet-bn", "data.image_size": 28, "data.channels": 1})


def checkpoint(step: int, accuracy: float | None = 0.5) -> Checkpoint:
    torch.manual_seed(step)
    return Checkpoint(
        weights=build_model("lenet-bn", 3, 1).state_dict(),
        recipe=RECIPE,
        class_names=("猫", "a/b", 'quote"d'),
        preprocessing=Preprocessing(image_size=28, channels=1, fit="pad", mean=(0.1,), std=(0.3,)),
        step=step,
        epoch=step // 10,
        validation_accuracy=accuracy,
    )


SCALER = {"scale": 1024.0, "_growth_tracker": 7}
STATE = TrainingState({"optimizer.0.momentum_buffer": torch.arange(3.0)}, [{"epoch": 1, "train_loss": 0.25}], SCALER)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", RECIPE, {"device": "cpu"})


def test_a_run_of_a_newer_version_is_refused_and_stays_as_it_is(run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / "recipe.toml").read_text().replace("[training]", "[training]\nnew_key = 3")
    (copy / "recipe.toml").write_text(text)
    for use in (RunFolder.open(copy).load, lambda: resume_run(copy, reporter=silent())):
        with pytest.raises(CheckpointError) as caught:
            use()
        assert str(caught.value).endswith(
            f"\n{copy / 'recipe.toml'} holds no recipe of this version. Use the candid version that wrote it, or undo "
            "what was changed in it."
        )
        assert str(caught.value).startswith("training.new_key is not a key of a recipe. ")
    assert file_names(copy) == file_names(run)


def file_names(run: Path) -> list[str]:
    return sorted(str(file.relative_to(run)) for file in run.rglob("*"))


def test_what_was_saved_is_what_is_loaded(folder: RunFolder):
    saved = checkpoint(10)
    folder.save(saved, STATE, is_best=True)
    loaded, state, problems = RunFolder.open(folder.path).load_to_resume()
    for name, value in saved.weights.items():
        assert torch.equal(loaded.weights[name], value)
        assert loaded.weights[name].dtype == value.dtype
    assert (loaded.recipe, loaded.class_names, loaded.preprocessing) == (
        saved.recipe,
        saved.class_names,
        saved.preprocessing,
    )
    assert (loaded.step, loaded.epoch, loaded.validation_accuracy) == (10, 1, 0.5)
    assert torch.equal(state.tensors["optimizer.0.momentum_buffer"], torch.arange(3.0))
    assert (state.history, state.gradient_scaler, problems) == (STATE.history, SCALER, [])


def test_channels_last_weights_are_stored_by_value(folder: RunFolder):
    saved = checkpoint(10)
    weights = {
        name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
        for name, value in saved.weights.items()
    }
    folder.save(Checkpoint(**{**saved.__dict__, "weights": weights}), STATE, is_best=True)
    assert all(torch.equal(folder.load().weights[name], value) for name, value in saved.weights.items())


def test_the_best_and_the_last_two_are_kept(folder: RunFolder):
    for step, best in ((10, True), (20, False), (30, False), (40, False)):
        folder.save(checkpoint(step), STATE, is_best=best)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
        "step-00000010",
        "step-00000030",
        "step-00000040",
    ]
    assert folder.load().step == 10
    assert folder.load("latest").step == 40


def test_without_a_best_the_latest_is_the_result(folder: RunFolder):
    for step in (10, 20):
        folder.save(checkpoint(step, None), STATE, is_best=False)
    assert folder.load().step == 20
    assert folder.chosen == "latest"


def test_files_can_be_read_by_others(folder: RunFolder):
    folder.save(checkpoint(10), STATE, is_best=True)
    for path in (folder.checkpoints / "step-00000010").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444, path


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_changed_byte_is_found_and_the_older_checkpoint_is_used(folder: RunFolder, name: str):
    for step in (10, 20):
        folder.save(checkpoint(step), STATE, is_best=step == 20)
    path = folder.checkpoints / "step-00000020" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    older, _, problems = folder.load_to_resume()
    assert older.step == 10
    reason = "is damaged" if name == "manifest.json" else "is not what was saved (its SHA-256 differs)"
    if name != "manifest.json":
        assert problems == [f"{path} {reason}. Use a good copy of the run, or train it again."]
    else:
        assert len(problems) == 1
    if name in ("model.safetensors", "state.json"):  # what predicting reads
        with pytest.raises(CheckpointError) as caught:
            folder.load()
        assert str(caught.value) == problems[0]


def test_a_missing_file_is_named(folder: RunFolder):
    folder.save(checkpoint(10), STATE, is_best=True)
    path = folder.checkpoints / "step-00000010" / "model.safetensors"
    path.unlink()
    with pytest.raises(CheckpointError) as caught:
        folder.load()
    assert str(caught.value) == f"{path} is missing. Use a good copy of the run, or train it again."


def test_an_unfinished_save_is_ignored_and_cleared(folder: RunFolder):
    folder.save(checkpoint(10), STATE, is_best=True)
    unfinished = folder.checkpoints / ".step-00000020.partial"
    shutil.copytree(folder.checkpoints / "step-00000010", unfinished)
    assert folder.load_to_resume()[0].step == 10
    assert not unfinished.exists()


@pytest.mark.parametrize(
    ("version", "remedy"), [(9, "Install a newer candid."), (1, "Use the candid version that wrote it.")]
)
def test_another_format_is_refused_in_words(folder: RunFolder, version: int, remedy: str):
    folder.save(checkpoint(10), STATE, is_best=True)
    place = folder.checkpoints / "step-00000010"
    manifest = json.loads((place / "manifest.json").read_text())
    other = manifest["files"] if version == 1 else manifest | {"format_version": version}
    (place / "manifest.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError) as caught:
        folder.load()
    assert str(caught.value) == f"{place} has format version {version}; expected version 2. {remedy}"


def test_a_run_without_checkpoint_says_how_to_go_on(folder: RunFolder):
    with pytest.raises(CheckpointError) as caught:
        folder.load()
    assert str(caught.value) == (
        f"{folder.path} has no finished epoch yet (latest.json is missing). "
        f"Run `candid train --resume --out {folder.path}`."
    )
    with pytest.raises(CheckpointError) as caught:
        folder.load_to_resume()
    assert (
        str(caught.value)
        == f"{folder.path} has no checkpoint to go on from. Use another --out, and train from the start."
    )


def test_an_existing_folder_is_never_overwritten(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError) as caught:
        RunFolder.create(tmp_path / "mine", RECIPE, {})
    assert str(caught.value) == (
        f"{tmp_path}/mine exists; a run never overwrites another. Give another --out, or go on with --resume."
    )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_an_unknown_run_gets_the_nearest_names(folder: RunFolder, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        RunFolder.open(tmp_path / "rum")
    assert str(caught.value) == f"{tmp_path}/rum does not exist; expected a run folder. Did you mean run?"
    with pytest.raises(InputError) as caught:
        RunFolder.open(tmp_path / "other" / "x")
    assert (
        str(caught.value)
        == f"{tmp_path}/other/x does not exist; expected a run folder. `candid train` makes runs in the folder runs/."
    )
    (tmp_path / "plain").mkdir()
    with pytest.raises(InputError) as caught:
        RunFolder.open(tmp_path / "plain")
    assert str(caught.value) == (
        f"{tmp_path}/plain is not a run (it has no recipe.toml); expected a run folder. "
        "`candid train` makes runs in the folder runs/."
    )


def test_the_network_comes_back_in_evaluation_mode():
    model = restore_network(checkpoint(10))
    assert not model.training
    assert all(torch.equal(value, checkpoint(10).weights[name]) for name, value in model.state_dict().items())
