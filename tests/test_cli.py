import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NO_PICTURE, call, draw, make_pictures

from candid.cli import main
from candid.recipe import Recipe

SMALL = ("--model", "lenet-relu", "--epochs", "1", "--set", "training.batch_size=16")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["train", "--model", "resnet19"],
            "No model is called 'resnet19'. Did you mean resnet18 or resnet152 or resnet101?",
        ),
        (
            ["train", "--data", "cifar-10"],
            "No data set or folder is called 'cifar-10'. Did you mean cifar10 or cifar100?",
        ),
        (
            ["train", "notes/lenett"],
            "No recipe is called 'notes/lenett', and no file is. Did you mean notes/lenet or notes/alexnet?",
        ),
        (["train", "mine.toml"], "No recipe is called 'mine.toml', and no file is. `candid recipes` shows all names."),
        (
            ["train", "--set", "optimizer.learning_rate=1"],
            "optimizer.learning_rate is not a key of a recipe. Did you mean optimizer.rate?",
        ),
        (["train", "--set", "seed"], "--set seed has no value; write --set seed=VALUE."),
        (["train", "--epochs", "-3"], "training.epochs is -3; it must be above 0."),
        (
            ["train", "--precision", "fp8"],
            "training.precision is 'fp8'; it must be 'auto', 'fp32', 'bf16' or 'fp16'.",
        ),
        (
            ["train", "--precision", "fp16", "--device", "cpu"],
            "training.precision is 'fp16' on the CPU; it must be 'fp32', 'bf16' or 'auto' there.",
        ),
        (
            ["train", "--device", "cuda:7"],
            "There is no device 'cuda:7'; this machine has cpu. Use --device auto.",
        ),
        (["train", "--device", "tpu0"], "There is no device 'tpu0'; this machine has cpu. Use --device auto."),
        (
            ["train", "--data-dir", "nowhere"],
            "nowhere is not a folder; expected the one that holds your data sets (--data-dir).",
        ),
        (
            ["train", "--set", "data.image_size=4000000"],
            "data.image_size is 4000000; it must be at most 4096.",
        ),
        (["train", "--set", "data.channels=2"], "data.channels is 2; it must be 0, 1 or 3."),
        (
            ["train", "--set", "data.validation=6000"],
            "data.validation is 6000; it must be below the 6000 training examples of fashion-mnist-mini. "
            "Hold out fewer, or a share such as 0.1.",
        ),
        (
            ["train", "--set", "data.image_size=8"],
            "image_size is 8 px; lenet-relu needs at least 16: use larger images or another model.",
        ),
        (
            ["train", "--model", "resnet20-cifar", "--set", "model.dropout=0.1"],
            "dropout is 0.1, but resnet20-cifar has none. Set it to 0, or choose another network.",
        ),
        (
            ["train", "--resume"],
            "--resume goes on with a run; name it with --out RUN.",
        ),
        (
            ["train", "--max-time", "soon"],
            "limits.max_time is 'soon'; it must be a time such as 90s, 30m or 2h.",
        ),
        (
            ["train", "--save-every", "0steps"],
            "limits.save_every is '0steps'; it must be '1epoch', a number of steps such as 200steps, "
            "or a time such as 5m.",
        ),
        (
            ["train", "--resume", "--out", "runs/x"],
            "runs/x does not exist; expected a run folder. `candid train` makes runs in the folder runs/.",
        ),
        (
            ["evaluate", "runs/x"],
            "runs/x does not exist; expected a run folder. `candid train` makes runs in the folder runs/.",
        ),
        (
            ["report", "runs/x"],
            "runs/x does not exist; expected a run folder. `candid train` makes runs in the folder runs/.",
        ),
        (
            ["predict", "runs/x", "a.jpg"],
            "runs/x does not exist; expected a run folder. `candid train` makes runs in the folder runs/.",
        ),
        (
            ["recipes", "papers/resnet"],
            "No recipe is called 'papers/resnet', and no file is. Did you mean papers/resnet20-cifar10-augmented or "
            "papers/resnet32-cifar10-augmented or papers/resnet44-cifar10-augmented?",
        ),
    ],
)
def test_nonsense_is_answered_in_words_and_nothing_is_written(capsys, here: Path, arguments: list[str], text: str):
    code, out, err = call(capsys, *arguments)
    assert (code, out, err) == (2, "", f"{text}\n")
    assert list(here.iterdir()) == []


