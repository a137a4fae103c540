import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, call, draw, make_pictures
from foreign import GpleissDenseNet
from PIL import Image
from safetensors.torch import save_file

import candid
from candid.checkpoint import RunFolder
from candid.errors import InputError
from candid.models import build_model
from candid.weights.layouts import TORCHVISION
from candid.weights.meaning import choose_preprocessing, find_origin

MODEL = ("--model", "resnet20-cifar", "--out", "run")
LOADED = "116 tensors for resnet20-cifar, found by the names of candid."
CIFAR10 = "Pictures: 32 px, the middle square, mean 0.4914,0.4822,0.4465, std 0.247,0.2435,0.2616 (those of cifar10)."


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet20.pth"
    content = {"epoch": 12, "best_acc": 0.5, "state_dict": build_model("resnet20-cifar", 10).state_dict()}
    torch.save(content, path)
    return path


def test_an_imported_run_predicts_what_its_network_says(capsys, here: Path, weights: Path) -> None:
    code, out, err = call(capsys, "import", weights, *MODEL, "--data", "cifar10")
    assert (code, out) == (0, "Imported into run\nTry it: candid predict run YOUR-PICTURE.jpg\n")
    assert err == (
        f"resnet20.pth: {LOADED}\nIt says: epoch 12, best_acc 0.5.\nTaken from its entry state_dict.\n{CIFAR10}\n"
    )
    draw("circle", 1, side=32).save("picture.png")
    code, out, _ = call(capsys, "predict", "run", "picture.png", "--json", "--top", "10")
    found = {ranked["class"]: ranked["probability"] for ranked in json.loads(out)["classes"]}

    model = build_model("resnet20-cifar", 10).eval()
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    pixels = torch.from_numpy(np.array(Image.open("picture.png"))).float() / 255
    with torch.no_grad():
        expected = model(((pixels - mean) / std).permute(2, 0, 1)[None]).softmax(1)[0]
    names = candid.load("run").checkpoint.class_names
    assert names[0] == "airplane"
    assert [found[name] for name in names] == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_run_says_where_its_weights_came_from(capsys, here: Path, weights: Path) -> None:
    assert call(capsys, "import", weights, *MODEL, "--data", "cifar10")[0] == 0
    run = RunFolder.open(Path("run"))
    assert run.environment["imported"] == {
        "source": str(weights),
        "file": "resnet20.pth",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "model": "resnet20-cifar",
        "layout": "candid",
        "tensors": 116,
        "entry": "state_dict",
        "facts": {"epoch": 12, "best_acc": 0.5},
        "notes": ["Taken from its entry state_dict."],
    }
    checkpoint = run.load()
    assert (checkpoint.step, checkpoint.epoch, checkpoint.validation_accuracy) == (0, 0, None)
    assert (checkpoint.recipe.data.name, checkpoint.recipe.data.validation) == ("cifar10", 0.0)


def test_an_imported_run_is_evaluated_and_reported(capsys, here: Path, pictures: Path) -> None:
    torch.save(GpleissDenseNet(num_classes=3).state_dict(), "dense.pth")
    arguments = ("--model", "densenet-bc-40-12", "--out", "run", "--data", pictures, "--mean", "0.5,0.5,0.5")
    assert call(capsys, "import", "dense.pth", *arguments, "--std", "0.25,0.25,0.25")[0] == 0
    assert candid.load("run").checkpoint.class_names == CLASSES
    code, _, err = call(capsys, "report", "run")
    assert (code, err) == (
        2,
        "run holds weights that were imported: nothing was measured yet, so there is nothing to report. "
        "Run `candid evaluate run --split test` first.\n",
    )
    code, out, _ = call(capsys, "evaluate", "run", "--split", "test")
    assert (code, out.splitlines()[-1]) == (0, "Written to run/evaluation-test")
    assert call(capsys, "evaluate", "run")[0] == 0
    assert call(capsys, "report", "run")[:2] == (0, "Report: run/report.html\n")
    page = " ".join(Path("run/report.html").read_text().split())
    assert "The weights were imported, not trained here: what they were chosen by" in page
    assert "not finished" not in page
    code, _, err = call(capsys, "train", "--resume", "--out", "run")
    assert (code, err) == (
        2,
        "run holds weights that were imported: there is no training to resume. "
        "Begin one from its weights with --weights.\n",
    )


