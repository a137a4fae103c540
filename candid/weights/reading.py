"""A file of weights from anywhere becomes tensors by name, and what else it tells; nothing in it is ever run.

Files are known by their first bytes, not by their names. safetensors are read by their library; what `torch.save`
wrote is read by `torch.load(weights_only=True)` after the table of contents of its zip file was found to be one that
`torch.save` writes, so that a small file cannot become a large one.
"""

import json
import math
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # only the name of an error: nothing here unpickles
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from candid.data.download import sha256_of
from candid.errors import CheckpointError
from candid.words import shorten, showable

Tensors = dict[str, Tensor]
EXPECTED = "expected weights, as safetensors or as torch.save writes them"
SAVE_AGAIN = 'torch.save(model.state_dict(), "weights.pth")'
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How the files begin that torch.save wrote before version 1.6."""
KINDS = (  # (where, what stands there, what such a file is, what to do)
    (0, b"\x1f\x8b", "compressed with gzip", "Unpack it first."),
    (0, b"BZh", "compressed with bzip2", "Unpack it first."),
    (0, b"\xfd7zXZ", "compressed with xz", "Unpack it first."),
    (0, b"7z\xbc\xaf", "a 7z archive", "Unpack it first."),
    (0, b"\x93NUMPY", "a NumPy array", "Save its tensors with safetensors."),
    (0, b"\x89HDF", "an HDF5 file, as of Keras", "Save its tensors with safetensors."),
    (0, b"version https://git-lfs", "only Git LFS's pointer to the file", "Fetch the file with `git lfs pull`."),
    (0, b"<", "a web page", "Download the file itself."),
    (257, b"ustar", "a tar archive, as PyTorch wrote before 2017", f"With that PyTorch, save it again: {SAVE_AGAIN}."),
)
ENTRIES = (
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema"),  # an average is what its authors evaluated
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights"),
)
"""Under which names checkpoints keep the weights; the first that is there and fits is taken."""
ARCHITECTURE = re.compile(r"arch|architecture|arch_name|model|model_name")
ACCURACY = re.compile(r"(best[_-]?)?((val|valid|test)[_-]?)?(acc|accuracy|prec|top|metric)[_@-]?[15]?")


@dataclass(frozen=True)
class WeightsFile:
    """What a file holds that may be weights, and what it tells about them."""

    path: Path
    sha256: str
    entries: Mapping[str, Tensors]
    """By its place in the file ("" at the top): names and tensors as they were stored, in that order. They may lie in
    the mapped file itself, so what is kept has to be copied."""
    has_order: bool
    """Whether the order of the tensors is that of the layers; safetensors sort them."""
    facts: Mapping[str, str | float]
    """Epoch, architecture, best accuracy, under the file's own names."""


class _Inert:
    """Stands for a harmless object that is of no use here: takes what it is given, keeps nothing, does nothing."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _NumberType:
    """Stands for `numpy.dtype`: the type of one number."""

    def __init__(self, code: str = "", *_: object) -> None:
        self.format = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i"}.get(code, "")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1:2] == (">",):
            self.format = ""


def _number(kind: object = None, data: object = b"") -> float | None:
    """Stands for `numpy.core.multiarray.scalar`: the number that is stored in little-endian bytes."""
    if not isinstance(kind, _NumberType) or not isinstance(data, bytes) or not kind.format:
        return None
    return struct.unpack(f"<{kind.format}", data)[0]


HARMLESS: list[Any] = [  # found in many checkpoints beside the weights; no code of these names is run, only ours
    (_Inert, "argparse.Namespace"),
    (_Inert, "pathlib.PosixPath"),
    (_Inert, "torch.torch_version.TorchVersion"),
    (_Inert, "numpy.ndarray"),  # the state of a random generator
    (_Inert, "numpy.core.multiarray._reconstruct"),
    (_Inert, "numpy._core.multiarray._reconstruct"),
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_weights(path: Path) -> WeightsFile:
    """What is in a file of weights, none of it run.

    Raises:
        CheckpointError: if the file is not one of weights, is damaged, or asks for code to be run.
    """
    content, has_order = _read_content(path)
    entries = _find_entries(content) or _find_unnamed_entries(content)
    if not entries:
        raise CheckpointError(f"{path} holds {_describe(content)}; {EXPECTED}. Save the weights alone: {SAVE_AGAIN}.")
    return WeightsFile(path, sha256_of(path), entries, has_order, _find_facts(content))


def _read_content(path: Path) -> tuple[object, bool]:
    """All that the file holds, and whether its tensors are in the order of the layers."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); expected a file of weights.") from None
    if start.startswith(b"PK\x03\x04"):
        _check_zip(path)
        return _load(path, mapped=True), True
    if start.startswith(LEGACY):
        return _load(path, mapped=False), True
    for place, sign, what, remedy in KINDS:
        if start[place:].startswith(sign):
            raise CheckpointError(f"{path} is {what}; {EXPECTED}. {remedy}")
    if start[8:9] == b"{":
        return _read_safetensors(path), False
    what = "is empty" if not start else "is no file of weights"
    if start.startswith(b"\x80"):
        what = "is a pickle that torch.save did not write"
    raise CheckpointError(f"{path} {what}; {EXPECTED}. Get it again, or save it again: {SAVE_AGAIN}.")