def test_an_unknown_split_gets_the_nearest_names(capsys, run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    before = sorted(copy.rglob("*"))
    code, _, err = call(capsys, "evaluate", copy, "--split", "tset")
    name = Recipe.from_toml(copy / "recipe.toml").data.name
    assert (code, err) == (2, f"{name} has no split 'tset' in this run. Did you mean test?\n")
    code, _, err = call(capsys, "evaluate", copy, "--split", "val")
    assert (code, err) == (2, f"{name} has no split 'val' in this run. Did you mean validation?\n")
    code, _, err = call(capsys, "evaluate", copy, "--split", "holdout")
    assert (code, err) == (2, f"{name} has no split 'holdout' in this run. It has train, validation, test.\n")
    assert sorted(copy.rglob("*")) == before


def test_a_run_folder_that_exists_is_left_alone(capsys, here: Path, pictures: Path):
    (here / "mine").mkdir()
    code, _, err = call(capsys, "train", "--data", pictures, *SMALL, "--out", "mine")
    assert (code, err) == (
        2,
        "mine exists; a run never overwrites another. Give another --out, or go on with --resume.\n",
    )
    assert list((here / "mine").iterdir()) == []


def test_data_that_cannot_be_used_has_its_own_exit_code(capsys, here: Path, tmp_path: Path):
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = call(capsys, "train", "--data", empty)
    assert (code, err) == (
        3,
        f"{empty} holds no pictures. Expected {empty}/<class>/<picture> or {empty}/train/<class>/<picture>.\n",
    )
    bad = make_pictures(tmp_path / "bad")
    path = bad / "circle" / "01.png"
    path.write_text("no picture")
    code, _, err = call(capsys, "train", "--data", bad, *SMALL, "--set", "data.image_size=28")
    assert (code, err) == (
        3,
        "1 picture cannot be used; expected whole pictures, so replace or remove them, "
        "or go on without by --bad-images skip:\n"
        f"  {path} cannot be decoded: {NO_PICTURE}\n",
    )
    assert list(here.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(capsys, here: Path, pictures: Path):
    (here / "file").write_text("mine")
    code, out, err = call(capsys, "train", "--data", pictures, *SMALL, "--out", "file/run")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "file/.run.partial cannot be used: Not a directory. Expected a writable place with room; try another."
    )
    assert (here / "file").read_text() == "mine"


def test_compiling_needs_a_compiler(capsys, here: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(here))
    code, _, err = call(capsys, "train", "--data", pictures, *SMALL, "--compile")
    assert (code, err) == (
        2,
        "training.compile is true, but there is no C++ compiler; it must be false, or install g++ or clang++.\n",
    )
    assert list(here.iterdir()) == []


def test_a_damaged_checkpoint_has_its_own_exit_code(capsys, run: Path, tmp_path: Path, pictures: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    for path in copy.glob("checkpoints/*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    code, out, err = call(capsys, "predict", copy, pictures)
    best = json.loads((copy / "best.json").read_text())["checkpoint"]
    place = copy / "checkpoints" / best / "model.safetensors"
    assert (code, out) == (4, "")
    assert (
        err == f"{place} is not what was saved (its SHA-256 differs). Use a good copy of the run, or train it again.\n"
    )


def test_classes_that_the_network_does_not_know_are_named(capsys, run: Path, tmp_path: Path):
    other = make_pictures(tmp_path / "other")
    (other / "circle").rename(other / "zebra")
    code, _, err = call(capsys, "evaluate", run, "--data", other)
    assert (code, err) == (
        2,
        f"The classes of {other} are not those of the run: the network does not know zebra; "
        "the data set lacks circle. Evaluate on data with the same class names.\n",
    )


def test_predict_prints_a_table_json_and_csv(capsys, here: Path, run: Path, tmp_path: Path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    draw("stripes", 1).save(folder / "a.png")
    (folder / "b.png").write_text("no picture")
    problem = f"{folder}/b.png cannot be decoded: {NO_PICTURE}"

    code, out, err = call(capsys, "predict", run, folder)
    assert (code, err) == (3, f"{problem}\n")
    assert "a.png" in out
    assert "stripes" in out

    code, out, _ = call(capsys, "predict", run, folder, "--json", "--top", "2")
    first, second = map(json.loads, out.splitlines())
    assert code == 3
    assert [ranked["class"] for ranked in first["classes"]][0] == "stripes"
    assert len(first["classes"]) == 2
    assert second == {"file": f"{folder}/b.png", "problem": problem}

    code, out, _ = call(capsys, "predict", run, folder, "--csv", "p.csv")
    rows = list(csv.DictReader(io.StringIO((here / "p.csv").read_text())))
    assert (code, out) == (3, "")
    assert rows[0]["class_1"] == "stripes"
    assert float(rows[0]["probability_1"]) > 0.5
    assert rows[1]["problem"] == problem


def test_a_look_at_the_test_split_is_recorded(capsys, run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    code, out, _ = call(capsys, "evaluate", copy, "--split", "test")
    assert code == 0
    assert out.startswith("Test accuracy ")
    assert len((copy / "test_looks.jsonl").read_text().splitlines()) == 2
    call(capsys, "evaluate", copy, "--split", "validation")
    assert len((copy / "test_looks.jsonl").read_text().splitlines()) == 2
    assert (copy / "evaluation-validation" / "predictions.csv").is_file()


def test_mirror_images_give_a_number_of_their_own(capsys, run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    own = (copy / "evaluation-test" / "summary.json").read_text()
    code, out, _ = call(capsys, "evaluate", copy, "--split", "test", "--mirror")
    assert code == 0
    assert re.match(r"Test accuracy \d+\.\d\d % averaged over mirror images \(95 % interval ", out)
    assert out.splitlines()[-1] == f"Written to {copy}/evaluation-test-mirrored"
    assert json.loads((copy / "evaluation-test-mirrored" / "summary.json").read_text())["mirror"] is True
    assert (copy / "evaluation-test" / "summary.json").read_text() == own
    assert len((copy / "test_looks.jsonl").read_text().splitlines()) == 2


def test_a_number_on_other_data_does_not_replace_the_runs_own(capsys, run: Path, tmp_path: Path):
    copy = shutil.copytree(run, tmp_path / "copy")
    own = (copy / "evaluation-test" / "summary.json").read_text()
    other = make_pictures(tmp_path / "other", per_class=30)
    code, out, _ = call(capsys, "evaluate", copy, "--split", "test", "--data", other)
    assert code == 0
    assert out.splitlines()[-1] == f"Written to {copy}/evaluation-test-other"
    assert json.loads((copy / "evaluation-test-other" / "summary.json").read_text())["data"] == str(other)
    assert (copy / "evaluation-test" / "summary.json").read_text() == own
    assert len((copy / "test_looks.jsonl").read_text().splitlines()) == 1


def test_naming_the_runs_own_data_is_still_a_look_at_its_test_split(capsys, run: Path, tmp_path: Path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "copy")
    own = Path(Recipe.from_toml(run / "recipe.toml").data.name)
    monkeypatch.chdir(own.parent)
    code, out, _ = call(capsys, "evaluate", copy, "--split", "test", "--data", own.name)
    assert (code, out.splitlines()[-1]) == (0, f"Written to {copy}/evaluation-test")
    assert len((copy / "test_looks.jsonl").read_text().splitlines()) == 2


def test_names_are_listed(capsys):
    assert "densenet-bc-100-12" in call(capsys, "models")[1]
    assert "fashion-mnist-mini" in call(capsys, "datasets")[1]


def test_a_shipped_recipe_is_a_recipe_file(capsys, here: Path, pictures: Path):
    (here / "mine.toml").write_text(call(capsys, "recipes", "default")[1])
    code, out, _ = call(capsys, "train", "mine.toml", "--data", pictures, *SMALL, "--set", "data.image_size=28")
    assert code == 0
    assert out == (
        "Report: runs/lenet-relu-pictures/report.html\n"
        "Try it: candid predict runs/lenet-relu-pictures YOUR-PICTURE.jpg\n"
    )
    code, out, _ = call(capsys, "train", "mine.toml", "--data", pictures, *SMALL, "--set", "data.image_size=28")
    assert out.startswith("Report: runs/lenet-relu-pictures-2/report.html")


def test_help_does_not_wait_for_torch():
    code = "import sys; from candid.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_debug_shows_where_an_error_came_from(capsys, here: Path):
    from candid.errors import InputError

    with pytest.raises(InputError):
        main(["--debug", "report", "nowhere"])
