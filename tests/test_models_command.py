import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import call

from candid.models import REGISTRY
from candid.paper_tables import PAPERS
from candid.recipe import Recipe
from candid.recipes import find_recipe
from candid.zoo import read_entries

PNG = b"\x89PNG"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(name: str, recipe: Recipe, test_accuracy: float | None) -> None:
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe.to_toml())
    (folder / "result.json").write_text(json.dumps({"test_accuracy": test_accuracy}))


def test_the_list_names_every_network_under_its_family(capsys):
    code, out, err = call(capsys, "models")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["network", "input", "classes", "parameters", "multiply-adds"]
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(REGISTRY)
    row = next(line for line in lines if line.startswith("  densenet121-cifar "))
    assert row.split() == ["densenet121-cifar", "3x32x32", "10", "6,956,298", "888,350,720"]
    paper = lines.index("densenet: DenseNet (Huang, Liu, van der Maaten, Weinberger 2017, arXiv:1608.06993)")
    assert lines[paper + 1].split()[0] == "densenet121"


def test_the_list_does_not_wait_for_torch():
    code = "import sys; from candid.cli import main\ntry: main(['models'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_list_as_json(capsys):
    entries = json.loads(call(capsys, "models", "--json")[1])
    assert [entry["name"] for entry in entries] == list(REGISTRY)
    assert next(entry for entry in entries if entry["name"] == "densenet121-cifar") == {
        "family": "densenet",
        "name": "densenet121-cifar",
        "channels": 3,
        "image_size": 32,
        "num_classes": 10,
        "parameters": 6_956_298,
        "multiply_adds": 888_350_720,
        "depth": 121,
    }


def test_a_network_layer_by_layer(capsys):
    code, out, err = call(capsys, "models", "lenet")
    assert (code, err) == (0, "")
    assert out == (
        "lenet: LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998, "
        '"Gradient-based learning applied to document recognition")\n'
        "1x28x28 to 10 classes, 5 layers with weights deep\n"
        "\n"
        "layer       kind             output  parameters  multiply-adds     KiB\n"
        "──────────────────────────────────────────────────────────────────────\n"
        "conv1       conv 5x5        6x24x24         156         86,400    13.5\n"
        "activation  sigmoid         6x24x24           –              –    13.5\n"
        "pool        max pool 2x2/2  6x12x12           –              –    3.38\n"
        "conv2       conv 5x5         16x8x8       2,416        153,600       4\n"
        "activation  sigmoid          16x8x8           –              –       4\n"
        "pool        max pool 2x2/2   16x4x4           –              –       1\n"
        "linear1     linear              120      30,840         30,720   0.469\n"
        "activation  sigmoid             120           –              –   0.469\n"
        "linear2     linear               84      10,164         10,080   0.328\n"
        "activation  sigmoid              84           –              –   0.328\n"
        "head        linear               10         850            840  0.0391\n"
        "──────────────────────────────────────────────────────────────────────\n"
        "all                                      44,426        281,640      41\n"
        "\n"
        "Parameters: 44,426 (0.17 MiB in fp32).\n"
        "Multiply-adds: 281,640 for one image, without biases.\n"
        "Activations: 0.04 MiB for one image in fp32, every output once; 0.08 MiB as the usual summary counts for "
        "forward and backward: twice the outputs of all layers and, once more, of all blocks as the next block "
        "receives them.\n"
    )


def test_blocks_are_headings_and_totals_come_last(capsys):
    lines = call(capsys, "models", "densenet121-cifar")[1].splitlines()
    start = lines.index("blocks.0.layers.1")
    assert [line.split()[0] for line in lines[start + 1 : start + 9]] == [
        "norm1", "relu", "conv1", "norm2", "relu", "conv2", "blocks.0", "blocks.0.layers.2",
    ]  # fmt: skip
    assert lines[-3] == "Parameters: 6,956,298 (26.54 MiB in fp32)."
    assert lines[-1].startswith(
        "Activations: 57.77 MiB for one image in fp32, every output once; 115.98 MiB as the usual summary counts"
    )


def test_parameters_of_auxiliary_classifiers_are_told_apart(capsys):
    lines = call(capsys, "models", "dsn")[1].splitlines()
    assert lines[-3] == (
        "Parameters: 3,547,496 (13.53 MiB in fp32; "
        "2,580,510 of them in auxiliary classifiers, which only training uses)."
    )


