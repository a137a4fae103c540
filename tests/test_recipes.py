"""The recipes that ship: that they fit their networks and data, and say and do what their sources do."""

import re
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import call, make_pictures, silent

from benchmarks.recipes import PAGE, write_page
from candid.data.catalog import CATALOG
from candid.data.loading import cut_epoch
from candid.errors import InputError
from candid.models import build_model, find_variant
from candid.paper_tables import COLUMNS, DENSENET_TABLE_2, DENSENET_TABLE_3
from candid.recipe import Recipe
from candid.recipes import GROUPS, RECIPES, describe_recipe, find_recipe, notes, papers
from candid.training.optimization import RateSchedule
from candid.training.run import train_run
from candid.training.stopping import Stopped

PLUS = {
    "C10": "cifar10",
    "C10+": "cifar10-augmented",
    "C100": "cifar100",
    "C100+": "cifar100-augmented",
    "SVHN": "svhn",
}
# Notes on DenseNet, section 3, for 10 classes; another class has a weight for each of the last maps, and a bias.
DENSENETS = {
    "densenet-40-12": (1_019_722, 16 + 36 * 12),
    "densenet-100-12": (6_979_642, 16 + 96 * 12),
    "densenet-100-24": (27_249_082, 16 + 96 * 24),
    "densenet-bc-100-12": (769_162, 342),
    "densenet-bc-250-24": (15_324_406, 1734),
    "densenet-bc-190-40": (25_624_430, 2190),
}
IMAGENET = {
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet161": 28_681_000,
    "densenet264": 33_337_704,
}
QUICK = [  # of each function that makes a table of recipes, one with a small network
    "photos",
    "notes/lenet-bn",
    "notes/densenet-cifar-plateau",
    "papers/densenet-40-12-cifar10",
    "papers/densenet121-imagenet",
    "papers/resnet110-cifar10-augmented",
    "papers/preact-resnet164-cifar100-augmented",
    "papers/stochastic-depth-resnet110-cifar10-augmented",
    "papers/wrn-16-4-dropout-svhn",
    "papers/resnext29-8x64d-cifar10-augmented",
    "papers/fractalnet-cifar10-augmented",
    "papers/highway19-cifar10-augmented",
    "papers/all-cnn-c-cifar10-augmented",
]


@cache
def count_parameters(model: str, num_classes: int, channels: int, image_size: int) -> int:
    with torch.device("meta"):
        network = build_model(model, num_classes, channels, image_size)
    return sum(parameter.numel() for parameter in network.parameters())


def parameters_of(recipe: Recipe) -> int:
    """Of the recipe's network for the data that it names."""
    entry, variant = CATALOG[recipe.data.name], find_variant(recipe.model.name)
    image_size = recipe.data.image_size or entry.image_size or variant.image_size
    return count_parameters(recipe.model.name, len(entry.class_names) or 1000, entry.channels, image_size)


def schedule_of(name: str) -> RateSchedule:
    """The learning rate of a recipe on the whole data that it names."""
    recipe = find_recipe(name)
    entry = CATALOG[recipe.data.name]
    held_out = entry.validation if recipe.data.validation is None else recipe.data.validation
    num_examples = entry.sizes["train"] - int(held_out if held_out >= 1 else held_out * entry.sizes["train"])
    num_steps = len(cut_epoch(torch.arange(num_examples), recipe.training.batch_size))
    return RateSchedule(recipe.schedule, recipe.optimizer.rate, num_steps, recipe.training.epochs)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_network_and_data_and_says_where_it_comes_from(capsys, name: str):
    recipe = find_recipe(name)
    assert recipe.name == name
    assert parameters_of(recipe) > 0
    assert re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+)?", name), "a shell would want quotes"
    assert recipe.model.dropout is None or recipe.model.dropout == 0 or find_variant(recipe.model.name).has_dropout
    assert all(paragraph.endswith(".") and "\n" not in paragraph for paragraph in describe_recipe(name))
    code, out, err = call(capsys, "recipes", name)
    assert (code, err) == (0, "")
    assert out.startswith("# ")
    assert Recipe.from_mapping(tomllib.loads(out)) == recipe


@pytest.mark.parametrize("group", [*notes.GROUPS, *papers.GROUPS], ids=lambda group: group.title)
def test_what_a_source_says_is_not_passed_off_as_measured(group):
    assert "nothing of it was run here" in group.text
    assert "Departure" in group.text or "fb.resnet.torch" in group.text


