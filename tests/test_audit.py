import csv
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, call, draw, make_pictures, silent, small_recipe

from candid.audit import audit, deal
from candid.checkpoint import RunFolder
from candid.data.catalog import open_data_set
from candid.errors import InputError

FLIPPED = {("circle", "cross"): (1, 9), ("cross", "stripes"): (4,), ("stripes", "circle"): (2, 7)}
"""Numbers of pictures of a class that lie in the folder of another."""


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes, five of which are in the wrong folder."""
    folder = make_pictures(tmp_path_factory.mktemp("data") / "shapes", per_class=40)
    for (truth, label), numbers in FLIPPED.items():
        for number in numbers:
            (folder / truth / f"{number:02}.png").unlink()
            draw(truth, number).save(folder / label / f"{truth}-{number}.png")
    return folder


@pytest.fixture(scope="module")
def audited(mislabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audits") / "shapes"
    audit(small_recipe(mislabelled, training__epochs=8), out, folds=3, reporter=silent())
    return out


def suspects_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "suspects" / "suspects.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_class_is_dealt_evenly_and_as_the_seed_says():
    labels = torch.tensor([0] * 50 + [1] * 31 + [2] * 7)[torch.randperm(88, generator=torch.Generator().manual_seed(3))]
    fold_of = deal(labels, 4, seed=0)
    for label in range(3):
        sizes = torch.bincount(fold_of[labels == label], minlength=4)
        assert sizes.max() - sizes.min() <= 1
    assert torch.equal(deal(labels, 4, seed=0), fold_of)
    assert not torch.equal(deal(labels, 4, seed=1), fold_of)


def test_pictures_in_the_wrong_folder_are_found(audited: Path, mislabelled: Path):
    planted = {f"{label}/{truth}-{n}.png": truth for (truth, label), numbers in FLIPPED.items() for n in numbers}
    found = suspects_of(audited)[:5]
    right = [row for row in found if planted.get(row["file"]) == row["suggestion"]]
    audited_files = open_data_set(str(mislabelled)).openers["train"]().files
    to_find = [file for file in audited_files if file in planted]  # a tenth of the pictures is for the test
    assert len(to_find) >= 4
    assert len(right) >= len(to_find) - 1, found
    assert all(float(row["suggestion_probability"]) > float(row["label_probability"]) for row in found)
    shown = len(list((audited / "suspects").glob("*.png")))
    assert shown == len(suspects_of(audited))


def test_each_fold_is_a_run_without_the_pictures_that_it_judges(audited: Path, mislabelled: Path):
    num_pictures = len(open_data_set(str(mislabelled)).openers["train"]())
    folds = [RunFolder.open(path) for path in sorted(audited.glob("fold-*"))]
    assert [fold.path.name for fold in folds] == ["fold-1", "fold-2", "fold-3"]
    assert sum(fold.environment["training_images"] for fold in folds) == 2 * num_pictures
    for fold in folds:
        assert fold.recipe.data.validation == 0
        assert not (fold.path / "evaluation-test").exists()


def test_an_audit_that_was_broken_off_goes_on(audited: Path, mislabelled: Path, tmp_path: Path):
    out = Path(shutil.copytree(audited, tmp_path / "shapes"))
    before = suspects_of(out)
    shutil.rmtree(out / "fold-2")
    shutil.rmtree(out / "suspects")
    kept = (out / "fold-1" / "result.json").stat().st_mtime_ns
    audit(small_recipe(mislabelled, training__epochs=8), out, folds=3, reporter=silent())
    assert (out / "fold-1" / "result.json").stat().st_mtime_ns == kept
    assert suspects_of(out) == before


def test_folds_that_a_class_cannot_fill_are_refused(mislabelled: Path, tmp_path: Path):
    for folds in (1, 1000):
        with pytest.raises(InputError) as caught:
            audit(small_recipe(mislabelled), tmp_path / "out", folds, reporter=silent())
        text = str(caught.value)
        assert text.startswith(f"--folds is {folds}; it must be from 2 to ")
        assert text.endswith(
            f", the number of training pictures of the smallest class of {mislabelled}. Choose another number."
        )
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_users_is_left_alone(mislabelled: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError) as caught:
        audit(small_recipe(mislabelled), tmp_path / "mine", 2, reporter=silent())
    assert str(caught.value) == (
        f"{tmp_path / 'mine'} exists and is no audit; expected a new folder, or one to go on with. "
        "Choose another --out."
    )
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_the_command_lists_them_and_writes_a_page(audited: Path, mislabelled: Path, tmp_path: Path, capsys):
    out = Path(shutil.copytree(audited, tmp_path / "shapes"))
    code, said, _ = call(
        capsys,
        "audit",
        mislabelled,
        "--model",
        "lenet-relu",
        "--folds",
        3,
        "--epochs",
        8,
        "--out",
        out,
        "--tune",
        "off",
    )
    assert code == 0
    number = len(suspects_of(out))
    assert said.splitlines()[-1] == (
        f"{number} labels to look at. List: {out / 'suspects' / 'suspects.csv'}, page: {out / 'audit.html'}"
    )
    page = (out / "audit.html").read_text()
    assert f'<p class="number">{number}</p>' in page
    assert page.count("<figure") == number
    assert all(name in said for name in CLASSES if any(row["label"] == name for row in suspects_of(out)[:20]))