def test_a_network_for_other_data_as_json(capsys):
    answer = json.loads(call(capsys, "models", "resnet18", "--image-size", 64, "--classes", 7, "--json")[1])
    assert (answer["image"], answer["num_classes"], answer["depth"]) == ([3, 64, 64], 7, 18)
    assert answer["parameters"] == 11_689_512 - 993 * 513
    assert answer["layers"][0] == {
        "name": "stem.0",
        "is_module": True,
        "kind": "conv 7x7/2",
        "output": [64, 32, 32],
        "parameters": 9408,
        "multiply_adds": 9408 * 32**2,
        "activation_bytes": 4 * 64 * 32**2,
    }
    assert answer["multiply_adds"] == sum(layer["multiply_adds"] for layer in answer["layers"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["resnet19"], "No model is called 'resnet19'. Did you mean resnet18 or resnet152 or resnet101?"),
        (
            ["lenet", "--image-size", "15"],
            "image_size is 15 px; lenet needs at least 16: use larger images or another model.",
        ),
        (
            ["--classes", "5"],
            "--image-size and --classes change a network; write candid models NAME with them.",
        ),
        (
            ["--figure", "a.png"],
            "--figure goes with --paper; write candid models --paper densenet --figure FILE.",
        ),
        (["lenet", "--paper", "densenet"], "--paper stands alone; use no NAME and no --json with it."),
        (["--paper", "dense"], "No paper with tables is called 'dense'. Did you mean densenet?"),
        (["--paper", "lenet-5"], "No paper with tables is called 'lenet-5'. Known papers: densenet."),
    ],
)
def test_nonsense_is_answered_in_words_and_nothing_is_written(capsys, here: Path, arguments: list[str], text: str):
    assert call(capsys, "models", *arguments) == (2, "", f"{text}\n")
    assert list(here.iterdir()) == []


def test_a_papers_tables_stand_beside_our_counts(capsys, here: Path):
    code, out, err = call(capsys, "models", "--paper", "densenet")
    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    printed = lines.index(["DenseNet,", "k", "=", "12", "40", "1.0", "M", "7.00", "5.24", "27.55", "24.42", "1.79"])
    assert lines[printed + 1] == ["densenet-40-12", "1,019,722", "0"]
    assert ["stochastic-depth-resnet1202", "19,421,274", "+9.2"] in lines
    assert ["densenet264", "33,337,704", "22.15", "20.80", "6.12", "5.29"] in lines
    assert "Nothing measured here: no finished run in runs/ has the data of a column" in out
    assert out.splitlines()[-1] == "Figure: densenet-figure-4.png"
    assert (here / "densenet-figure-4.png").read_bytes().startswith(PNG)


def test_finished_runs_on_a_columns_data_are_told(capsys, here: Path):
    recipe = find_recipe("papers/densenet-40-12-cifar10-augmented")
    plain = {"augmentation.crop_padding": 0, "augmentation.mirror": False}
    write_run("a", recipe, 0.94)
    write_run("b", recipe.replace({"seed": 1}), 0.95)
    write_run("plain", recipe.replace(plain), 0.92)
    write_run("svhn", recipe.replace(plain | {"data.name": "svhn-extra"}), 0.98)
    write_run("more", recipe.replace({"augmentation.cutout": 8}), 0.99)
    write_run("mirrored", recipe.replace({"augmentation.crop_padding": 0}), 0.99)
    write_run("other-network", recipe.replace({"model.name": "resnet20-cifar"}), 0.99)
    write_run("other-data", recipe.replace({"data.name": "fashion-mnist"}), 0.99)
    write_run("untested", recipe, None)
    (here / "runs" / "damaged").mkdir()
    (here / "runs" / "damaged" / "result.json").write_text("{")
    code, out, err = call(capsys, "models", "--paper", "densenet", "--figure", "mine.png")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    row = next(line for line in lines if line.startswith("  densenet-40-12"))
    assert row.split() == ["densenet-40-12", "1,019,722", "0", "8.00", "5.50", "2.00"]
    start = lines.index("Measured here, on test, with the checkpoint that validation chose:")
    assert lines[start + 1 : start + 6] == [
        "  runs/a: densenet-40-12, C10+, 6.00 %, 300 epochs",
        "  runs/b: densenet-40-12, C10+, 5.00 %, 300 epochs",
        "  runs/plain: densenet-40-12, C10, 8.00 %, 300 epochs",
        "  runs/svhn: densenet-40-12, SVHN, 2.00 %, 300 epochs",
        "",
    ]


def test_the_figure_replaces_its_own_like_and_nothing_else(capsys, here: Path):
    place = here / "densenet-figure-4.png"
    assert call(capsys, "models", "--paper", "densenet")[0] == 0
    place.write_bytes(place.read_bytes() + b"older")
    assert call(capsys, "models", "--paper", "densenet")[0] == 0
    assert not place.read_bytes().endswith(b"older")
    place.write_bytes(PNG + b" somebody's own")
    assert call(capsys, "models", "--paper", "densenet") == (
        2,
        "",
        "densenet-figure-4.png is no figure that candid drew, so it stays as it is. Give another --figure FILE.\n",
    )
    assert place.read_bytes() == PNG + b" somebody's own"


def test_every_network_of_a_paper_is_in_the_zoo():
    names = {entry.name for entry in read_entries()}
    for paper in PAPERS.values():
        assert {row.model for row in (*paper.small_images, *paper.imagenet)} <= names


# where our exact count does not round to what the paper prints, and why
DIFFERENT = {
    "fractalnet",  # the layers in its paper have 33.7 M; 38.6 M does not follow from them
    "stochastic-depth-resnet1202",  # that of resnet1202, 19.4 M, in both its papers
    "preact-resnet1001",  # 10.2 M is without the parameters of batch normalisation
}


def test_counts_round_to_the_papers():
    parameters = {entry.name: entry.parameters for entry in read_entries()}
    for row in PAPERS["densenet"].small_images:
        if row.millions is not None and row.model not in DIFFERENT:
            assert round(parameters[row.model] / 1e6, 1) == row.millions, row.model
