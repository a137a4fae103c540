"""Addresses and a SHA-256 -> a file that is the one that was meant.

Bytes arrive in FILE.part; the file gets its name only when its SHA-256 is right. What has arrived is never
thrown away, unless it is wrong: the next mirror, or the next run, goes on from there.
"""

import hashlib
import os
import sys
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from candid.errors import DataError

if sys.platform != "win32":
    import fcntl

CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Archive:
    """A file that is known to the last byte."""

    file: str
    sha256: str
    """In hexadecimal digits, or only the first of them where no more are known."""
    size: int
    """Bytes."""
    mirrors: tuple[str, ...] = ()
    """Its http or https addresses in the order they are tried; none where it ships with candid."""

    def is_right(self, sha256: str) -> bool:
        """Whether a file with this whole SHA-256 is this archive."""
        return sha256.startswith(self.sha256)

    @property
    def expected(self) -> str:
        """What its SHA-256 has to be, for a sentence."""
        return self.sha256 if len(self.sha256) == 64 else f"one that begins with {self.sha256}"


@dataclass(frozen=True)
class Patience:
    """When a mirror is left for the next one."""

    window_s: float = 20.0
    """The longest silence, and the time over which the rate is measured."""
    slowest_bytes_per_s: float = 50_000.0
    """A mirror below this rate is left, unless it is the only one that remains."""
    tries: int = 20
    """How often one mirror is asked again while each time brings new bytes."""


PATIENCE = Patience()


class DownloadError(DataError):
    """No mirror could give the file."""


class _MirrorError(Exception):
    """Why a mirror was left."""


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; expected a file. Make it readable or remove it."
        ) from error


def wrong_file(path: Path, archive: Archive, sha256: str) -> DataError:
    """The error that says that `path`, whose SHA-256 is `sha256`, is not `archive`, and what to do."""
    remedy = "Delete it and let candid download it again." if archive.mirrors else "Install candid again."
    return DataError(
        f"{path} is damaged or another file: its SHA-256 is {sha256}, expected {archive.expected}. {remedy}"
    )


def fetch(archives: Sequence[Archive], folder: Path, patience: Patience = PATIENCE) -> list[Path]:
    """Where the archives are in `folder`, downloaded where they are missing, every SHA-256 right."""
    paths: list[Path] = []
    for archive in archives:
        try:
            paths.append(fetch_one(archive, folder, patience))
        except AllFailedError as failed:
            missing = [other.file for other in archives if not (folder / other.file).exists()]
            raise DownloadError(
                f"{archive.file} could not be downloaded:\n"
                + "".join(f"  {address}: {reason}\n" for address, reason in failed.reasons.items())
                + "Without a connection, use another way to bring the files, and put them into "
                f"{folder}, or into a folder that you name with --data-dir: {', '.join(missing)}"
            ) from failed
        except OSError as error:
            raise DataError(
                f"{archive.file} cannot be stored in {folder}: {error.strerror}. Make room there or "
                "choose another folder for the cache with the environment variable XDG_CACHE_HOME."
            ) from error
    return paths


class AllFailedError(Exception):
    """Why each mirror could not give a file, by address; whoever asked says what to do."""

    def __init__(self, reasons: dict[str, str]) -> None:
        """Keep the reasons."""
        super().__init__(reasons)
        self.reasons = reasons


def size_at(address: str, patience: Patience = PATIENCE) -> int:
    """Bytes of the file at `address`, as its server tells without sending it."""
    try:
        with _answer(address, {"User-Agent": "candid-vision"}, patience.window_s, method="HEAD") as response:
            length = response.headers.get("Content-Length", "")
    except _MirrorError as error:
        raise AllFailedError({address: str(error)}) from error
    if not length.isdecimal():
        raise AllFailedError({address: "the server does not tell how large the file is"})
    return int(length)