def test_without_data_classes_are_numbers_and_evaluation_asks_for_pictures(capsys, here: Path, weights: Path) -> None:
    statistics = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")
    code, _, err = call(capsys, "import", weights, *MODEL, *statistics, "--fit", "pad")
    assert (code, err.splitlines()[-1]) == (
        0,
        "Pictures: 32 px, with black borders, mean 0.5,0.5,0.5, std 0.25,0.25,0.25 (as you said).",
    )
    checkpoint = candid.load("run").checkpoint
    assert checkpoint.class_names == tuple(f"class {index}" for index in range(10))
    assert checkpoint.preprocessing.fit == "pad"
    code, _, err = call(capsys, "evaluate", "run")
    assert (code, err) == (
        2,
        "No data set is named; expected one that `candid datasets` shows, or a folder. Use --data.\n",
    )
    code, _, err = call(capsys, "evaluate", "run", "--data", "fashion-mnist-mini", "--split", "test")
    assert (code, err) == (
        2,
        "The classes of fashion-mnist-mini are not those of the run: the network does not know Ankle boot, Bag, Coat, "
        "Dress, Pullover, Sandal, Shirt, Sneaker, T-shirt/top, Trouser; the data set lacks class 0, class 1, class 2, "
        "class 3, class 4, class 5, class 6, class 7, class 8, class 9. Evaluate on data with the same class names.\n",
    )


def test_a_new_head_for_classes_of_ones_own(capsys, here: Path, weights: Path) -> None:
    Path("names.txt").write_text("cat\ndog\n\n")
    code, _, err = call(capsys, "import", weights, *MODEL, "--data", "cifar10", "--classes", "names.txt", "--new-head")
    assert (code, err.splitlines()[-2]) == (0, "Begun anew: head.weight, head.bias.")
    checkpoint = candid.load("run").checkpoint
    assert checkpoint.class_names == ("cat", "dog")
    assert checkpoint.weights["head.weight"].shape == (2, 64)


def test_channels_and_sizes_are_those_of_the_file(capsys, here: Path) -> None:
    """A grey LeNet for 32 px: neither the network's size nor three channels."""
    save_file(build_model("lenet-bn", 10, 1, image_size=32).state_dict(), "lenet.safetensors")
    arguments = ("--model", "lenet-bn", "--out", "run")
    code, _, err = call(capsys, "import", "lenet.safetensors", *arguments, "--data", "mnist")
    assert (code, err) == (
        4,
        "lenet.safetensors is for images of another size: linear1.weight reads 400 values and 256 at the size chosen; "
        "they must be equal. Give the size that it was trained with: --image-size.\n",
    )
    assert call(capsys, "import", "lenet.safetensors", *arguments, "--data", "mnist", "--image-size", "32")[0] == 0
    preprocessing = candid.load("run").checkpoint.preprocessing
    assert (preprocessing.image_size, preprocessing.channels, preprocessing.mean) == (32, 1, (0.1307,))


def test_networks_of_imagenet_take_its_statistics_and_with_data_its_names(capsys, here: Path) -> None:
    state = build_model("shufflenetv2-0.5", 1000).state_dict()
    torch.save({TORCHVISION["shufflenetv2"](name): value for name, value in state.items()}, "shuffle.pth")
    usual = "torchvision and timm measure on a smaller part of the middle, so accuracies differ a little from theirs."
    pictures = "Pictures: 224 px, the middle square, mean 0.485,0.456,0.406, std 0.229,0.224,0.225"
    arguments = ("import", "shuffle.pth", "--model", "shufflenetv2-0.5", "--out")
    code, _, err = call(capsys, *arguments, "plain")
    assert (code, err) == (
        0,
        "shuffle.pth: 338 tensors for shufflenetv2-0.5, found by the names of torchvision.\n"
        f"{pictures} (those of ImageNet, taken for granted). {usual}\n",
    )
    code, _, err = call(capsys, *arguments, "named", "--data", "imagenet")
    assert (code, err.splitlines()[-1]) == (0, f"{pictures} (those of imagenet). {usual}")
    names = candid.load("named").checkpoint.class_names
    assert (len(names), len(set(names)), names[0], names[999]) == (1000, 1000, "tench", "toilet tissue")


