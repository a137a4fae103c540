"""Whatever lies in a folder under a picture's name: it is read, or named with the reason, and nothing waits for it."""

import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import zipfile
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import call, draw, make_pictures
from golden import COLOR, encoded
from processes import outcome, start
from test_golden_pictures import twelve_bit_jpeg
from test_picture_limits import giant_png

from candid.data.decoding import UnreadablePicture, decode_file, is_grey
from candid.data.examples import FileExamples
from candid.data.files import MAX_FILE_BYTES
from candid.data.folders import list_pictures, open_folder
from candid.data.preprocessing import Preprocessing
from candid.data.reading import decode_all
from candid.errors import DataError

WAIT_S = 60
EXPECTED = "expected a whole picture (JPEG, PNG, GIF, BMP, TIFF, WebP, PPM)."
UNKNOWN = f"{{}} cannot be decoded: no format that candid reads; {EXPECTED}"
DAMAGED = f"{{}} cannot be decoded: its header is damaged, or of a kind that candid does not read (REASON); {EXPECTED}"
CUT_OFF = f"{{}} cannot be decoded: it is cut off; {EXPECTED}"
JPEG, PNG, GIF, TIFF, WEBP, BMP = (
    encoded(COLOR, "JPEG"),
    encoded(COLOR, "PNG"),
    encoded(COLOR[:, :, 0], "GIF"),
    encoded(COLOR, "TIFF"),
    encoded(COLOR, "WEBP"),
    encoded(COLOR, "BMP"),
)
WORDS: dict[str, tuple[bytes, str]] = {  # what is written to a file, and what is said of it
    "empty.jpg": (b"", "{} is empty (0 bytes); expected a picture."),
    "byte.jpg": (b"\xff", UNKNOWN),
    "text.jpg": (b"I am no picture.\n", UNKNOWN),
    "page.png": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", UNKNOWN),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", UNKNOWN),
    "document.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", UNKNOWN),
    "zeros.jpg": (bytes(5_000), UNKNOWN),
    "cut-in-header.jpg": (JPEG[:100], CUT_OFF),
    "cut.jpg": (JPEG[:-40], CUT_OFF),
    "cut-in-header.png": (PNG[:20], CUT_OFF),
    "cut.png": (PNG[:-40], CUT_OFF),
    "cut-in-header.gif": (GIF[:9], CUT_OFF),
    "cut.gif": (GIF[:-20], CUT_OFF),
    "cut.tif": (TIFF[:-10], CUT_OFF),
    "cut.webp": (WEBP[:-10], DAMAGED.replace("REASON", "could not create decoder object")),
    "cut.bmp": (BMP[:-10], CUT_OFF),
    "cut.ppm": (b"P6 24 16 255 " + COLOR.tobytes()[:-1], CUT_OFF),
    "changed.png": (
        PNG[:18] + b"\1" + PNG[19:],
        DAMAGED.replace("REASON", "broken PNG file (bad header checksum in b'IHDR')"),
    ),
    "giant.png": (giant_png(20_000), "{} has more than 100 million pixels; make it smaller to use it."),
    "12-bit.jpg": (twelve_bit_jpeg(), DAMAGED.replace("REASON", "cannot handle 12-bit layers")),
}


def make_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("picture.png", PNG)


def make_sparse(path: Path, beginning: bytes, size: int) -> None:
    path.write_bytes(beginning)
    os.truncate(path, size)


def make_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    here = os.getcwd()
    os.fchdir(folder)  # the whole path is too long for a socket's name
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)
    os.close(folder)


NO_FILE = "{} cannot be read: Not a regular file; expected a picture file."
THINGS: dict[str, tuple[Callable[[Path], object], str]] = {  # what is made at a path, and what is said of it
    "folder.jpg": (Path.mkdir, "{} cannot be read: Is a directory; expected a picture file."),
    "pipe.jpg": (os.mkfifo, NO_FILE),
    "device.jpg": (lambda path: path.symlink_to("/dev/zero"), NO_FILE),
    "socket.jpg": (make_socket, f"{{}} cannot be read: {os.strerror(errno.ENXIO)}; expected a picture file."),
    "broken-link.jpg": (
        lambda path: path.symlink_to("nowhere.jpg"),
        "{} cannot be read: No such file or directory; expected a picture file.",
    ),
    "circle.jpg": (
        lambda path: path.symlink_to(path.name),
        f"{{}} cannot be read: {os.strerror(errno.ELOOP)}; expected a picture file.",
    ),
    "archive.png": (make_archive, UNKNOWN),
    "huge.jpg": (
        partial(make_sparse, beginning=JPEG, size=2**40),
        "{} cannot be read: Larger than 1 GiB; expected a picture file.",
    ),
    "holes.jpg": (
        partial(make_sparse, beginning=JPEG[:100], size=MAX_FILE_BYTES),
        f"{{}} cannot be decoded: its header goes on for more than 16 MB; {EXPECTED}",
    ),
}


