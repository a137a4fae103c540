import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, NO_PICTURE, call, draw
from PIL import Image

import candid
from candid.checkpoint import RunFolder
from candid.data.catalog import open_data_set
from candid.data.decoding import decode_file
from candid.data.loading import EvaluationBatches, open_training_data
from candid.data.sources import Picture, find_pictures
from candid.errors import DataError
from candid.kept_evaluation import load_evaluation


def test_the_shapes_are_recognised(run: Path, pictures: Path):
    predictions = candid.load(run).predict(pictures)
    right = [prediction.classes[0] == Path(prediction.file).parent.name for prediction in predictions]
    assert len(predictions) == 72
    assert sum(right) >= 65
    assert all(abs(sum(prediction.probabilities) - 1) < 1e-5 for prediction in predictions)
    assert all(set(prediction.classes) == set(CLASSES) for prediction in predictions)


def test_prediction_sees_the_pixels_that_were_evaluated(run: Path, pictures: Path):
    """Bit for bit the same input on the way of training's evaluation and on that of prediction."""
    checkpoint = RunFolder(run).load()
    data = open_training_data(open_data_set(str(pictures)), checkpoint.recipe)
    assert data.preprocessing == checkpoint.preprocessing
    inputs, _ = next(iter(EvaluationBatches(data.validation, data.preprocessing, torch.device("cpu"))))
    for row, file in enumerate(data.validation.files):
        alone = checkpoint.preprocessing(decode_file(pictures / file, checkpoint.preprocessing.channels)[None])
        assert torch.equal(alone[0], inputs[row])


def test_prediction_repeats_the_test_evaluation(run: Path, pictures: Path):
    evaluation = load_evaluation(run / "evaluation-test")
    predictions = candid.load(run).predict([pictures / file for file in evaluation.files])
    for position, prediction in enumerate(predictions):
        best = evaluation.class_names[int(evaluation.top_classes[position, 0])]
        assert prediction.classes[0] == best
        assert prediction.probabilities[0] == pytest.approx(float(evaluation.top_probabilities[position, 0]), abs=1e-5)


def test_a_file_that_is_no_picture_is_reported_and_the_rest_is_done(run: Path, tmp_path: Path):
    draw("circle", 3).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    draw("cross", 3).save(tmp_path / "c.png")
    first, second, third = candid.load(run).predict(tmp_path)
    assert (first.problem, third.problem) == (None, None)
    assert second.problem == f"{tmp_path}/b.png cannot be decoded: {NO_PICTURE}"
    assert second.classes == ()


def test_any_size_and_mode_is_taken(run: Path, tmp_path: Path):
    draw("circle", 3, side=200).resize((300, 120)).save(tmp_path / "wide.jpg")
    draw("circle", 3).convert("L").save(tmp_path / "grey.png")
    draw("circle", 3).convert("RGBA").resize((1, 1)).save(tmp_path / "dot.png")
    assert [prediction.problem for prediction in candid.load(run).predict(tmp_path)] == [None, None, None]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda folder: folder / "none.png",
            "{0}/none.png does not exist; expected a picture, a folder or zip file of pictures, a pattern such as "
            "'pictures/*.jpg', an address (https://...), or - for standard input. Check the path.",
        ),
        (
            lambda folder: folder,
            "{0} holds no pictures; expected at least one. Choose a file, or a folder with pictures in it.",
        ),
    ],
)
def test_sources_without_pictures_are_refused(run: Path, tmp_path: Path, make, text: str):
    with pytest.raises(DataError) as caught:
        candid.load(run).predict(make(tmp_path))
    assert str(caught.value) == text.format(tmp_path)


def test_fewer_classes_than_asked_for_is_no_error(run: Path, pictures: Path):
    one = candid.load(run).predict(pictures / "circle" / "00.png", top=1)
    assert len(one) == 1
    assert len(one[0].classes) == 1


@pytest.fixture
def two_threads() -> Generator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_batches_side_by_side_give_what_one_after_the_other_gives(run: Path, pictures: Path, tmp_path: Path):
    predictor = candid.load(run)
    (tmp_path / "broken.png").write_text("no picture")
    files = find_pictures([*sorted(pictures.rglob("*.png")), tmp_path / "broken.png"] * 3)
    found = list(predictor.stream(files))
    assert [one.file for one in found] == [file.name for file in files]
    assert [position for position, one in enumerate(found) if one.problem] == [72, 145, 218]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert found == list(predictor.stream(files))


@pytest.mark.usefixtures("two_threads")
def test_no_more_than_a_few_batches_are_read_ahead(run: Path, pictures: Path):
    read: list[str] = []

    def note(picture: Picture) -> Picture:
        return Picture(picture.name, lambda: (read.append(picture.name), picture.read())[1])

    predictions = candid.load(run).stream([note(picture) for picture in find_pictures([pictures] * 10)])
    next(predictions)
    time.sleep(0.5)
    assert len(read) <= 5 * 8
    predictions.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("predict")]