@pytest.mark.parametrize("model", DENSENETS)
def test_every_row_of_densenets_table_has_its_recipes(model: str):
    row = next(row for row in DENSENET_TABLE_2 if row.model == model)
    parameters, num_maps = DENSENETS[model]
    for column, error in zip(COLUMNS, row.errors, strict=True):
        name = f"papers/{model}-{PLUS[column]}"
        if error is None:
            assert name not in RECIPES
            continue
        recipe = find_recipe(name)
        assert RECIPES[name].summary == f"{error:.2f} % error in the paper"
        assert parameters_of(recipe) == parameters + (90 * (num_maps + 1) if "C100" in column else 0)
        assert recipe.model.dropout == (0.0 if "+" in column else 0.2)
        assert (recipe.augmentation.mirror, recipe.augmentation.crop_padding > 0) == ("+" in column,) * 2


@pytest.mark.parametrize("model", IMAGENET)
def test_every_row_of_densenets_imagenet_table_has_its_recipe(model: str):
    assert parameters_of(find_recipe(f"papers/{model}-imagenet")) == IMAGENET[model]
    printed = {row.model: f"{row.top1[0]:.2f} % top-1 error in the paper" for row in DENSENET_TABLE_3}
    assert RECIPES[f"papers/{model}-imagenet"].summary == printed.get(model, "no error in the paper's last version")


@pytest.mark.parametrize("row", DENSENET_TABLE_2, ids=lambda row: row.method)
def test_errors_that_densenets_table_quotes_are_those_of_the_recipes(row):
    """But for those of other versions of the papers, and of networks that are not in the zoo as they were trained."""
    others = {"nin", "dsn", "highway19", "wrn-16-8", "wrn-28-10"}
    if row.model in others or row.method == "FractalNet":
        return
    network = row.model.removesuffix("-cifar") + ("-dropout" if row.method.endswith("dropout") else "")
    network = "constant-depth-resnet110" if "by Huang" in row.method else network
    for column, error in zip(COLUMNS, row.errors, strict=True):
        if error is None or (column == "SVHN" and "depth" in network):  # 152 layers there
            continue
        size = "-batch64" if (row.model, column) == ("preact-resnet1001", "C10+") else ""
        assert RECIPES[f"papers/{network}{size}-{PLUS[column]}"].summary.startswith(f"{error:.2f} % error in ")


@pytest.mark.parametrize(
    ("name", "num_steps", "falls"),
    [  # steps of the whole run; at each of `falls` the rate becomes what stands beside it
        ("papers/densenet-40-12-cifar10-augmented", 300 * 782, [(150 * 782, 0.01), (225 * 782, 0.001)]),
        ("papers/densenet-40-12-svhn", 40 * 9350, [(20 * 9350, 0.01), (30 * 9350, 0.001)]),
        ("papers/densenet121-imagenet", 90 * 5005, [(30 * 5005, 0.01), (60 * 5005, 0.001)]),
        ("papers/densenet161-imagenet", 100 * 10010, [(30 * 10010, 0.01), (60 * 10010, 1e-3), (90 * 10010, 1e-4)]),
        ("papers/resnet20-cifar10-augmented", 64_064, [(32_000, 0.01), (48_000, 0.001)]),
        ("papers/resnet110-cifar10-augmented", 64_064, [(32_000, 0.01), (48_000, 0.001)]),
        ("papers/preact-resnet164-cifar100-augmented", 64_064, [(32_000, 0.01), (48_000, 0.001)]),
        ("papers/stochastic-depth-resnet110-cifar10", 500 * 352, [(250 * 352, 0.01), (375 * 352, 0.001)]),
        ("papers/wrn-28-10-cifar10-augmented", 200 * 391, [(60 * 391, 0.02), (120 * 391, 0.004), (160 * 391, 0.0008)]),
        ("papers/wrn-16-4-dropout-svhn", 160 * 4722, [(80 * 4722, 0.001), (120 * 4722, 0.0001)]),
        ("papers/resnext29-8x64d-cifar100-augmented", 300 * 391, [(150 * 391, 0.01), (225 * 391, 0.001)]),
        ("papers/fractalnet-cifar10", 180_000, [(90_000, 2e-3), (135_000, 2e-4), (157_500, 2e-5), (168_750, 2e-6)]),
        ("papers/highway19-cifar10-augmented", 200_000, [(100_000, 2.5e-3), (150_000, 2.5e-4), (175_000, 2.5e-5)]),
        ("papers/all-cnn-c-cifar10", 350 * 391, [(200 * 391, 5e-3), (250 * 391, 5e-4), (300 * 391, 5e-5)]),
        ("notes/densenet-cifar", 20 * 352, [(10 * 352, 0.01), (15 * 352, 0.001)]),
        ("notes/densenet-bc-40-12", 300 * 704, [(150 * 704, 0.01), (225 * 704, 0.001)]),
        ("notes/nin", 5 * 422, []),
    ],
)
def test_the_rate_falls_at_the_steps_of_the_source(name: str, num_steps: int, falls: Sequence[tuple[int, float]]):
    schedule = schedule_of(name)
    assert schedule.epochs * schedule.steps_per_epoch == num_steps
    before = schedule.peak
    for step, rate in falls:
        assert schedule.rate(step - 1) == pytest.approx(before)
        assert schedule.rate(step) == pytest.approx(rate)
        before = rate
    assert schedule.rate(num_steps - 1) == pytest.approx(before)