def test_torchvisions_googlenet_has_an_input_of_its_own() -> None:
    settings = candid.Recipe().replace({"data.image_size": 224, "data.channels": 3}).data
    preprocessing, sentence = choose_preprocessing(
        settings, None, find_origin(None), sha256="1378be20" + 56 * "0", is_of_imagenet=True
    )
    assert (preprocessing.mean, preprocessing.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert "(torchvision's GoogLeNet, which rescales its input so)" in sentence


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--model", "resnet21"], 2, "No model is called 'resnet21'. Did you mean resnet18 or resnet152 or resnet101?"),
        (
            [],
            2,
            "The mean and standard deviation of the 3-channel pictures that the weights were trained on are not known; "
            "expected --mean and --std, or --data with the name of that data set.",
        ),
        (
            ["--data", "mnist"],
            2,
            "The mean and standard deviation of the 3-channel pictures that the weights were trained on are not known; "
            "expected --mean and --std, or --data with the name of that data set.",
        ),
        (
            ["--mean", "0.5,0.5,0.5"],
            2,
            "--mean and --std belong together; give both, one number for each channel, such as 0.485,0.456,0.406.",
        ),
        (
            ["--mean", "0.5,0.5,0.5", "--std", "0.5"],
            2,
            "--mean and --std belong together; give both, one number for each channel, such as 0.485,0.456,0.406.",
        ),
        (
            ["--mean", "a"],
            2,
            "'a' is no list of numbers; expected one for each channel: 0.485,0.456,0.406.",
        ),
        (
            ["--mean", "123.7,116.3,103.5", "--std", "58.4,57.1,57.4"],
            2,
            "--mean 123.7,116.3,103.5 --std 58.4,57.1,57.4 do not suit pixel values in [0, 1]; expected numbers "
            "in that range. Divide those for pixel values up to 255 by 255.",
        ),
        (["--data", "cifar-10"], 2, "No data set or folder is called 'cifar-10'. Did you mean cifar10 or cifar100?"),
        (
            ["--data", "cifar10", "--fit", "crap"],
            2,
            "data.fit is 'crap'; it must be 'crop', 'pad' or 'squash'. Did you mean crop?",
        ),
        (["--data", "cifar10", "--channels", "2"], 2, "data.channels is 2; it must be 0, 1 or 3."),
        (
            ["--data", "cifar10", "--channels", "1"],
            4,
            "{file} is for images of 3 channels and resnet20-cifar was to read 1; they must be equal. "
            "Use --channels 3, or data with as many.",
        ),
        (
            ["--new-head"],
            2,
            "--new-head needs the names of the new classes; expected --classes FILE or --data NAME.",
        ),
        (
            ["--data", "cifar100"],
            4,
            "{file} has a head for 10 classes and resnet20-cifar was to have 100; they must be equal. "
            "Use data or class names with 10 classes, or keep all but the head with --new-head.",
        ),
        (
            ["--classes", "nowhere.txt"],
            4,
            "nowhere.txt cannot be read (No such file or directory); expected a text file with one class name a line. "
            "Check --classes.",
        ),
        (
            ["--classes", "{here}/../binary.txt"],
            4,
            "{here}/../binary.txt is not text in UTF-8; expected a text file with one class name a line. "
            "Save it as UTF-8.",
        ),
        (
            ["--classes", "{here}/../gap.txt"],
            4,
            "{here}/../gap.txt has nothing in line 2; expected one class name a line. Remove the line.",
        ),
        (
            ["--classes", "{here}/../twice.txt"],
            4,
            "{here}/../twice.txt names 'cat' in lines 1 and 3; expected each class once. Name them differently.",
        ),
        (
            ["--classes", "{here}/../one.txt"],
            4,
            "{here}/../one.txt has 1 class name; expected two or more, one a line. Add the others.",
        ),
        (
            ["--sha256", "123"],
            2,
            "The SHA-256 '123' is not one; expected 64 hexadecimal digits. `sha256sum FILE` shows them.",
        ),
        (
            ["--sha256", "0" * 64],
            4,
            "{file} is damaged or another file: its SHA-256 is {sha256}, expected " + "0" * 64 + ". Get it again.",
        ),
        (
            ["--out", "."],
            2,
            ". exists; a run never overwrites another. Give another --out, or go on with --resume.",
        ),
    ],
)
def test_nonsense_is_answered_in_words_and_nothing_is_written(
    capsys, here: Path, weights: Path, arguments: list[str], code: int, text: str
) -> None:
    for name, content in {"binary": b"\xff\xfe", "gap": b"a\n\nb", "twice": b"cat\ndog\ncat", "one": b"cat"}.items():
        (here.parent / f"{name}.txt").write_bytes(content)
    filled = [argument.format(here=here) for argument in arguments]
    found = call(capsys, "import", weights, *MODEL, *filled)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found == (code, "", text.format(file=weights, here=here, sha256=sha256) + "\n")
    assert list(here.iterdir()) == []


