"""Training that begins from weights: from a file or another run, with the same classes or others."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_pictures, silent, small_recipe
from rich.console import Console

from candid.checkpoint import RunFolder
from candid.errors import CheckpointError, InputError
from candid.recipe import Recipe
from candid.training import session as session_module
from candid.training.progress import Reporter
from candid.training.run import resume_run, train_run


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_pictures(tmp_path_factory.mktemp("fine") / "pictures")
    shutil.rmtree(folder / "stripes")
    return folder


def fine_tuning(pictures: Path, weights: Path, **changes: object) -> Recipe:
    return small_recipe(
        pictures, model__weights=str(weights), model__freeze="backbone", data__channels=3, training__epochs=1, **changes
    )


def weights_file(run: Path) -> Path:
    return RunFolder.open(run).checkpoints / RunFolder.open(run).load().name / "model.safetensors"


def test_a_frozen_backbone_comes_from_the_run_and_the_head_is_new(run: Path, two_classes: Path, tmp_path: Path):
    heard = io.StringIO()
    recipe = fine_tuning(two_classes, run, model__new_head=True)
    tuned = train_run(recipe, tmp_path / "tuned", reporter=Reporter(Console(file=heard, width=300)))
    source, result = RunFolder.open(run).load().weights, tuned.load().weights
    assert all(torch.equal(result[name], source[name]) for name in source if not name.startswith("head"))
    assert result["head.weight"].shape == (2, 84)
    assert (
        "model.safetensors: 8 tensors for lenet-relu, found by the names of candid.\n"
        "Begun anew: head.weight, head.bias.\n"
    ) in heard.getvalue()
    assert tuned.recipe.model.weights == str(run.resolve())


def test_other_classes_without_a_new_head_are_refused_and_nothing_is_written(
    run: Path, two_classes: Path, tmp_path: Path
):
    with pytest.raises(CheckpointError, match="--new-head"):
        train_run(fine_tuning(two_classes, run), tmp_path / "tuned", reporter=silent())
    assert not (tmp_path / "tuned").exists()


def test_weights_that_are_not_there_are_refused_and_nothing_is_written(pictures: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.pth"):
        train_run(fine_tuning(pictures, tmp_path / "gone.pth"), tmp_path / "tuned", reporter=silent())
    assert not (tmp_path / "tuned").exists()


def test_training_goes_on_from_where_the_weights_are(run: Path, pictures: Path, tmp_path: Path):
    recipe = small_recipe(pictures, model__weights=str(weights_file(run)), training__epochs=1, optimizer__rate=1e-9)
    tuned = train_run(recipe, tmp_path / "tuned", reporter=silent())
    before, after = RunFolder.open(run).load(), tuned.load()
    assert after.validation_accuracy == before.validation_accuracy
    assert all(torch.allclose(after.weights[name], before.weights[name], atol=1e-6) for name in before.weights)


def test_unfreezing_goes_on_where_it_stood(run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    changes = {"model__unfreeze_every": 1, "optimizer__head_factor": 10.0}
    recipe = fine_tuning(pictures, run, **changes).replace({"training.epochs": 4})
    straight = train_run(recipe, tmp_path / "straight", reporter=silent())
    whole, train_one_epoch = session_module.train_one_epoch, session_module.train_one_epoch

    def die_in_the_third_epoch(*arguments):
        if len(arguments[2]) == 2:
            raise KeyboardInterrupt
        return train_one_epoch(*arguments)

    monkeypatch.setattr(session_module, "train_one_epoch", die_in_the_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        train_run(recipe, tmp_path / "killed", reporter=silent())
    monkeypatch.setattr(session_module, "train_one_epoch", whole)
    resumed = resume_run(tmp_path / "killed", reporter=silent())
    expected = straight.load("latest").weights
    assert all(torch.equal(value, expected[name]) for name, value in resumed.load("latest").weights.items())


def test_a_run_killed_before_its_first_checkpoint_begins_from_the_same_weights_or_not_at_all(
    run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = shutil.copyfile(weights_file(run), tmp_path / "start.safetensors")
    recipe = fine_tuning(pictures, file)
    straight = train_run(recipe, tmp_path / "straight", reporter=silent())
    train_one_epoch = session_module.train_one_epoch
    monkeypatch.setattr(session_module, "train_one_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for name in ("killed", "other"):
        with pytest.raises(KeyboardInterrupt):
            train_run(recipe, tmp_path / name, reporter=silent())
    monkeypatch.setattr(session_module, "train_one_epoch", train_one_epoch)
    resumed = resume_run(tmp_path / "killed", reporter=silent())
    expected = straight.load().weights
    assert all(torch.equal(value, expected[name]) for name, value in resumed.load().weights.items())
    shutil.copyfile(weights_file(straight.path), file)
    with pytest.raises(CheckpointError) as caught:
        resume_run(tmp_path / "other", reporter=silent())
    assert str(caught.value) == (
        f"{file} is not the file that {tmp_path / 'other'} began with (its SHA-256 differs); expected the same "
        "weights. Bring them back, or train a new run with another --out."
    )