@pytest.mark.parametrize("name", ["papers/resnet110-cifar10-augmented", "papers/preact-resnet110-cifar10-augmented"])
def test_deep_residual_networks_warm_up_for_400_steps(name: str):
    schedule = schedule_of(name)
    assert [schedule.rate(step) for step in (0, 199, 399, 400)] == pytest.approx([0.1 / 400, 0.05, 0.1, 0.1])
    assert schedule_of("papers/resnet56-cifar10-augmented").rate(0) == 0.1


def test_the_other_schedule_of_the_notes_halves_when_the_loss_stalls():
    schedule = schedule_of("notes/densenet-cifar-plateau")
    assert schedule.rate(5 * 352, [1.0] * 5) == 0.1
    assert schedule.rate(6 * 352, [1.0] * 6) == 0.05


@pytest.fixture(scope="module")
def split_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made-up")
    for split in ("train", "val"):
        make_pictures(folder / split, per_class=4, side=32)
    return folder


@pytest.mark.parametrize("name", QUICK)
def test_a_recipe_of_each_kind_trains(name: str, split_pictures: Path, tmp_path: Path):
    changes = {"data.name": str(split_pictures), "data.image_size": 32, "training.batch_size": 6}
    with suppress(Stopped):
        train_run(find_recipe(name).replace(changes), tmp_path / "run", last_step=1, reporter=silent())
    assert (tmp_path / "run" / "latest.json").is_file()


def test_every_function_that_makes_a_table_is_tried():
    makers = {name: getattr(shipped.make, "func", None) for name, shipped in RECIPES.items()}
    assert set(makers.values()) == {makers[name] for name in QUICK}


def test_recipes_are_listed_by_their_source(capsys):
    code, out, err = call(capsys, "recipes")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert (code, err) == (0, "")
    start = lines.index("ResNeXt")
    assert lines[start : start + 2] == [
        "ResNeXt",
        "papers/resnext29-8x64d-cifar10-augmented cifar10 3.65 % error in the paper",
    ]
    assert len(lines) == 2 + len(GROUPS) + len(RECIPES)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("papers/resnet20", "papers/resnet20-cifar10-augmented"),
        ("papers/densenet121", "papers/densenet121-imagenet"),
        ("papers/all-cnn-c", "papers/all-cnn-c-cifar10"),
        ("notes/densenet-cifar10", "notes/densenet-cifar"),
    ],
)
def test_an_unknown_recipe_gets_the_nearest_names(name: str, nearest: str):
    for ask in (find_recipe, describe_recipe):
        with pytest.raises(InputError) as caught:
            ask(name)
        assert str(caught.value) == f"No recipe is called {name!r}, and no file is. Did you mean {nearest}?"


def test_imagenet_must_be_brought(capsys, here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    folder = here / "cache" / "candid" / "imagenet"
    assert call(capsys, "train", "papers/densenet121-imagenet") == (
        3,
        "",
        "candid cannot download imagenet (terms: non-commercial research and education, on request at "
        f"https://image-net.org). Expected its pictures in {folder}/train/CLASS and {folder}/val/CLASS, or in "
        "folders named so in a folder that you name with --data-dir; val becomes the test split.\n",
    )
    assert not (here / "runs").exists()


def test_the_page_is_what_the_generator_writes():
    assert PAGE.read_text() == write_page(GROUPS), f"{PAGE} is out of date; remake it with `make tables`"
