"""What many tests share: small pictures, a small run. The network is closed but for this machine itself."""

import io
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from candid.cli import main
from candid.durable import cache_folder
from candid.models.compiling import load_pieces
from candid.recipe import Recipe
from candid.training.progress import Reporter
from candid.training.run import train_run

torch.set_num_threads(1)  # the tests themselves run side by side


def leave_the_users_cache_alone() -> None:
    """Give each process of the tests, with those that it starts, a cache of its own with the user's compiled pieces."""
    owner = os.environ.get("PYTEST_XDIST_WORKER", "the only one")
    if os.environ.get("CANDID_CACHE_OWNER") == owner:  # started by it, and reads this file once more
        return
    os.environ["CANDID_CACHE_OWNER"] = owner
    for name in ("dense_pieces", "layer_pieces"):
        load_pieces(f"{name}.cpp")  # compiles them where they are not there yet
    folder = Path(tempfile.mkdtemp()) / "candid"
    folder.mkdir()
    for library in cache_folder().glob("*_pieces-*.so"):
        (folder / library.name).symlink_to(library)
    os.environ["XDG_CACHE_HOME"] = str(folder.parent)


leave_the_users_cache_alone()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


CLASSES = ("circle", "cross", "stripes")
NO_PICTURE = "no format that candid reads; expected a whole picture (JPEG, PNG, GIF, BMP, TIFF, WebP, PPM)."


def draw(class_name: str, number: int, side: int = 28) -> Image.Image:
    """A picture of a class: its shape at a place, in a colour and with noise of its own."""
    random = np.random.default_rng([CLASSES.index(class_name), number])
    row, column = np.mgrid[:side, :side]
    y, x = random.uniform(side * 0.4, side * 0.6, 2)
    shapes = {
        "circle": (row - y) ** 2 + (column - x) ** 2 < (side / 4) ** 2,
        "cross": (abs(row - y) < side / 10) | (abs(column - x) < side / 10),
        "stripes": (row + int(y)) % 6 < 3,
    }
    color = random.integers(150, 255, 3)
    pixels = shapes[class_name][:, :, None] * color + random.integers(0, 60, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_pictures(folder: Path, per_class: int = 24, side: int = 28) -> Path:
    """A folder DIR/<class>/NN.png."""
    for class_name in CLASSES:
        (folder / class_name).mkdir(parents=True)
        for number in range(per_class):
            draw(class_name, number, side).save(folder / class_name / f"{number:02}.png")
    return folder


@contextmanager
def without_privileges() -> Generator[None]:
    """Have the system refuse what it refuses everybody: root may read anything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def small_recipe(pictures: Path, **changes: object) -> Recipe:
    """A recipe that trains in a moment and learns the three shapes; dotted keys with `__` for the dot."""
    values: dict[str, object] = {
        "data.name": str(pictures),
        "model.name": "lenet-relu",
        "training.epochs": 4,
        "training.batch_size": 16,
        "optimizer.name": "adam",
        "optimizer.rate": 3e-3,
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return Recipe().replace(values)


def silent() -> Reporter:
    """A reporter nobody hears."""
    return Reporter(Console(file=io.StringIO()))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture
def readable_by_all() -> Generator[Path]:
    """An empty folder that everybody may read, unlike those of pytest."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        for place, *_ in os.walk(folder):  # what nobody may read, nobody can remove
            for path in Path(place).iterdir():
                path.chmod(0o755)


@pytest.fixture(scope="session")
def hundred_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes in train and test; links to a hundred files, because a hundred thousand would take long to write."""
    folder = tmp_path_factory.mktemp("many")
    for class_name in map(str, range(10)):
        (folder / "train" / class_name).mkdir(parents=True)
        (folder / "test" / class_name).mkdir(parents=True)
        for number in range(10):
            first = folder / "train" / class_name / f"{number:04}.png"
            draw(CLASSES[number % 3], 100 * int(class_name) + number, side=8).save(first)
            for copy in range(number + 10, 9000, 10):
                os.link(first, folder / "train" / class_name / f"{copy:04}.png")
            for copy in range(number, 1000, 10):
                os.link(first, folder / "test" / class_name / f"t{copy:04}.png")
    return folder


@pytest.fixture(scope="session")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must leave it as it is."""
    out = tmp_path_factory.mktemp("runs") / "shapes"
    return train_run(small_recipe(pictures), out, reporter=silent()).path
