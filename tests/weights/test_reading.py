import argparse
import gzip
import importlib
import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from candid.errors import CheckpointError
from candid.weights.reading import LEGACY, read_weights

EXPECTED = "expected weights, as safetensors or as torch.save writes them"
SAVE = 'torch.save(model.state_dict(), "weights.pth")'
CALLS: dict[str, tuple[object, ...]] = {  # what runs code, or leaves a trace, and what would make it leave the canary
    "os.system": ("touch canary",),
    "os.mkdir": ("canary",),
    "os.popen": ("touch canary",),
    "builtins.eval": ("open('canary', 'w')",),
    "builtins.exec": ("open('canary', 'w')",),
    "builtins.open": ("canary", "w"),
    "builtins.getattr": ("canary", "upper"),
    "builtins.__import__": ("canary",),
    "builtins.compile": ("open('canary', 'w')", "x", "exec"),
    "subprocess.Popen": (["touch", "canary"],),
    "subprocess.check_output": (["touch", "canary"],),
    "runpy.run_path": ("canary.py",),
    "runpy.run_module": ("canary",),
    "importlib.import_module": ("canary",),
    "pickle.loads": (b"cos\nsystem\n(S'touch canary'\ntR.",),
    "marshal.loads": (b"",),
    "functools.partial": (print, "canary"),
    "operator.attrgetter": ("canary",),
    "types.SimpleNamespace": (),
    "webbrowser.open": ("canary",),
    "timeit.timeit": ("open('canary', 'w')",),
    "shutil.rmtree": ("canary",),
    "tempfile.mkdtemp": ("", "canary", "."),
    "logging.FileHandler": ("canary",),
    "torch.load": ("canary",),
    "torch.save": ([], "canary"),
    "torch.hub.load": (".", "canary"),
    "numpy.load": ("canary",),
    "codecs.open": ("canary", "w"),
    "urllib.request.urlopen": ("file:canary",),
}


class Hostile:
    """Asks for a call when it is unpickled."""

    def __init__(self, name: str) -> None:
        module, _, function = name.rpartition(".")
        self.function, self.arguments = getattr(importlib.import_module(module), function), CALLS[name]

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)


def weights() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.arange(18.0).view(2, 1, 3, 3), "conv.bias": torch.zeros(2)}


def refusal(path: Path) -> str:
    """Why a file is refused: one line, with nothing left behind."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights.pth"


both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
unsafe_or_not = pytest.mark.parametrize("forced", ["", "1"], ids=["default", "forced-unsafe"])


@both_formats
@unsafe_or_not
def test_no_global_is_called(path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool, forced: str) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    for name in CALLS:
        for content in (Hostile(name), {"state_dict": weights(), "optimizer": [Hostile(name)]}):
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            asked = refusal(path)
            assert asked.startswith(f"{path} holds more than weights (to open it would run "), name
            assert asked.endswith(
                f"), so it was not opened; {EXPECTED}. Where you trust it, save the weights alone: {SAVE}."
            )
    assert list(path.parent.iterdir()) == [path]


@both_formats
@unsafe_or_not
def test_no_instruction_of_a_pickle_calls_anything(path: Path, monkeypatch, zipped: bool, forced: str) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    command = b"X\x0c\x00\x00\x00touch canary"
    for program in (
        b"(" + command + b"ios\nsystem\n.",  # INST
        b"(cos\nsystem\n" + command + b"o.",  # OBJ
        b"cos\nsystem\n" + command + b"\x85R.",  # GLOBAL, REDUCE
        b"cposix\nsystem\n" + command + b"\x85R.",
        b"\x8c\x02os\x8c\x06system\x93" + command + b"\x85R.",  # STACK_GLOBAL
        b"cos\nsystem\n" + command + b"\x85\x81.",  # NEWOBJ
        b"cos\nsystem\n" + command + b"\x85}\x92.",  # NEWOBJ_EX
        b"}" + command + b"b.",  # BUILD on a dictionary
        b"\x82\x01.",  # EXT1
        b"Pmodule\n.",  # PERSID
        b"X\x06\x00\x00\x00modulecos\nsystem\nX\x01\x00\x00\x00a\x87Q.",  # a persistent module
        b"ccollections\nOrderedDict\n(]\x8c\x01acos\nsystem\nse\x85R.",
        b"cbuiltins\ngetattr\ncos\n__dict__\nX\x06\x00\x00\x00system\x86R.",
        b"c__builtin__\neval\n" + command + b"\x85R.",
        b"ctorch\nos.system\n" + command + b"\x85R.",
        b"S'a'\n.",  # instructions of protocol 0
        b"\x80\x02" * 1000,
        b"2" * 10,
        b"h\x05.",
    ):
        pickled = b"\x80\x02" + program
        if zipped:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", pickled)
                archive.writestr("archive/version", "3\n")
        else:
            path.write_bytes(LEGACY + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + pickled)
        refusal(path)
    assert list(path.parent.iterdir()) == [path]


@both_formats
def test_calls_hide_nowhere(path: Path, zipped: bool) -> None:
    hostile = Hostile("os.system")
    for content in (
        {**weights(), "conv.weight": hostile},
        OrderedDict(a=hostile),
        {"state_dict": weights(), "args": argparse.Namespace(model=hostile)},
        {"state_dict": weights(), "random": np.array([hostile], dtype=object)},
        {1: {2: {3: [hostile]}}},
        {hostile: weights()},
        [torch.zeros(1), hostile],
    ):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert "to open it would run posix.system" in refusal(path)
    assert list(path.parent.iterdir()) == [path]


def test_stand_ins_run_nothing_of_what_they_stand_for(path: Path) -> None:
    """What is allowed beside the weights stays without effect, even with nonsense in it."""
    for name in (
        "argparse\nNamespace",
        "pathlib\nPosixPath",
        "numpy\ndtype",
        "numpy\nndarray",
        "numpy._core.multiarray\nscalar",
    ):
        for arguments in (b")", b"X\x06\x00\x00\x00canary\x85", b"}}\x86", b"K\x01K\x02K\x03\x87"):
            path.write_bytes(
                LEGACY + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
                + b"\x80\x02c" + name.encode() + b"\n" + arguments + b"R." + pickle.dumps([], 2)
            )  # fmt: skip
            refusal(path)
    assert list(path.parent.iterdir()) == [path]


def save_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch gives TorchScript up
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


def save_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())


def save_bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data.pkl", "w") as member,
    ):
        for _ in range(1000):
            member.write(bytes(1_000_000))


def save_overlapping(path: Path) -> None:
    """Two entries in the table of contents for the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(10_000))
        first = archive.infolist()[0]
        archive.filelist += [first] * 5