@pytest.fixture(autouse=True)
def no_waiting() -> Generator[None]:
    """A pipe would be waited for without end."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"still waiting after {WAIT_S} s")

    handler = signal.signal(signal.SIGALRM, fail)
    signal.alarm(WAIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which only one file, good.png, is a picture."""
    folder = tmp_path_factory.mktemp("bad")
    for name, (data, _) in WORDS.items():
        (folder / name).write_bytes(data)
    for name, (make, _) in THINGS.items():
        make(folder / name)
    draw("circle", 0).save(folder / "good.png")
    return folder


def test_there_are_at_least_20_kinds():
    assert len(WORDS) + len(THINGS) >= 20


@pytest.mark.parametrize("name", [*WORDS, *THINGS])
def test_each_kind_is_refused_with_its_path_and_the_reason(bad: Path, name: str):
    text = (WORDS | THINGS)[name][1]
    with pytest.raises(UnreadablePicture) as caught:
        decode_file(bad / name, 3)
    assert str(caught.value) == text.format(bad / name)


@pytest.mark.parametrize("name", [*WORDS, *THINGS])
def test_each_kind_is_asked_for_its_colours_without_harm(bad: Path, name: str):
    is_grey(bad / name)


def test_all_are_found_and_all_that_are_bad_are_listed(bad: Path):
    found = list_pictures(bad)
    assert found == sorted({*WORDS, *THINGS, "good.png"} - {"folder.jpg"})
    preprocessing = Preprocessing(image_size=8, channels=3, fit="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
    files = FileExamples(bad, tuple(found), torch.zeros(len(found), dtype=torch.long))
    with pytest.raises(DataError) as caught:
        decode_all(files, preprocessing)
    first, *lines = str(caught.value).splitlines()
    texts = [(WORDS | THINGS)[name][1].format(bad / name) for name in found if name != "good.png"]
    assert first == (
        f"{len(texts)} pictures cannot be used; expected whole pictures, so replace or remove them, or go on without "
        "by --bad-images skip:"
    )
    assert lines == [f"  {text}" for text in texts]


def test_the_files_are_left_as_they_are(bad: Path):
    for name, (data, _) in WORDS.items():
        assert (bad / name).read_bytes() == data
    assert os.readlink(bad / "device.jpg") == "/dev/zero"


@pytest.mark.parametrize("name", ["pipe.jpg", "device.jpg", "huge.jpg", "broken-link.jpg", "circle.jpg"])
def test_a_folder_that_is_split_by_content_names_what_cannot_be_read(bad: Path, tmp_path: Path, name: str):
    folder = make_pictures(tmp_path / "pictures", per_class=4)
    make, text = THINGS[name]
    make(folder / "cross" / name)
    said = tmp_path / "said.txt"
    assert outcome(start(say_what_is_wrong, folder, said), WAIT_S / 2) == 0  # whose threads no signal would end
    assert said.read_text().splitlines()[1:] == [f"  {text.format(folder / 'cross' / name)}"]


def say_what_is_wrong(folder: Path, said: Path) -> None:
    preprocessing = Preprocessing(image_size=8, channels=3, fit="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
    for open_split in open_folder(folder).openers.values():
        examples = open_split()
        assert isinstance(examples, FileExamples)
        try:
            decode_all(examples, preprocessing)
        except DataError as error:
            said.write_text(str(error))


def test_a_file_without_permission_is_refused():
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        (folder / "secret.jpg").write_bytes(JPEG)
        (folder / "secret.jpg").chmod(0)
        assert outcome(start(read_as_nobody, folder / "secret.jpg"), WAIT_S) == 0
    finally:
        shutil.rmtree(folder)


def read_as_nobody(path: Path) -> None:
    if os.geteuid() == 0:  # who may read everything
        os.setuid(65_534)
    with pytest.raises(UnreadablePicture) as caught:
        decode_file(path, 3)
    if str(caught.value) != f"{path} cannot be read: Permission denied; expected a picture file.":
        sys.exit(str(caught.value))
    if is_grey(path):
        sys.exit("grey")


def test_prediction_goes_on_past_all_of_them(capsys, run: Path, bad: Path):
    code, out, err = call(capsys, "predict", run, bad, "--json")
    assert out.count('"problem"') == len(WORDS) + len(THINGS) - 1
