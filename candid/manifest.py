"""What each file of a saved folder must be, manifest.json, and whether it still is that, to the last byte."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path

from candid.errors import CheckpointError

FORMAT_VERSION = 2
REMEDY = "Use a good copy of the run, or train it again."


class Description:
    """Size and SHA-256 of a file, taken while it is written piece by piece."""

    def __init__(self) -> None:
        """Of an empty file."""
        self._size, self._sha256 = 0, hashlib.sha256()

    def of(self, pieces: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """The same pieces, each noted as it passes."""
        for piece in pieces:
            self._size += len(piece)
            self._sha256.update(piece)
            yield piece

    def as_dict(self) -> dict[str, object]:
        """As the manifest has it."""
        return {"size": self._size, "sha256": self._sha256.hexdigest()}


def describe_files(descriptions: Mapping[str, Description]) -> str:
    """The text of manifest.json for a folder with these files."""
    return _manifest({name: description.as_dict() for name, description in descriptions.items()})


def read_verified(folder: Path, name: str) -> bytes:
    """The bytes of a file, after its size and SHA-256 were found to be those of the manifest."""
    file, expected = _open_saved(folder, name)
    with file:
        data = file.read()
    _refuse_changed(folder / name, _describe(data), expected)
    return data


def verify_file(folder: Path, name: str) -> Path:
    """The path of a file, after the same was found of it piece by piece."""
    file, expected = _open_saved(folder, name)
    with file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        _refuse_changed(folder / name, {"size": file.tell(), "sha256": sha256}, expected)
    return folder / name


def verify_folder(folder: Path) -> dict[str, dict[str, object]]:
    """Size and SHA-256 of each file of the manifest, after each was found to be so."""
    files = _read_manifest(folder)
    for name in files:
        verify_file(folder, name)
    return files


def _open_saved(folder: Path, name: str) -> tuple[BufferedReader, object]:
    """A file, and what the manifest says of it."""
    expected = _read_manifest(folder).get(name)
    try:
        return (folder / name).open("rb"), expected
    except FileNotFoundError:
        raise CheckpointError(f"{folder / name} is missing. {REMEDY}") from None


def _refuse_changed(path: Path, found: object, expected: object) -> None:
    if found != expected:
        raise CheckpointError(f"{path} is not what was saved (its SHA-256 differs). {REMEDY}")


def _read_manifest(folder: Path) -> dict[str, dict[str, object]]:
    """What manifest.json says of each file, after every byte of it was found to be as it was written."""
    path = folder / "manifest.json"
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        version = manifest.get("format_version", 1)
        is_whole = version != FORMAT_VERSION or text == _manifest(dict(manifest["files"]))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing. {REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        version, is_whole, manifest = FORMAT_VERSION, False, {}
    if not is_whole:
        raise CheckpointError(f"{path} is damaged. {REMEDY}")
    if version != FORMAT_VERSION:
        remedy = "Use the candid version that wrote it." if version == 1 else "Install a newer candid."
        raise CheckpointError(f"{folder} has format version {version}; expected version {FORMAT_VERSION}. {remedy}")
    return manifest["files"]


def _manifest(files: Mapping[str, object]) -> str:
    """The text of manifest.json: what each file must be, and a SHA-256 of that, so that no byte of it can change."""
    contents = {"format_version": FORMAT_VERSION, "files": files}
    sha256 = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    return json.dumps(contents | {"sha256": sha256}, indent=2) + "\n"


def _describe(data: bytes) -> dict[str, object]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