def test_a_file_that_is_not_there_or_is_a_folder(capsys, here: Path, weights: Path, run: Path) -> None:
    assert call(capsys, "import", "nowhere.pth", *MODEL) == (
        2,
        "",
        "nowhere.pth does not exist; expected weights (.safetensors, .pth, .pt, .pth.tar). Check the path.\n",
    )
    best = sorted((run / "checkpoints").iterdir())[-1]
    assert call(capsys, "import", run, *MODEL) == (
        2,
        "",
        f"{run} is a folder; expected a file of weights. The weights of this run are in {best}/model.safetensors.\n",
    )
    assert call(capsys, "import", here, *MODEL) == (
        2,
        "",
        f"{here} is a folder; expected a file of weights. Name the file in it.\n",
    )
    assert list(here.iterdir()) == []


def test_the_weights_of_a_run_can_be_imported_again(capsys, here: Path, run: Path, pictures: Path) -> None:
    checkpoint = RunFolder(run).load()
    file = run / "checkpoints" / checkpoint.name / "model.safetensors"
    size, shape = checkpoint.preprocessing.image_size, checkpoint.preprocessing
    statistics = ("--mean", ",".join(map(str, shape.mean)), "--std", ",".join(map(str, shape.std)))
    options = ("--model", "lenet-relu", "--out", "again", "--data", pictures, "--image-size", size, *statistics)
    assert call(capsys, "import", file, *options)[0] == 0
    again, before = (candid.load(folder).predict(pictures) for folder in ("again", run))
    assert again == before


def test_a_full_disk_leaves_no_half_run(capsys, here: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "run/checkpoints")

    monkeypatch.setattr(RunFolder, "save", fail)
    code, _, err = call(capsys, "import", weights, *MODEL, "--data", "cifar10")
    assert (code, err) == (
        1,
        "run/checkpoints cannot be used: No space left on device. Expected a writable place with room; try another.\n",
    )
    assert list(here.iterdir()) == []