def _read_safetensors(path: Path) -> dict[str, object]:
    """The tensors, and beside them what the file's metadata say."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors: Tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from None
    numbers = {name: _parse_number(text) for name, text in metadata.items()}
    return {**numbers, **tensors}


def _parse_number(text: str) -> object:
    try:
        number = json.loads(text)
    except ValueError:
        return text
    return number if isinstance(number, int | float) else text


def _check_zip(path: Path) -> None:
    """Refuse a zip file that torch.save did not write, before anything in it is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            unpacked = sum(member.file_size for member in members)
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if any(name.endswith("/constants.pkl") for name in names):
                raise CheckpointError(
                    f"{path} is a TorchScript program, code beside weights; {EXPECTED}. "
                    f"Where you trust it, save its weights alone: {SAVE_AGAIN}."
                )
            if not stored or unpacked > path.stat().st_size or len(set(names)) < len(names):
                raise CheckpointError(
                    f"{path} is a zip file with compressed entries ({unpacked:,} bytes in {path.stat().st_size:,}), "
                    "which torch.save never writes; expected a file of weights. If one lies in it, unpack it first."
                )
            if not any(name.endswith("/data.pkl") for name in names):
                raise CheckpointError(
                    f"{path} is a zip file without weights of PyTorch; {EXPECTED}. If they lie in it, unpack it first."
                )
            _check_sums(archive, members)
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, NotImplementedError, struct.error) as error:
        raise _damaged(path, error) from None


def _check_sums(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    """Read every byte; the zip module compares the checksums, which torch.load does not."""
    for member in members:
        if member.CRC:  # torch.save can leave it out
            with archive.open(member) as content:
                while content.read(1 << 20):
                    pass


def _load(path: Path, *, mapped: bool) -> object:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # about other versions' formats; what matters raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        if _is_whole_model(path):
            raise CheckpointError(
                f"{path} is a whole model, as torch.save(model) writes it, and only its own code can open it; "
                f"{EXPECTED}. Where that code is at hand, save the weights alone: {SAVE_AGAIN}."
            ) from None
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"to open it would run {showable(asked[1])}" if asked else f"a pickle with more in it: {_reason(error)}"
        raise CheckpointError(
            f"{path} holds more than weights ({what}), so it was not opened; {EXPECTED}. "
            f"Where you trust it, save the weights alone: {SAVE_AGAIN}."
        ) from None
    except Exception as error:  # a hostile file can make the unpickler fail in any way
        raise _damaged(path, error) from None


def _is_whole_model(path: Path) -> bool:
    """Whether the pickle names layers, which no dictionary of weights does."""
    with path.open("rb") as file:
        return b"torch.nn.modules" in file.read(1 << 24)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or cut off ({_reason(error)}); {EXPECTED}. Get it again.")


def _reason(error: Exception) -> str:
    """What the library says, on one line and without its advice to open the file unsafely."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    told = [line for line in lines if not line.startswith("Check the documentation")]
    reason = told[-1] if isinstance(error, UnpicklingError) else lines[0]
    return showable(reason.removeprefix("WeightsUnpickler error: "))[:200].rstrip(".")


def _find_entries(content: object, place: str = "", depth: int = 3) -> dict[str, Tensors]:
    """The dictionaries of tensors that have a usual name, or are the whole content, by their place in it."""
    if not isinstance(content, dict):
        return {}
    parts = cast("dict[object, object]", content)
    found: dict[str, Tensors] = {}
    for name in ENTRIES if depth else ():
        found |= _find_entries(parts.get(name), f"{place}.{name}".removeprefix("."), depth - 1)
    return found or _own_tensors(parts, place)


def _find_unnamed_entries(content: object) -> dict[str, Tensors]:
    """The dictionaries of tensors with any name."""
    if not isinstance(content, dict):
        return {}
    found: dict[str, Tensors] = {}
    for name, part in cast("dict[object, object]", content).items():
        if isinstance(part, dict):
            found |= _own_tensors(cast("dict[object, object]", part), str(name))
    return found


def _own_tensors(parts: dict[object, object], place: str) -> dict[str, Tensors]:
    """The tensors directly in a dictionary, under its place; nothing where there are only single numbers."""
    tensors = {key: part.detach() for key, part in parts.items() if isinstance(key, str) and isinstance(part, Tensor)}
    return {place: tensors} if any(tensor.dim() for tensor in tensors.values()) else {}


def _describe(content: object) -> str:
    return "a dictionary without tensors" if isinstance(content, dict) else f"a {type(content).__name__} alone"


def _find_facts(content: object) -> dict[str, str | float]:
    """Epoch, architecture and accuracy, where the file tells them beside the weights."""
    facts: dict[str, str | float] = {}
    for name, value in cast("dict[object, object]", content).items() if isinstance(content, dict) else ():
        if isinstance(value, Tensor) and value.dim() == 0 and value.layout == torch.strided:
            value = value.item()
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not isinstance(name, str):
            continue
        if is_number and (name == "epoch" or ACCURACY.fullmatch(name)):
            facts[name] = float(f"{value:.6g}") if isinstance(value, float) else cast("int", value)
        if isinstance(value, str) and ARCHITECTURE.fullmatch(name):
            facts[name] = shorten(value, 60)
    return facts