def test_prediction_imports_nothing_that_it_does_not_need(run: Path, pictures: Path, tmp_path: Path):
    """Each of these takes as long to import as torch itself, or nearly."""
    program = (
        "import sys; from candid.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print(sorted({'torchvision', 'torch._dynamo', 'torch._inductor', 'matplotlib', 'sympy'} & set(sys.modules)))"
    )
    arguments = ["predict", str(run), str(pictures / "circle" / "00.png"), "--csv", str(tmp_path / "p.csv")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_lines_of_json_and_csv_are_written_together(capsys, here: Path, run: Path, pictures: Path):
    code, out, _ = call(capsys, "predict", run, pictures, "--json", "--csv", "p.csv")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    for line, prediction in zip(lines, candid.load(run).predict(pictures), strict=True):
        assert 0 < line.pop("decode_ms") < 10_000
        assert 0 < line.pop("network_ms") < 10_000
        assert line == {key: value for key, value in prediction.as_dict().items() if not key.endswith("_ms")}
    assert len((here / "p.csv").read_text().splitlines()) == 73


def test_a_line_of_json_is_there_before_the_last_picture_is(run: Path, pictures: Path, tmp_path: Path):
    """Whoever reads the lines need not wait for all of them: the last picture is a pipe that waits for the reader."""
    pipe = tmp_path / "last.png"
    os.mkfifo(pipe)
    arguments = [sys.executable, "-m", "candid", "predict", str(run), *[str(pictures)] * 2, str(pipe), "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        pipe.write_bytes((pictures / "circle" / "00.png").read_bytes())
        others = process.stdout.read().splitlines()
    assert first["file"] == f"{pictures}/circle/00.png"
    assert json.loads(others[-1])["classes"] == first["classes"]
    assert len(others) == 144


def test_how_long_it_took_stands_below_the_table(capsys, run: Path, pictures: Path):
    _, out, _ = call(capsys, "predict", run, pictures)
    assert re.fullmatch(
        r"72 pictures in \d+\.\d s: [\d.,]+ ms each to read and decode, [\d.,]+ ms in the network", out.splitlines()[-1]
    )


def test_an_interrupt_leaves_at_once_and_nothing_half_written(run: Path, pictures: Path, tmp_path: Path):
    arguments = [sys.executable, "-m", "candid", "predict", str(run), *[str(pictures)] * 400]
    arguments += ["--csv", str(tmp_path / "p.csv")]
    # a shell that runs the tests in the background has them ignore interrupts
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, preexec_fn=heed) as process:
        wait_for(tmp_path / ".p.csv.partial")
        interrupted_at_s = time.perf_counter()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert time.perf_counter() - interrupted_at_s < 5
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".csv", ".partial")]


def wait_for(path: Path) -> None:
    """Until it exists."""
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.01)
    raise TimeoutError(f"{path} did not appear within 30 s")


def test_a_terminal_shows_how_far_it_is(run: Path, pictures: Path, tmp_path: Path):
    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "candid", "predict", str(run), str(pictures), "--csv", str(tmp_path / "p.csv")]
    with subprocess.Popen(arguments, stderr=theirs) as process:
        os.close(theirs)
        shown = io.BytesIO()
        while process.poll() is None or not shown.getvalue():
            try:
                shown.write(os.read(ours, 4096))
            except OSError:  # how a terminal says that nobody writes any more
                break
    os.close(ours)
    assert b"Predicting" in shown.getvalue()
    assert process.returncode == 0


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_pictures_are_made_square_as_asked_for(capsys, here: Path, run: Path, fit: str):
    """As if they had been square from the start; that the number of the run is not theirs is said."""
    draw("circle", 3, side=200).resize((300, 120)).save(here / "wide.png")
    wide = decode_file(here / "wide.png", 3)
    expected = candid.load(run).checkpoint.preprocessing.with_fit(fit).make_square(wide)
    Image.fromarray(expected.permute(1, 2, 0).numpy()).save(here / "square.png")
    code, out, err = call(capsys, "predict", run, "wide.png", "--json", "--fit", fit)
    assert (code, err) == (
        0,
        "" if fit == "crop" else f"With --fit {fit}, the run's accuracy does not count: it was measured with crop.\n",
    )
    assert json.loads(out)["classes"] == candid.load(run).predict("square.png")[0].as_dict()["classes"]
    assert candid.load(run, fit=fit).predict("wide.png")[0].as_dict()["classes"] == json.loads(out)["classes"]


def test_an_unknown_fit_is_refused(capsys, run: Path, pictures: Path):
    code, out, err = call(capsys, "predict", run, pictures, "--fit", "crp")
    assert (code, out) == (2, "")
    assert err == "--fit is 'crp'; it must be crop, pad or squash. Did you mean crop?\n"
