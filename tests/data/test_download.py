"""Downloads against a small server on this machine that misbehaves on request. No other network."""

import hashlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from candid.data.download import Archive, DownloadError, Patience, fetch, sha256_of
from candid.errors import DataError

CONTENTS = bytes(range(256)) * 1024
SHA256, SIZE = hashlib.sha256(CONTENTS).hexdigest(), len(CONTENTS)
WRONG = bytes(SIZE)
WRONG_SHA256 = hashlib.sha256(WRONG).hexdigest()
QUICK = Patience(window_s=1.0, slowest_bytes_per_s=1e6, tries=5)


class Mirror(ThreadingHTTPServer):
    """The first part of the path says how to behave: /good/FILE, /stalls/FILE and so on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.served: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.closing = threading.Event()

    def address(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        behaviour = self.path.split("/")[1]
        self.server.requests[behaviour] += 1
        if behaviour == "missing":
            self.send_error(404)
        elif behaviour == "redirects":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/data.bin")
            self.end_headers()
        else:
            with suppress(ConnectionError):
                self.send_file(behaviour)

    def send_file(self, behaviour: str) -> None:
        contents = {"wrong": WRONG, "shorter": CONTENTS[:1000]}.get(behaviour, CONTENTS)
        requested = self.headers.get("Range")
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
        if requested and behaviour != "ignores-range":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(contents) - 1}/{len(contents)}")
        else:
            start = 0
            self.send_response(200)
        if behaviour != "endless":
            self.send_header("Content-Length", str(len(contents) - start))
        self.end_headers()
        self.send_body(behaviour, contents[start:])

    def send_body(self, behaviour: str, body: bytes) -> None:
        if behaviour in ("drops", "stalls"):
            self.send(behaviour, body[: SIZE // 3])
            if behaviour == "stalls":
                self.server.closing.wait(5)
        elif behaviour == "slow":
            for start in range(0, len(body), SIZE // 20):
                self.send(behaviour, body[start : start + SIZE // 20])
                time.sleep(0.07)
        elif behaviour == "endless":
            while not self.server.closing.is_set():
                self.send(behaviour, body)
        else:
            self.send(behaviour, body)

    def send(self, behaviour: str, data: bytes) -> None:
        self.wfile.write(data)
        self.server.served[behaviour] += len(data)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    server = Mirror()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def archive_at(mirror: Mirror, *behaviours: str) -> Archive:
    return Archive("data.bin", SHA256, SIZE, tuple(map(mirror.address, behaviours)))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def assert_only_the_file(folder: Path) -> None:
    assert names_in(folder) == ["data.bin"]
    assert (folder / "data.bin").read_bytes() == CONTENTS


def test_a_file_that_is_missing_is_downloaded_and_one_that_is_there_is_not(mirror, tmp_path):
    for _ in range(2):
        assert fetch([archive_at(mirror, "good")], tmp_path / "new", QUICK) == [tmp_path / "new" / "data.bin"]
        assert_only_the_file(tmp_path / "new")
    assert mirror.requests == {"good": 1}


def test_an_interrupted_download_goes_on_where_it_was(mirror, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENTS[:200_000])
    fetch([archive_at(mirror, "good")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)
    assert mirror.served == {"good": SIZE - 200_000}


def test_a_part_that_is_complete_needs_no_mirror(mirror, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENTS)
    fetch([archive_at(mirror, "missing")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)
    assert not mirror.requests


def test_a_server_that_ignores_range_does_not_spoil_the_file(mirror, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENTS[:200_000])
    fetch([archive_at(mirror, "ignores-range")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)
    assert mirror.requests == {"ignores-range": 1}


@pytest.mark.parametrize("failing", ["drops", "stalls"])
def test_the_next_mirror_goes_on_where_a_failing_one_stopped(mirror, tmp_path, failing):
    fetch([archive_at(mirror, failing, "good")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)
    assert mirror.served[failing] == SIZE // 3
    assert mirror.served["good"] == SIZE - SIZE // 3


def test_the_only_mirror_is_asked_again_while_it_brings_new_bytes(mirror, tmp_path):
    fetch([archive_at(mirror, "missing", "drops")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)
    assert mirror.served == {"drops": SIZE}
    assert mirror.requests == {"missing": 1, "drops": 4}


def test_a_slow_mirror_is_left_for_the_next(mirror, tmp_path):
    fetch([archive_at(mirror, "slow", "good")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)
    assert 0 < mirror.served["good"] < SIZE


def test_a_slow_mirror_is_kept_when_no_other_remains(mirror, tmp_path):
    fetch([archive_at(mirror, "missing", "slow")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)
    assert mirror.requests == {"missing": 1, "slow": 1}


@pytest.mark.parametrize("failing", ["missing", "wrong", "shorter", "redirects"])
def test_the_second_mirror_is_used_when_the_first_has_no_such_file(mirror, tmp_path, failing):
    fetch([archive_at(mirror, failing, "good")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)
    assert mirror.requests == {failing: 1, "good": 1}


def test_no_more_is_stored_than_the_file_has(mirror, tmp_path):
    fetch([archive_at(mirror, "endless")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)


@pytest.mark.parametrize("junk", [200_000, SIZE, SIZE + 1])
def test_a_wrong_beginning_is_thrown_away_and_the_mirror_asked_again(mirror, tmp_path, junk):
    (tmp_path / "data.bin.part").write_bytes(bytes(junk))
    fetch([archive_at(mirror, "good")], tmp_path, QUICK)
    assert_only_the_file(tmp_path)


def test_a_wrong_checksum_leaves_no_file(mirror, tmp_path):
    with pytest.raises(DownloadError) as caught:
        fetch([archive_at(mirror, "wrong")], tmp_path, QUICK)
    assert str(caught.value) == (
        "data.bin could not be downloaded:\n"
        f"  {mirror.address('wrong')}: what arrived has the SHA-256 {WRONG_SHA256}, expected {SHA256}\n"
        f"Without a connection, use another way to bring the files, and put them into {tmp_path}, "
        "or into a folder that you name with --data-dir: data.bin"
    )
    assert names_in(tmp_path) == []


def test_when_all_mirrors_fail_the_text_gives_every_reason_and_the_way_by_hand(mirror, tmp_path):
    good = Archive("good.bin", SHA256, SIZE, (mirror.address("good"),))
    bad = archive_at(mirror, "missing", "redirects", "stalls")
    bad = Archive(bad.file, bad.sha256, bad.size, (*bad.mirrors, "file:///etc/passwd", "nonsense"))
    other = Archive("other.bin", SHA256, SIZE, (mirror.address("good"),))
    (tmp_path / "data.bin.part").write_bytes(CONTENTS[: SIZE // 2])
    with pytest.raises(DownloadError) as caught:
        fetch([good, bad, other], tmp_path, Patience(window_s=1.0, tries=1))
    assert str(caught.value) == (
        "data.bin could not be downloaded:\n"
        f"  {mirror.address('missing')}: HTTP 404 Not Found\n"
        f"  {mirror.address('redirects')}: unknown url type: ftp\n"
        f"  {mirror.address('stalls')}: no answer for 1 s\n"
        "  file:///etc/passwd: unknown url type: file\n"
        "  nonsense: unknown url type: 'nonsense'\n"
        f"Without a connection, use another way to bring the files, and put them into {tmp_path}, "
        "or into a folder that you name with --data-dir: data.bin, other.bin"
    )
    assert names_in(tmp_path) == ["data.bin.part", "good.bin"]
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENTS[: SIZE // 2 + SIZE // 3]


def test_reasons_of_a_file_of_another_size_and_of_an_early_end(mirror, tmp_path):
    with pytest.raises(DownloadError) as caught:
        fetch([archive_at(mirror, "shorter", "drops")], tmp_path, Patience(window_s=1.0, tries=1))
    assert str(caught.value).splitlines()[1:3] == [
        f"  {mirror.address('shorter')}: it offers 1000 bytes; expected {SIZE}",
        f"  {mirror.address('drops')}: the connection ended after {SIZE // 3} of {SIZE} bytes",
    ]


def test_a_mirror_whose_file_has_changed_does_not_spoil_the_part(mirror, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENTS[:500])
    with pytest.raises(DownloadError) as caught:
        fetch([archive_at(mirror, "shorter")], tmp_path, QUICK)
    assert str(caught.value).splitlines()[1] == (
        f"  {mirror.address('shorter')}: it offers bytes 500-999/1000; expected bytes 500-{SIZE - 1}/{SIZE}"
    )
    assert (tmp_path / "data.bin.part").read_bytes() == CONTENTS[:500]


@pytest.mark.parametrize(
    ("mirrors", "remedy"),
    [
        (("http://127.0.0.1/data.bin",), "Delete it and let candid download it again."),
        ((), "Install candid again."),
    ],
)
def test_a_damaged_file_that_is_there_already_is_refused(tmp_path, mirrors, remedy):
    (tmp_path / "data.bin").write_bytes(WRONG)
    with pytest.raises(DataError) as caught:
        fetch([Archive("data.bin", SHA256, SIZE, mirrors)], tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/data.bin is damaged or another file: its SHA-256 is {WRONG_SHA256}, expected {SHA256}. {remedy}"
    )


def test_a_folder_that_cannot_be_made_is_named(mirror, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError) as caught:
        fetch([archive_at(mirror, "good")], tmp_path / "file" / "cache")
    assert str(caught.value) == (
        f"data.bin cannot be stored in {tmp_path}/file/cache: Not a directory. Make room there or "
        "choose another folder for the cache with the environment variable XDG_CACHE_HOME."
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError) as caught:
        sha256_of(tmp_path)
    assert (
        str(caught.value)
        == f"{tmp_path} cannot be read: Is a directory; expected a file. Make it readable or remove it."
    )


def test_two_processes_share_one_download(mirror, tmp_path):
    script = (
        "from candid.data.download import Archive, fetch; from pathlib import Path; "
        f"fetch([{archive_at(mirror, 'slow')!r}], Path({str(tmp_path)!r}))"
    )
    command = [sys.executable, "-c", script]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    assert_only_the_file(tmp_path)
    assert mirror.served == {"slow": SIZE}


def test_without_a_terminal_progress_is_one_line_on_stderr(mirror, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    fetch([archive_at(mirror, "drops")], tmp_path, QUICK)
    assert capsys.readouterr() == ("", "Downloading data.bin (262.1 kB)\n")


def test_on_a_terminal_progress_is_a_bar_on_stderr(mirror, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    fetch([archive_at(mirror, "good")], tmp_path, QUICK)
    assert "Downloading data.bin" in capsys.readouterr().err
