"""Opening a checkpoint runs no code, whoever wrote its files: here each fits its manifest, so none is just damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_checkpoint import RECIPE, STATE, checkpoint
from weights.test_reading import CALLS, Hostile

from candid import manifest as manifest_module
from candid.checkpoint import RunFolder
from candid.cli import main
from candid.errors import CheckpointError

REMEDY = "Use a good copy of the run, or train it again."
TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")
COMMANDS = (
    "predict RUN PICTURES",
    "evaluate RUN",
    "verify RUN",
    "verify RUN --resume-test",
    "train --resume --out RUN",
)


def forge(folder: Path, name: str, data: bytes) -> None:
    """Put a file into a checkpoint, with a manifest that fits."""
    manifest = json.loads((folder / "manifest.json").read_text())["files"]
    (folder / name).write_bytes(data)
    (folder / "manifest.json").write_text(manifest_module._manifest(manifest | {name: manifest_module._describe(data)}))


def hostile_files(place: Path) -> list[bytes]:
    """What torch.save writes of objects that ask for a call when they are unpickled: in both of its formats."""
    files: list[bytes] = []
    for name in CALLS:
        for zipped in (True, False):
            torch.save(
                {"conv.weight": torch.zeros(2), "args": Hostile(name)}, place, _use_new_zipfile_serialization=zipped
            )
            files.append(place.read_bytes())
    place.unlink()
    return files


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    run = RunFolder.create(tmp_path / "run", RECIPE, {})
    run.save(checkpoint(10), STATE, is_best=True)
    return run


@pytest.mark.parametrize("forced", ["", "1"], ids=["default", "forced-unsafe"])
@pytest.mark.parametrize("name", TENSOR_FILES)
def test_no_file_is_unpickled(run_folder: RunFolder, name: str, forced: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    folder = run_folder.checkpoints / "step-00000010"
    files = [
        *hostile_files(run_folder.path / "hostile"),
        b"",
        b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch canary\x85R.",
    ]
    assert len(files) >= 60
    for data in files:
        forge(folder, name, data)
        problem = run_folder.verify()["step-00000010"]
        assert problem is not None
        assert problem.startswith(f"{folder / name} is no safetensors file (")
        assert problem.endswith(f"). {REMEDY}")
        assert "\n" not in problem
        with pytest.raises(CheckpointError, match="is no safetensors file"):
            run_folder.load_to_resume()
    assert [path.name for path in Path.cwd().iterdir()] == ["run"]


NONSENSE = {
    "nothing": b"",
    "a pickle": b"\x80\x02.",
    "no text": b"\xff\xfe",
    "brackets without end": b"[" * 200_000,
    "a list": b"[]",
    "a number": b"7",
    "no keys": b"{}",
    "another kind of recipe": b'{"recipe": 3}',
    "null": b"null",
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_in_place_of_the_facts_is_refused_in_words(run_folder: RunFolder, data: bytes):
    folder = run_folder.checkpoints / "step-00000010"
    forge(folder, "state.json", data)
    for found in (run_folder.verify()["step-00000010"], refusal(run_folder)):
        assert found is not None
        assert found.startswith(f"{folder / 'state.json'} does not describe a checkpoint of this version (")
    (folder / "manifest.json").write_bytes(data)
    version_1 = f"{folder} has format version 1; expected version 2. Use the candid version that wrote it."
    is_object = data.startswith(b"{")  # the first format's manifest was one, without a version
    assert run_folder.verify() == {
        folder.name: version_1 if is_object else f"{folder / 'manifest.json'} is damaged. {REMEDY}"
    }


def refusal(run: RunFolder) -> str:
    with pytest.raises(CheckpointError) as caught:
        run.load()
    return str(caught.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_leaves_with_its_own_exit_code(
    run: Path,
    pictures: Path,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "result.json").unlink()  # a finished run is not resumed
    torch.save({"conv.weight": Hostile("os.system")}, tmp_path / "hostile")
    data = (tmp_path / "hostile").read_bytes()
    (tmp_path / "hostile").unlink()
    for folder in (copy / "checkpoints").iterdir():
        forge(folder, "model.safetensors", data)
    arguments = [{"RUN": str(copy), "PICTURES": str(pictures)}.get(word, word) for word in command.split()]
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 4
    said = capsys.readouterr()
    assert "model.safetensors is no safetensors file (" in said.out + said.err
    assert "Traceback" not in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
