"""Sources of pictures: real files, real zip files, a real standard input."""

import io
import os
import pty
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import draw

from candid.data.decoding import UnreadablePicture
from candid.data.sources import LARGEST_BYTES, find_pictures
from candid.errors import DataError


def encoded(number: int = 0, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    draw("cross", number).save(buffer, form)
    return buffer.getvalue()


def names(*sources: object) -> list[str]:
    return [picture.name for picture in find_pictures([str(source) for source in sources])]


def refusal(*sources: object) -> str:
    """The text of the error that these sources end in."""
    with pytest.raises(DataError) as caught:
        names(*sources)
    return str(caught.value)


@pytest.fixture
def tree(here: Path) -> Path:
    """The working folder, with three pictures in two folders, and what is none."""
    for name in ("album/b.png", "album/deep/a.jpg", "album/deep/c.png", "album/notes.txt", "album/.hidden.png"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(encoded(len(name)))
    return here


@pytest.mark.usefixtures("tree")
def test_files_folders_and_patterns_are_taken_in_the_order_given():
    assert names("album/notes.txt", "album") == [
        "album/notes.txt",
        "album/b.png",
        "album/deep/a.jpg",
        "album/deep/c.png",
    ]
    assert names("album/*.png") == ["album/b.png"]
    assert names("album/**/*.png") == ["album/b.png", "album/deep/c.png"]
    assert names("album/**") == ["album/b.png", "album/deep/a.jpg", "album/deep/c.png", "album/notes.txt"]


def test_a_file_is_what_it_is_called_whatever_characters_are_in_its_name(here: Path):
    (here / "a[1]*.png").write_bytes(encoded())
    assert names("a[1]*.png") == ["a[1]*.png"]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("album/*.gif", "album/*.gif matches no file; expected at least one. Check the path."),
        ("albun/*.png", "albun/*.png matches no file; expected at least one. Did you mean album?"),
        (
            "album/deeep/a.jpg",
            "album/deeep/a.jpg does not exist; expected a picture, a folder or zip file of pictures, a pattern such as "
            "'pictures/*.jpg', an address (https://...), or - for standard input. Did you mean deep?",
        ),
    ],
)
def test_what_matches_nothing_is_refused_with_the_nearest_name(source: str, text: str):
    assert refusal(source) == text


def test_pictures_are_read_when_their_turn_comes(here: Path):
    (here / "a.png").write_bytes(b"before")
    (picture,) = find_pictures(["a.png"])
    (here / "a.png").write_bytes(b"after")
    assert picture.read() == b"after"
    (here / "a.png").unlink()
    with pytest.raises(UnreadablePicture) as caught:
        picture.read()
    assert str(caught.value) == "a.png cannot be read: No such file or directory; expected a picture file."


@contextmanager
def as_nobody() -> Generator[None]:
    """Without the privileges of root, whom no permission stops."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_without_read_permission_is_named():
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        locked = place / "locked"
        locked.mkdir()
        (locked / "a.png").write_bytes(encoded())
        locked.chmod(0)
        with as_nobody():
            texts = [refusal(locked), refusal(locked / "a.png")]
        locked.chmod(stat.S_IRWXU)
    advice = "cannot be read: Permission denied; expected what you may read. Change its permissions, or its path."
    assert texts == [f"{locked} {advice}", f"{locked}/a.png {advice}"]


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_pictures_in_a_zip_file_are_read_where_they_are(here: Path):
    members = {"z/b.png": encoded(1), "a.JPG": encoded(2, "JPEG"), "z/\x1b[2J.png": b""}
    ignored = {"../evil.png": b"", "notes.txt": b"", "__MACOSX/a.png": b"", "z/.b.png": b"", "z/": b""}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        write_zip(here / "album.zip", members | ignored, compression)
        assert names("album.zip") == ["album.zip/a.JPG", "album.zip/z/�[2J.png", "album.zip/z/b.png"]
        by_name = {picture.name: picture.read() for picture in find_pictures(["album.zip"])}
        assert by_name["album.zip/z/b.png"] == encoded(1)
        assert by_name["album.zip/a.JPG"] == encoded(2, "JPEG")
    assert os.listdir(here) == ["album.zip"]


def test_a_zip_file_without_pictures_is_refused(here: Path):
    write_zip(here / "album.zip", {"notes.txt": b"none"})
    assert refusal("album.zip") == (
        "album.zip holds no pictures; expected at least one. Choose a zip file with pictures in it."
    )


def test_a_damaged_zip_file_is_refused(here: Path):
    (here / "no.zip").write_bytes(b"no zip file")
    assert refusal("no.zip") == (
        "no.zip cannot be opened: File is not a zip file; expected a whole zip file of pictures. Make or get it again."
    )
    (here / "empty.zip").write_bytes(b"")
    assert refusal("empty.zip") == (
        "empty.zip cannot be opened: File is not a zip file; expected a whole zip file of pictures. "
        "Make or get it again."
    )


def test_a_damaged_picture_in_a_zip_file_is_reported_and_the_others_are_read(here: Path):
    path = write_zip(here / "album.zip", {"a.png": encoded(1), "b.png": encoded(2)}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    first, second = find_pictures(["album.zip"])
    with pytest.raises(UnreadablePicture) as caught:
        first.read()
    assert str(caught.value) == (
        "album.zip/a.png cannot be read: Bad CRC-32 for file 'a.png'; expected a whole picture. "
        "Make or get the zip file again."
    )
    assert second.read() == encoded(2)


def test_no_byte_that_changes_in_a_zip_file_escapes(here: Path):
    """Every byte of the directory and of a member's header, changed in three ways: read, or the one kind of error."""
    whole = write_zip(here / "album.zip", {"a.png": b"1" * 9}).read_bytes()
    for position in range(len(whole)):
        for change in (1, 8, 255):
            data = bytearray(whole)
            data[position] ^= change
            (here / "album.zip").write_bytes(data)
            with suppress(DataError):
                for picture in find_pictures(["album.zip"]):
                    picture.read()