def fetch_one(archive: Archive, folder: Path, patience: Patience = PATIENCE) -> Path:
    """Where `archive` is in `folder`, downloaded if it is missing; AllFailedError where no mirror gives it."""
    path = folder / archive.file
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{archive.file}.part"
        with _alone(folder / f".{archive.file}.lock"):
            if not path.exists():  # another process may have brought it while this one waited
                _download(archive, part, patience)
                os.replace(part, path)
                return path
    sha256 = sha256_of(path)
    if not archive.is_right(sha256):
        raise wrong_file(path, archive, sha256)
    return path


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """Keeps other processes that lock `path` waiting; the lock ends with the process, whatever happens.

    Windows has none: two downloads at once may spoil each other's part there, which the SHA-256 finds.
    """
    if sys.platform == "win32":
        yield
        return
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(Console(stderr=True), f"Waiting for another process that downloads to {path.parent}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(archive: Archive, part: Path, patience: Patience) -> None:
    """Brings all of `archive` into `part`, from one mirror or several, and checks its SHA-256."""
    mirrors = deque(archive.mirrors)
    tries: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    with _progress(archive) as show:
        while mirrors:
            address = mirrors.popleft()
            tries[address] += 1
            before = _size(part)
            try:
                _receive(address, archive, part, patience, bool(mirrors), show)
                _check(part, archive)
                return
            except _MirrorError as error:
                reasons[address] = str(error)
            # After a wrong end to another mirror's beginning nobody knows who was wrong: a new start tells.
            worth_another_try = _size(part) > before or (before > 0 and _size(part) == 0)
            if worth_another_try and tries[address] < patience.tries:
                mirrors.append(address)
    raise AllFailedError(reasons)


def _receive(
    address: str,
    archive: Archive,
    part: Path,
    patience: Patience,
    others_remain: bool,
    show: Callable[[int], None],
) -> None:
    """Appends to `part` what it lacks of `archive`."""
    have = _size(part)
    if have >= archive.size:
        return
    headers = {"User-Agent": "candid-vision"} | ({"Range": f"bytes={have}-"} if have else {})
    slowest = patience.slowest_bytes_per_s if others_remain else 0.0
    with _answer(address, headers, patience.window_s) as response:
        skip = _bytes_to_skip(response, have, archive.size)
        with part.open("ab") as file:
            for chunk in _chunks(response, patience.window_s, slowest):
                new = chunk[skip:]
                skip = max(0, skip - len(chunk))
                have += file.write(new[: archive.size - have])
                show(have)
                if have >= archive.size:
                    break
            file.flush()
            os.fsync(file.fileno())
    if have < archive.size:
        raise _MirrorError(f"the connection ended after {have} of {archive.size} bytes")


def _answer(address: str, headers: dict[str, str], timeout_s: float, method: str = "GET") -> HTTPResponse:
    """The mirror's answer; http and https only, after redirects too."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    try:
        response = opener.open(urllib.request.Request(address, headers=headers, method=method), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise _MirrorError(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise _MirrorError(_reason(error, timeout_s)) from error
    assert isinstance(response, HTTPResponse), "the opener has no handler for anything but http"
    return response


def _bytes_to_skip(response: HTTPResponse, have: int, size: int) -> int:
    """How many bytes of the answer are there already: none, or `have` from a server that ignores Range."""
    if response.status == 206:
        given = response.headers.get("Content-Range", "no Content-Range")
        expected = f"bytes {have}-{size - 1}/{size}"
        if given != expected:
            raise _MirrorError(f"it offers {given}; expected {expected}")
        return 0
    length = response.headers.get("Content-Length", str(size))
    if length != str(size):
        raise _MirrorError(f"it offers {length} bytes; expected {size}")
    return have


def _chunks(response: HTTPResponse, window_s: float, slowest_bytes_per_s: float) -> Iterator[bytes]:
    """The answer's bytes as they arrive, until it ends, falls silent or is too slow over a window."""
    window_began_s = time.monotonic()
    in_window = 0
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, HTTPException) as error:
            raise _MirrorError(_reason(error, window_s)) from error
        if not chunk:
            return
        yield chunk
        in_window += len(chunk)
        elapsed_s = time.monotonic() - window_began_s
        if elapsed_s >= window_s:
            if in_window < slowest_bytes_per_s * elapsed_s:
                raise _MirrorError(f"slower than {decimal(round(slowest_bytes_per_s))} a second")
            window_began_s, in_window = time.monotonic(), 0


def _check(part: Path, archive: Archive) -> None:
    sha256 = sha256_of(part)
    if not archive.is_right(sha256):
        part.unlink()
        raise _MirrorError(f"what arrived has the SHA-256 {sha256}, expected {archive.expected}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception, timeout_s: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer for {timeout_s:g} s"
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(error).__name__


@contextmanager
def _progress(archive: Archive) -> Generator[Callable[[int], None]]:
    """Yields what shows how many bytes are there: a bar, or one line in all where there is no terminal."""
    console = Console(stderr=True)
    text = f"Downloading {archive.file}"
    if not console.is_terminal:
        _say(console, f"{text} ({decimal(archive.size)})")
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(text, total=archive.size)
        yield lambda have: progress.update(task, completed=have)


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)
