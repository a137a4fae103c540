"""The main job as a user does it: commands, the pictures that ship, the real program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from candid.data.catalog import open_data_set


def candid_command(*arguments: str, cwd: Path, code: int = 0) -> str:
    """Standard output of the real command, which must leave with `code`."""
    done = subprocess.run([sys.executable, "-m", "candid", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_train_evaluate_report_predict(tmp_path: Path):
    run = "runs/lenet-relu-fashion-mnist-mini"
    out = candid_command("train", "--epochs", "4", cwd=tmp_path)
    assert out == f"Report: {run}/report.html\nTry it: candid predict {run} YOUR-PICTURE.jpg\n"
    result = json.loads((tmp_path / run / "result.json").read_text())
    assert result["test_images"] == 1000
    assert result["test_accuracy"] > 0.7

    accuracy = f"{100 * result['test_accuracy']:.2f} %"
    assert accuracy in (tmp_path / run / "report.html").read_text()
    assert candid_command("evaluate", run, "--split", "test", cwd=tmp_path).startswith(
        f"Test accuracy {accuracy} (95 %"
    )
    assert candid_command("report", run, cwd=tmp_path) == f"Report: {run}/report.html\n"
    assert "looked at 2 times" in (tmp_path / run / "report.html").read_text()

    test = open_data_set("fashion-mnist-mini").openers["test"]()
    for position in range(40):
        Image.fromarray(test.images[position, 0].numpy()).save(tmp_path / f"{position:02}.png")
    lines = candid_command("predict", run, ".", "--json", cwd=tmp_path, code=0).splitlines()
    predictions = [json.loads(line) for line in lines]
    ours = {Path(p["file"]).stem: p["classes"][0]["class"] for p in predictions if len(Path(p["file"]).parts) == 1}
    names = open_data_set("fashion-mnist-mini").class_names
    right = sum(ours[f"{k:02}"] == names[int(test.labels[k])] for k in range(40))
    assert right / 40 == pytest.approx(result["test_accuracy"], abs=0.2)