def test_an_encrypted_zip_file_is_refused(here: Path):
    path = write_zip(here / "album.zip", {"a.png": encoded()})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags in the member's two headers
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    assert refusal("album.zip") == (
        "album.zip is encrypted; expected a zip file without password. Unpack it, and name the folder."
    )


def test_a_zip_file_that_explodes_is_refused(here: Path):
    """Its members say that they are large; one that says less is read no further than that."""
    path = write_zip(here / "bomb.zip", {f"{number}.bmp": bytes(10) for number in range(20)})
    claimed = declare(path, 250_000_000)
    assert refusal("bomb.zip") == (
        f"bomb.zip would unpack {claimed:,} bytes to 5,000,000,000; expected at most 100 times as many, "
        "since pictures hardly shrink. If you trust it, unpack it, and name the folder."
    )
    path = write_zip(here / "large.zip", {"a.bmp": bytes(10)})
    declare(path, LARGEST_BYTES + 1)
    with pytest.raises(UnreadablePicture) as caught:
        find_pictures(["large.zip"])[0].read()
    assert str(caught.value) == ("large.zip/a.bmp has more than 301 MB; expected a picture. Make it smaller to use it.")
    path = write_zip(here / "liar.zip", {"a.bmp": bytes(50_000_000)})
    declare(path, 1000)
    with pytest.raises(UnreadablePicture) as caught:
        find_pictures(["liar.zip"])[0].read()
    assert str(caught.value) == (
        "liar.zip/a.bmp cannot be read: Bad CRC-32 for file 'a.bmp'; expected a whole picture. "
        "Make or get the zip file again."
    )


def declare(path: Path, size: int) -> int:
    """Have the directory of a zip file say that each member has this many bytes; gives the bytes of the zip file."""
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        struct.pack_into("<I", data, at + 24, size)
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)
    return len(data)


def read_standard_input(**streams: object) -> str:
    """What a process says that reads a picture from its standard input."""
    program = (
        "from candid.data.sources import find_pictures\n"
        "from candid.errors import DataError\n"
        "try:\n    [one] = find_pictures(['-'])\n    print(one.name, one.read() == one.read(), len(one.read()))\n"
        "except DataError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=False, check=True, **streams)
    return done.stdout.decode()


def test_standard_input_is_one_picture():
    data = encoded()
    assert read_standard_input(input=data) == f"- True {len(data)}\n"
    assert refusal("-", "-") == "- is given twice; expected it once, because standard input holds one picture."


def test_a_terminal_is_no_picture():
    ours, theirs = pty.openpty()
    said = read_standard_input(stdin=theirs)
    os.close(ours)
    os.close(theirs)
    assert said == (
        "- reads a picture from standard input, which is a terminal; expected a file or a pipe, as in "
        "`candid predict RUN - < picture.jpg`.\n"
    )


def test_an_address_is_fetched_when_its_turn_comes_and_by_the_strict_rules():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"HTTP://127.0.0.1:{listener.getsockname()[1]}/a.png"
        other, picture = find_pictures(["ftp://example.org/a.png", address])
        listener.settimeout(0)
        with pytest.raises(UnreadablePicture) as caught:
            picture.read()
        with pytest.raises(BlockingIOError):  # nobody has called
            listener.accept()
    assert (other.name, picture.name) == ("ftp://example.org/a.png", address)
    assert str(caught.value) == (
        f"{address} cannot be fetched: 127.0.0.1 is not on the public internet; expected a public picture. "
        "Download it in another way, and name the file."
    )
