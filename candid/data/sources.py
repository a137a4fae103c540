"""What the user names -> pictures: files, folders, patterns, zip files, addresses and standard input.

Only names are looked at here; a picture's bytes are read when its turn comes, so that any number of them takes no room.
"""

import glob
import lzma
import os
import stat
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from candid.data.decoding import MAX_PIXELS, SUFFIXES, UnreadablePicture
from candid.data.fetching import fetch_picture, is_address
from candid.data.files import open_file
from candid.data.folders import list_pictures
from candid.errors import DataError, did_you_mean
from candid.words import showable

STANDARD_INPUT = "-"
LARGEST_BYTES = 3 * MAX_PIXELS + 1_000_000
"""Of a picture in a zip file or from standard input: what the largest that is decoded takes uncompressed, in RGB."""
LARGEST_UNPACKED_BYTES, LARGEST_RATIO = 1_000_000_000, 100
"""What the pictures in a zip file may unpack to: the former, or the latter times the file's size if that is more."""
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,  # bz2 raises it too
    RuntimeError,  # a compression that Python does not know
    ValueError,
)
"""What `zipfile` raises over files that are damaged or not for it."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture that is read when it is needed."""

    name: str
    """What the user calls it."""
    read: Callable[[], bytes]
    """Its bytes; UnreadablePicture says why there are none."""


def find_pictures(sources: Iterable[str | Path]) -> list[Picture]:
    """The pictures that are named, in order; pictures of folders and zip files sorted by their names.

    A source is a file, a folder (searched recursively), a zip file, a pattern such as "pictures/**/*.jpg", an http or
    https address, or "-" for standard input.

    Raises:
        DataError: if a source does not exist, holds no picture or cannot be opened.
    """
    given = [str(source) for source in sources]
    if given.count(STANDARD_INPUT) > 1:
        raise DataError("- is given twice; expected it once, because standard input holds one picture.")
    return [picture for source in given for picture in _find(source)]


def _find(source: str) -> Sequence[Picture]:
    if source == STANDARD_INPUT:
        return [_read_standard_input()]
    if is_address(source):
        return [Picture(showable(source), partial(fetch_picture, source))]
    path = Path(source)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
        if is_folder:
            os.scandir(path).close()
    except (FileNotFoundError, NotADirectoryError):
        return _matching(source)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; expected what you may read. Change its permissions, or its path."
        ) from None
    if is_folder:
        return _in_folder(path)
    return _in_zip(path) if path.suffix.lower() == ".zip" else [_file(path)]


def _file(path: Path) -> Picture:
    """A file that was named; a pipe that was named is waited for, as of a shell's <(...)."""
    return Picture(str(path), partial(_read, path, may_wait=path.is_fifo()))


def _read(path: Path, *, may_wait: bool = False) -> bytes:
    try:
        with path.open("rb") if may_wait else open_file(path) as file:
            return file.read()
    except OSError as error:
        raise UnreadablePicture(f"{path} cannot be read: {error.strerror}; expected a picture file.") from None


def _in_folder(folder: Path) -> Sequence[Picture]:
    files = list_pictures(folder)
    if not files:
        raise DataError(
            f"{folder} holds no pictures; expected at least one. Choose a file, or a folder with pictures in it."
        )
    return [Picture(str(folder / file), partial(_read, folder / file)) for file in files]


def _matching(pattern: str) -> Sequence[Picture]:
    """The pictures in all files that a pattern matches, as if each had been named; no folders, which hold them too."""
    if not glob.has_magic(pattern):
        raise DataError(
            f"{pattern} does not exist; expected a picture, a folder or zip file of pictures, a pattern such as "
            f"'pictures/*.jpg', an address (https://...), or - for standard input. {_nearest(pattern)}"
        )
    files = sorted(file for file in glob.iglob(pattern, recursive=True) if not os.path.isdir(file))
    if not files:
        raise DataError(f"{pattern} matches no file; expected at least one. {_nearest(pattern)}")
    return [picture for file in files for picture in _find(file)]


def _nearest(source: str) -> str:
    """Advice for a path that does not exist or a pattern that matches nothing: names near the first part of it."""
    missing = Path(source)
    while not missing.parent.is_dir():
        missing = missing.parent
    try:
        names = sorted(os.listdir(missing.parent))
    except OSError:  # the advice is a courtesy
        names = []
    return did_you_mean(missing.name, names, "Check the path.")


def _in_zip(path: Path) -> Sequence[Picture]:
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise DataError(
            f"{path} cannot be opened: {_reason(error)}; expected a whole zip file of pictures. Make or get it again."
        ) from None
    members = [member for member in archive.infolist() if _is_picture(member)]
    if not members:
        raise DataError(f"{path} holds no pictures; expected at least one. Choose a zip file with pictures in it.")
    if any(member.flag_bits & 1 for member in members):
        raise DataError(f"{path} is encrypted; expected a zip file without password. Unpack it, and name the folder.")
    unpacked, packed = sum(member.file_size for member in members), path.stat().st_size
    if unpacked > max(LARGEST_UNPACKED_BYTES, LARGEST_RATIO * packed):
        raise DataError(
            f"{path} would unpack {packed:,} bytes to {unpacked:,}; expected at most {LARGEST_RATIO} times as many, "
            "since pictures hardly shrink. If you trust it, unpack it, and name the folder."
        )
    members.sort(key=lambda member: member.filename)
    lock = threading.Lock()
    return [_member(archive, lock, member, showable(f"{path}/{member.filename}")) for member in members]


def _is_picture(member: zipfile.ZipInfo) -> bool:
    """As in folders; "__MACOSX/" has what macOS adds to each file, under the file's name."""
    parts = member.filename.split("/")
    is_hidden = any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX"
    return os.path.splitext(parts[-1])[1].lower() in SUFFIXES and not is_hidden


def _member(archive: zipfile.ZipFile, lock: threading.Lock, member: zipfile.ZipInfo, name: str) -> Picture:
    def read() -> bytes:
        _refuse_large(member.file_size, name)  # and zipfile reads no more of it than that
        try:
            with lock:  # zipfile counts its readers, and not in a way that threads could share
                return archive.read(member)
        except DAMAGE as error:
            raise UnreadablePicture(
                f"{name} cannot be read: {_reason(error)}; expected a whole picture. Make or get the zip file again."
            ) from None

    return Picture(name, read)


def _read_standard_input() -> Picture:
    """Read at once: a thread that waits for it could not be interrupted."""
    if sys.stdin.isatty():
        raise DataError(
            "- reads a picture from standard input, which is a terminal; expected a file or a pipe, as in "
            "`candid predict RUN - < picture.jpg`."
        )
    data = sys.stdin.buffer.read(LARGEST_BYTES + 1)
    _refuse_large(len(data), "Standard input")
    return Picture(STANDARD_INPUT, lambda: data)


def _refuse_large(num_bytes: int, name: str) -> None:
    if num_bytes > LARGEST_BYTES:
        raise UnreadablePicture(
            f"{name} has more than {LARGEST_BYTES // 1_000_000} MB; expected a picture. Make it smaller to use it."
        )


def _reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
