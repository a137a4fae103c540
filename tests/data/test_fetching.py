"""Fetching a picture from an address: servers that misbehave, bounds of time and size, TLS."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from serving import (
    CONTENTS,
    HERE,
    Answer,
    Server,
    names,
    plainly,
    redirecting,
    refusal,
    serving,
    whole,
    without_end,
)

from candid.data.fetching import RULES, fetch_picture, is_public


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(whole) as server:
        yield server


def test_the_rules_are_those_promised():
    assert (RULES.seconds, RULES.largest_bytes, RULES.redirects) == (10.0, 20_000_000, 5)
    assert (RULES.is_allowed, RULES.resolve) == (is_public, socket.getaddrinfo)


def test_a_picture_arrives(server: Server):
    assert fetch_picture(server.address("/a b/ü.png?x=1&y=[2]#part"), HERE) == CONTENTS
    assert server.asked[0].decode().split("\r\n") == [
        "GET /a%20b/%C3%BC.png?x=1&y=[2] HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "User-Agent: candid-vision",
        "Accept: image/*",
        "Accept-Encoding: identity",
        "Connection: close",
        "",
        "",
    ]


def test_the_next_address_of_a_name_is_tried_where_the_first_does_not_answer(server: Server):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))

        def resolve(host: str, port: int, **options: Any) -> Any:
            first = socket.getaddrinfo("127.0.0.1", closed.getsockname()[1], **options)
            return first + socket.getaddrinfo("127.0.0.1", port, **options)

        assert fetch_picture(server.address(host="both.test"), replace(HERE, resolve=resolve)) == CONTENTS


def test_five_redirects_are_followed_and_no_more():
    def count_down(channel: socket.socket, asked: bytes) -> None:
        left = int(asked.split()[1].strip(b"/"))
        (redirecting(f"/{left - 1}") if left else whole)(channel, asked)

    with serving(count_down) as server:
        assert fetch_picture(server.address("/5"), HERE) == CONTENTS
        assert refusal(server.address("/6")) == (
            f"{server.address('/6')}, which redirects to {server.address('/0')!r}, cannot be fetched: it redirects "
            "more than 5 times; expected a public picture. Download it in another way, and name the file."
        )
        assert len(server.asked) == 12


def test_no_proxy_of_the_environment_is_asked(server: Server, monkeypatch: pytest.MonkeyPatch):
    with serving(whole) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.address(""))
        assert fetch_picture(server.address(), HERE) == CONTENTS
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("answer", "reason", "remedy"),
    [
        (
            partial(whole, kind="text/html; charset=utf-8"),
            "it is a web page",
            "Open it, and copy the picture's own address.",
        ),
        (plainly("HTTP/1.1 404 Not Found"), "the server answers 404 Not Found", "Check the address."),
        (plainly("HTTP/1.1 302 Found"), "the server answers 302 Found", "Check the address."),
        (
            plainly("HTTP/1.1 200 OK\nContent-Length: 20", then=b"short"),
            "the connection ended 15 bytes too early",
            "Try again.",
        ),
        (
            plainly("no \x1b[1mHTTP"),
            "the server gives no whole answer (no \ufffd[1mHTTP\ufffd\ufffd)",
            "Download it in another way, and name the file.",
        ),
        (
            redirecting("http://[/"),
            "the server gives no whole answer (Invalid IPv6 URL)",
            "Download it in another way, and name the file.",
        ),
        (
            lambda channel, asked: None,
            "the server gives no whole answer (Remote end closed connection without response)",
            "Download it in another way, and name the file.",
        ),
    ],
)
def test_an_answer_without_a_picture_is_said(answer: Answer, reason: str, remedy: str):
    with serving(answer) as server:
        assert refusal(server.address()) == (
            f"{server.address()} cannot be fetched: {reason}; expected a public picture. {remedy}"
        )


def test_a_server_that_is_not_there_is_said():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert refusal(f"http://127.0.0.1:{port}/a.png") == (
        f"http://127.0.0.1:{port}/a.png cannot be fetched: there is no connection to 127.0.0.1 (Connection refused); "
        "expected a public picture. Download it in another way, and name the file."
    )


@pytest.mark.parametrize(
    "answer",
    [
        without_end("HTTP/1.1 200 OK", bytes(4096)),
        without_end("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"1000\r\n" + bytes(4096) + b"\r\n"),
        plainly("HTTP/1.1 200 OK\nContent-Length: 128001"),
        without_end("HTTP/1.1 200 OK\nContent-Length: 99999999999999999999", bytes(4096)),
        without_end("HTTP/1.1 200 OK\nContent-Length: -1", bytes(4096)),
    ],
)
def test_more_bytes_than_allowed_are_not_taken(answer: Answer):
    with serving(answer) as server:
        assert refusal(server.address(), replace(HERE, largest_bytes=len(CONTENTS))) == (
            f"{server.address()} cannot be fetched: it has more than 128,000 bytes; expected a public picture. "
            "Download it in another way, and name the file."
        )


def test_exactly_as_many_bytes_as_allowed_are_taken(server: Server):
    assert fetch_picture(server.address(), replace(HERE, largest_bytes=len(CONTENTS))) == CONTENTS


def test_what_comes_behind_the_length_that_was_told_is_left():
    with serving(without_end("HTTP/1.1 200 OK\nContent-Length: 10", b"0123456789")) as server:
        assert fetch_picture(server.address(), HERE) == b"0123456789"


def dripping(head: bytes) -> Answer:
    """A byte every now and then, of which no single one is late."""

    def answer(channel: socket.socket, asked: bytes) -> None:
        channel.sendall(head)
        while True:
            channel.sendall(b"x")
            time.sleep(0.02)

    return answer


def keep_waiting(channel: socket.socket, asked: bytes) -> None:
    while channel.recv(65536):
        pass


@pytest.mark.parametrize(
    "answer",
    [
        dripping(b""),
        dripping(b"HTTP/1.1 200 OK\r\nX-Long: "),
        dripping(b"HTTP/1.1 200 OK\r\n\r\n"),
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
        without_end("HTTP/1.1 100 Continue", b"HTTP/1.1 100 Continue\r\n\r\n"),
        keep_waiting,
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_server_takes_more_time_than_there_is(answer: Answer, scheme: str):
    begun_at_s = time.monotonic()
    with serving(answer) as server:
        text = refusal(server.address(scheme=scheme), replace(HERE, seconds=0.4))
        is_late = (
            f"{server.address(scheme=scheme)} cannot be fetched: not all of it came within 0.4 s; "
            "expected a public picture. Try again, or download it in another way."
        )
        assert text == is_late or (scheme == "https" and "there is no connection to 127.0.0.1" in text)
    assert time.monotonic() - begun_at_s < 5


def test_no_redirects_add_up_to_more_time_than_there_is():
    def slowly(channel: socket.socket, asked: bytes) -> None:
        time.sleep(0.15)
        redirecting("/again.png")(channel, asked)

    with serving(slowly) as server:
        assert "not all of it came within 0.4 s" in refusal(server.address(), replace(HERE, seconds=0.4))
        assert len(server.asked) <= 3


def test_no_resolver_takes_more_time_than_there_is():
    free = threading.Event()
    rules = replace(HERE, seconds=0.1, resolve=lambda *_, **__: [] if free.wait(30) else [])
    begun_at_s = time.monotonic()
    assert refusal("http://slow.test/", rules) == (
        "http://slow.test/ cannot be fetched: not all of it came within 0.1 s; expected a public picture. "
        "Try again, or download it in another way."
    )
    assert time.monotonic() - begun_at_s < 5
    free.set()


CERTIFICATE = Path(__file__).parent / "pictures_test.pem"
"""For "pictures.test", by nobody. Remake: openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes
-keyout - -out - -days 36500 -subj /CN=pictures.test -addext subjectAltName=DNS:pictures.test"""


@pytest.fixture
def tls_server() -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with serving(whole) as server:
        serve_plainly = server.serve_one

        def serve_one(channel: socket.socket) -> None:
            with channel, suppress(OSError):
                serve_plainly(context.wrap_socket(channel, server_side=True))

        server.serve_one = serve_one
        yield server


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=CERTIFICATE)


def test_tls_is_verified_for_the_name_that_was_asked_for(tls_server: Server):
    rules = replace(HERE, resolve=names(pictures_test="127.0.0.1", other_test="127.0.0.1"), tls=trusting)
    assert fetch_picture(tls_server.address(host="pictures.test", scheme="https"), rules) == CONTENTS
    address = tls_server.address(host="other.test", scheme="https")
    assert refusal(address, rules) == (
        f"{address} cannot be fetched: the certificate of other.test is not valid (Hostname mismatch, certificate is "
        "not valid for 'other.test'.); expected a public picture. Download it in another way, and name the file."
    )
    address = tls_server.address(host="pictures.test", scheme="https")
    text = refusal(address, replace(rules, tls=RULES.tls)).replace("self signed", "self-signed")  # OpenSSL's spellings
    assert text == (
        f"{address} cannot be fetched: the certificate of pictures.test is not valid (self-signed certificate); "
        "expected a public picture. Download it in another way, and name the file."
    )
    assert len(tls_server.asked) == 1