def save_object_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Hostile("os.system")], dtype=object))


def save_arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def save_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(bytes(1_000_000)))


@pytest.mark.parametrize(
    ("save", "text"),
    [
        (lambda path: path.write_bytes(b""), f"is empty; {EXPECTED}. Get it again, or save it again: {SAVE}."),
        (
            lambda path: path.write_text("hello"),
            f"is no file of weights; {EXPECTED}. Get it again, or save it again: {SAVE}.",
        ),
        (lambda path: path.write_text("<!DOCTYPE html>"), f"is a web page; {EXPECTED}. Download the file itself."),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"),
            f"is only Git LFS's pointer to the file; {EXPECTED}. Fetch the file with `git lfs pull`.",
        ),
        (
            lambda path: path.write_bytes(pickle.dumps([1])),
            f"is a pickle that torch.save did not write; {EXPECTED}. Get it again, or save it again: {SAVE}.",
        ),
        (save_gzip, f"is compressed with gzip; {EXPECTED}. Unpack it first."),
        (
            save_object_array,
            f"is a NumPy array; {EXPECTED}. Save its tensors with safetensors.",
        ),
        (
            save_arrays,
            f"is a zip file without weights of PyTorch; {EXPECTED}. If they lie in it, unpack it first.",
        ),
        (
            save_tar,
            f"is a tar archive, as PyTorch wrote before 2017; {EXPECTED}. With that PyTorch, save it again: {SAVE}.",
        ),
        (
            save_script,
            f"is a TorchScript program, code beside weights; {EXPECTED}. "
            f"Where you trust it, save its weights alone: {SAVE}.",
        ),
        (
            lambda path: torch.save(Net(), path),
            "is a whole model, as torch.save(model) writes it, and only its own code can open it; "
            f"{EXPECTED}. Where that code is at hand, save the weights alone: {SAVE}.",
        ),
        (
            lambda path: torch.save({"model": Net()}, path, _use_new_zipfile_serialization=False),
            "is a whole model, as torch.save(model) writes it, and only its own code can open it; "
            f"{EXPECTED}. Where that code is at hand, save the weights alone: {SAVE}.",
        ),
        (
            lambda path: torch.save(weights(), path, pickle_protocol=4),
            "holds more than weights (a pickle with more in it: Unsupported operand 149), so it was not opened; "
            f"{EXPECTED}. Where you trust it, save the weights alone: {SAVE}.",
        ),
        (
            lambda path: torch.save(torch.zeros(3), path),
            f"holds a Tensor alone; {EXPECTED}. Save the weights alone: {SAVE}.",
        ),
        (
            lambda path: torch.save({"epoch": 3, "loss": torch.tensor(1.0)}, path),
            f"holds a dictionary without tensors; {EXPECTED}. Save the weights alone: {SAVE}.",
        ),
    ],
)
def test_what_is_no_file_of_weights_is_refused(path: Path, save: Callable[[Path], object], text: str) -> None:
    save(path)
    assert refusal(path) == f"{path} {text}"


