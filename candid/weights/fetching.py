"""An address of weights becomes a file on this machine that has the SHA-256 it should have."""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from candid.data.download import AllFailedError, Archive, fetch_one, sha256_of, size_at
from candid.errors import CheckpointError, DataError, InputError

WEIGHTS_DIR = Path("weights")
NUM_DIGITS_IN_NAMES = 8
"""Of the SHA-256 in torchvision's file names, such as resnet50-0676ba61.pth: enough against accidents only."""


def is_address(source: str) -> bool:
    """Whether `source` is to be downloaded."""
    return source.startswith(("http://", "https://"))


def find_file(source: str, sha256: str = "", weights_dir: Path = WEIGHTS_DIR) -> Path:
    """The file that `source` names, downloaded into `weights_dir` if it is an address.

    A file that is downloaded needs a checksum: `sha256`, or the digits in its name.

    Raises:
        InputError: if there is no such file, or no checksum to download by.
        CheckpointError: if the file is not the one with that SHA-256, or cannot be had.
    """
    sha256 = sha256.lower()
    if sha256 and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise InputError(
            f"The SHA-256 {sha256!r} is not one; expected 64 hexadecimal digits. `sha256sum FILE` shows them."
        )
    if is_address(source):
        return _download(source, sha256, weights_dir)
    path = Path(source)
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file of weights. {_what_lies_in(path)}")
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {what}; expected weights (.safetensors, .pth, .pt, .pth.tar). Check the path.")
    found = sha256_of(path) if sha256 else ""
    if found != sha256:
        raise CheckpointError(
            f"{path} is damaged or another file: its SHA-256 is {found}, expected {sha256}. Get it again."
        )
    return path


def _what_lies_in(folder: Path) -> str:
    """Advice for one who names a folder: of a run, where its weights are."""
    weights = sorted(folder.glob("checkpoints/step-*/model.safetensors"))
    return f"The weights of this run are in {weights[-1]}." if weights else "Name the file in it."


def _download(address: str, sha256: str, folder: Path) -> Path:
    name = PurePosixPath(unquote(urlsplit(address).path)).name
    in_name = re.search(rf"-([0-9a-f]{{{NUM_DIGITS_IN_NAMES}}})\.\w+$", name)
    known = sha256 or (in_name[1] if in_name else "")
    if not name:
        raise InputError(f"{address} names no file; expected an address that ends in the name of one.")
    if not known:
        raise InputError(
            f"{address} has no checksum; expected eight digits of it in the name, as in resnet50-0676ba61.pth. "
            "Give the file's SHA-256 with --sha256, or download it yourself and name the file."
        )
    try:
        size = 0 if (folder / name).exists() else size_at(address)  # what is there is checked, not asked for
        return fetch_one(Archive(name, known, size, (address,)), folder)
    except AllFailedError as failed:
        reason = failed.reasons[address]
    except DataError as error:  # another file has the name
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(
            f"{name} cannot be stored in {folder}: {error.strerror}. Make room there or choose another --weights-dir."
        ) from error
    raise CheckpointError(
        f"{address} could not be downloaded: {reason}. Download it in another way and name the file."
    ) from None
