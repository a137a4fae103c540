"""Servers on this machine that answer as they are told, for tests of fetching."""

import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

import pytest

from candid.data.decoding import UnreadablePicture
from candid.data.fetching import RULES, Rules, fetch_picture

CONTENTS = bytes(range(256)) * 500
Answer = Callable[[socket.socket, bytes], None]
CONNECTIONS: list[Any] = []
"""Where this process connected to, in all tests; Python tells it on every way to a connection."""


def note_connections(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        CONNECTIONS.append(arguments[1])


sys.addaudithook(note_connections)


@dataclass
class Server:
    """A server on this machine that answers as it is told, and keeps what it was asked."""

    listener: socket.socket
    answer: Answer
    asked: list[bytes]

    @property
    def port(self) -> int:
        return self.listener.getsockname()[1]

    def address(self, path: str = "/picture.png", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def serve(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                channel, _ = self.listener.accept()
                threading.Thread(target=self.serve_one, args=[channel], daemon=True).start()

    def serve_one(self, channel: socket.socket) -> None:
        with channel, suppress(OSError):
            asked = channel.recv(65536)
            self.asked.append(asked)
            self.answer(channel, asked)


@contextmanager
def serving(answer: Answer) -> Generator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(listener, answer, [])
        threading.Thread(target=server.serve, daemon=True).start()
        yield server
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def whole(channel: socket.socket, asked: bytes, *, contents: bytes = CONTENTS, kind: str = "image/png") -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {len(contents)}\r\n\r\n"
    channel.sendall(head.encode() + contents)


def plainly(text: str, *, then: bytes = b"") -> Answer:
    """An answer of these lines, and these bytes."""
    data = "".join(f"{line}\r\n" for line in (*text.splitlines(), "")).encode() + then
    return lambda channel, asked: channel.sendall(data)


def redirecting(location: str, status: int = 302) -> Answer:
    return plainly(f"HTTP/1.1 {status} Elsewhere\nLocation: {location}\nContent-Length: 0")


def without_end(head: str, piece: bytes) -> Answer:
    def answer(channel: socket.socket, asked: bytes) -> None:
        plainly(head)(channel, asked)
        while True:
            channel.sendall(piece)

    return answer


HERE = replace(RULES, is_allowed=lambda address: address == ip_address("127.0.0.1"))
"""As outside, but that this machine is allowed, and it alone."""


def refusal(address: str, rules: Rules = HERE) -> str:
    with pytest.raises(UnreadablePicture) as caught:
        fetch_picture(address, rules)
    return str(caught.value)


def names(**places: str) -> Callable[..., Any]:
    """A resolver that knows these names (`_` for a dot), and numbers in all their spellings."""
    known = {name.replace("_", "."): place for name, place in places.items()}

    def resolve(host: str, port: int, **options: Any) -> Any:
        return socket.getaddrinfo(known.get(host, host), port, flags=socket.AI_NUMERICHOST, **options)

    return resolve