def test_a_hostile_file_runs_nothing_in_the_real_program(here: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch canary",)

    torch.save({"state_dict": Hostile()}, "hostile.pth")
    done = subprocess.run(
        [sys.executable, "-m", "candid", "import", "hostile.pth", *MODEL, "--data", "cifar10"],
        env={**os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        4,
        "",
        "hostile.pth holds more than weights (to open it would run posix.system), so it was not opened; expected "
        "weights, as safetensors or as torch.save writes them. Where you trust it, save the weights alone: "
        'torch.save(model.state_dict(), "weights.pth").\n',
    )
    assert [path.name for path in here.iterdir()] == ["hostile.pth"]


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder without a word, and does not tell the size of a file that is called unsized."""

    def do_HEAD(self) -> None:  # noqa: N802
        if "unsized" not in self.path:
            return super().do_HEAD()
        self.send_response(200)
        return self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(weights: Path) -> Iterator[str]:
    """The address of the folder of `weights`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(weights.parent)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_is_downloaded_once_into_the_folder_of_weights(
    capsys, here: Path, weights: Path, server: str
) -> None:
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    named = weights.with_name(f"resnet20-{sha256[:8]}.pth")
    named.write_bytes(weights.read_bytes())
    code, _, err = call(capsys, "import", f"{server}/{named.name}?download=1", *MODEL, "--data", "cifar10")
    assert (code, err.splitlines()[:2]) == (0, [f"Downloading {named.name} (1.1 MB)", f"{named.name}: {LOADED}"])
    assert (here / "weights" / named.name).read_bytes() == weights.read_bytes()
    address = f"{server}/{weights.name}"
    options = ("--data", "cifar10", "--sha256", sha256.upper(), "--weights-dir", "mine")
    assert call(capsys, "import", address, "--model", "resnet20-cifar", "--out", "again", *options)[0] == 0
    assert RunFolder(Path("again")).environment["imported"]["source"] == address
    weights_there = here / "mine" / weights.name
    weights_there.chmod(0o444)
    unreachable = address.replace("http://127.0.0.1", "http://127.0.0.1:1/")  # what is there is not asked for again
    assert call(capsys, "import", unreachable, "--model", "resnet20-cifar", "--out", "third", *options)[0] == 0


@pytest.mark.parametrize(
    ("name", "options", "code", "text"),
    [
        (
            "resnet20.pth",
            [],
            2,
            "{address} has no checksum; expected eight digits of it in the name, as in resnet50-0676ba61.pth. "
            "Give the file's SHA-256 with --sha256, or download it yourself and name the file.",
        ),
        (
            "resnet20.pth",
            ["--sha256", "0" * 64],
            4,
            "{address} could not be downloaded: what arrived has the SHA-256 {sha256}, expected " + "0" * 64 + ". "
            "Download it in another way and name the file.",
        ),
        (
            "none-01234567.pth",
            [],
            4,
            "{address} could not be downloaded: HTTP 404 File not found. Download it in another way and name the file.",
        ),
        (
            "unsized-01234567.pth",
            [],
            4,
            "{address} could not be downloaded: the server does not tell how large the file is. "
            "Download it in another way and name the file.",
        ),
        ("", [], 2, "{address} names no file; expected an address that ends in the name of one."),
    ],
)
def test_downloads_that_fail(
    capsys, here: Path, weights: Path, server: str, name: str, options: list[str], code: int, text: str
) -> None:
    address, sha256 = f"{server}/{name}", hashlib.sha256(weights.read_bytes()).hexdigest()
    found, out, err = call(capsys, "import", address, *MODEL, "--data", "cifar10", *options)
    assert (found, out, err.splitlines()[-1]) == (code, "", text.format(address=address, sha256=sha256))
    assert [path for path in here.rglob("*") if path.is_file() and not path.name.endswith(".lock")] == []


def test_a_file_of_another_kind_in_the_folder_of_weights_is_left_alone(
    capsys, here: Path, weights: Path, server: str
) -> None:
    (here / "weights").mkdir()
    (here / "weights" / weights.name).write_text("mine")
    sha256, mine = hashlib.sha256(weights.read_bytes()).hexdigest(), hashlib.sha256(b"mine").hexdigest()
    code, _, err = call(capsys, "import", f"{server}/{weights.name}", *MODEL, "--data", "cifar10", "--sha256", sha256)
    assert (code, err) == (
        4,
        f"weights/{weights.name} is damaged or another file: its SHA-256 is {mine}, expected {sha256}. "
        "Delete it and let candid download it again.\n",
    )
    assert (here / "weights" / weights.name).read_text() == "mine"


def test_an_empty_data_name_is_no_folder() -> None:
    from candid.data.catalog import open_data_set

    with pytest.raises(InputError) as caught:
        open_data_set("")
    assert str(caught.value) == (
        "No data set is named; expected one that `candid datasets` shows, or a folder. Use --data."
    )


def test_pictures_of_a_folder_name_the_classes(capsys, here: Path, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "shapes", per_class=3)
    torch.save(build_model("resnet20-cifar", 3).state_dict(), "three.pth")
    options = ("--data", folder, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    assert call(capsys, "import", "three.pth", *MODEL, *options)[0] == 0
    recipe = RunFolder(Path("run")).recipe
    assert (recipe.data.name, recipe.data.validation) == (str(folder), 0.1)