@pytest.mark.parametrize("save", [save_bomb, save_overlapping])
def test_what_would_grow_is_refused_before_it_does(path: Path, save: Callable[[Path], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(path)
    unpacked = 1_000_000_000 if save is save_bomb else 60_000
    assert path.stat().st_size < unpacked / 5
    assert refusal(path) == (
        f"{path} is a zip file with compressed entries ({unpacked:,} bytes in {path.stat().st_size:,}), "
        "which torch.save never writes; expected a file of weights. If one lies in it, unpack it first."
    )


def save_zip(path: Path) -> None:
    torch.save(weights(), path)


def save_legacy(path: Path) -> None:
    torch.save(weights(), path, _use_new_zipfile_serialization=False)


def save_safetensors(path: Path) -> None:
    save_file(weights(), path)


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_safetensors])
def test_a_file_that_is_cut_off_is_refused(path: Path, save: Callable[[Path], None]) -> None:
    save(path)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 37), len(whole) - 1):
        path.write_bytes(whole[:size])
        refusal(path)
    path.write_bytes(whole[: len(whole) - 1])
    reason = {
        save_zip: "File is not a zip file",
        save_legacy: "unexpected EOF, expected 1 more bytes. The file might be corrupted",
        save_safetensors: "Error while deserializing header: incomplete metadata, file not fully covered",
    }[save]
    assert refusal(path) == f"{path} is damaged or cut off ({reason}); {EXPECTED}. Get it again."


def test_one_changed_byte_is_found(path: Path) -> None:
    save_zip(path)
    whole = path.read_bytes()
    where = whole.index(struct.pack("<4f", 4, 5, 6, 7))
    path.write_bytes(whole[:where] + b"\x01" + whole[where + 1 :])
    reason = "Bad CRC-32 for file 'weights/data/0'"
    assert refusal(path) == f"{path} is damaged or cut off ({reason}); {EXPECTED}. Get it again."


def test_checksums_that_torch_left_out_are_not_missed(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save_zip(path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(path).entries[""].keys() == weights().keys()


def test_a_tensor_larger_than_the_file_takes_no_room(path: Path) -> None:
    huge = torch.zeros(1).expand(10**6, 10**6)  # 4 TB, if it were written out
    torch.save({"conv.weight": huge}, path)
    assert read_weights(path).entries[""]["conv.weight"].stride() == (0, 0)


@both_formats
def test_weights_and_facts_of_a_training_programs_checkpoint(path: Path, zipped: bool) -> None:
    content = {
        "epoch": 90,
        "arch": "resnet50",
        "state_dict": weights(),
        "best_acc1": torch.tensor(76.13),
        "acc": np.float64(0.5),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(data=Path("/data"), lr=0.1),
        "random": np.random.get_state(),
        "version": torch.__version__,
        "loss": float("nan"),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    file = read_weights(path)
    assert list(file.entries) == ["state_dict"]
    assert list(file.entries["state_dict"]) == ["conv.weight", "conv.bias"]
    assert torch.equal(file.entries["state_dict"]["conv.weight"], weights()["conv.weight"])
    assert file.facts == {"epoch": 90, "arch": "resnet50", "best_acc1": 76.13, "acc": 0.5}
    assert file.has_order


@pytest.mark.parametrize(
    ("content", "entries"),
    [
        (weights(), [""]),
        ({"net": weights(), "acc": 95.0, "epoch": 1}, ["net"]),
        ({"model": weights(), "model_ema": weights()}, ["model_ema", "model"]),
        ({"model_state": weights(), "optimizer_state": {"a": torch.zeros(2)}}, ["model_state"]),
        ({"ema": {"module": weights()}, "state_dict": weights()}, ["ema.module", "state_dict"]),
        ({"model": {"state_dict": weights()}}, ["model.state_dict"]),
        ({"generator": weights(), "epoch": 1}, ["generator"]),
    ],
)
def test_where_checkpoints_keep_their_weights(path: Path, content: object, entries: list[str]) -> None:
    torch.save(content, path)
    assert list(read_weights(path).entries) == entries


def test_safetensors_with_facts_and_under_any_name(path: Path) -> None:
    save_file(
        weights(), path, metadata={"format": "pt", "epoch": "3", "architecture": "lenet", "best_accuracy": "0.91"}
    )
    file = read_weights(path)
    assert file.entries[""].keys() == weights().keys()
    assert file.facts == {"epoch": 3, "architecture": "lenet", "best_accuracy": 0.91}
    assert not file.has_order
