"""An address that somebody gives -> the picture there, reaching nothing that is not public.

Whoever may name an address could otherwise have this machine look into its own network: at a router, a neighbour, a
cloud's secrets. So a name is resolved once, every address it has must be public, and the connection goes to the
address that was checked; each redirect starts anew. No proxy is asked, and nothing but http and https is spoken.
Time and size are bounded, whatever the server does.
"""

import io
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from queue import Empty, Queue
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from candid.data.decoding import UnreadablePicture
from candid.words import showable

PORTS = {"http": 80, "https": 443}
SAFE = "/?%:@!$&'()*+,;=~[]"
"""What stands in a path and a query as it is, besides letters and digits; nothing that could end a line is there."""
CHUNK_BYTES = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
WEB_PAGES = ("text/html", "application/xhtml+xml")

ALLOCATED = ip_network("2000::/3")
"""All of IPv6 that is public; the rest is special or not given out yet."""
TRANSLATED = ip_network("64:ff9b::/96")
"""IPv4 as it is reached from networks that have IPv6 only (RFC 6052)."""
SPECIAL = tuple(map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")))
"""What some versions of Python take for public: protocol assignments, relays, tunnels such as Teredo, documentation."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one machine's on the public internet, not a network's, a tunnel's or a group's."""
    inner = _embedded(address)
    if inner is not None:
        return is_public(inner)
    if isinstance(address, IPv6Address) and address not in ALLOCATED:
        return False
    is_special = address.is_multicast or address.is_reserved or any(address in network for network in SPECIAL)
    return address.is_global and not is_special


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    """The IPv4 address that one of IPv6 stands for: mapped, 6to4 or translated. Other such forms are never public."""
    if isinstance(address, IPv4Address):
        return None
    if address in TRANSLATED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


@cache
def _verifying_tls() -> ssl.SSLContext:
    """TLS that verifies the server's name against the system's authorities."""
    return ssl.create_default_context()


@dataclass(frozen=True)
class Rules:
    """What may be fetched; only tests need others than the default."""

    seconds: float = 10.0
    """For all of it: names, redirects and the picture."""
    largest_bytes: int = 20_000_000
    redirects: int = 5
    is_allowed: Callable[[IPv4Address | IPv6Address], bool] = is_public
    resolve: Callable[..., Sequence[tuple[Any, ...]]] = socket.getaddrinfo
    tls: Callable[[], ssl.SSLContext] = _verifying_tls


RULES = Rules()


class _Refusal(Exception):
    """Why there is no picture, as a part of a sentence, and what to do, as another."""

    def __init__(self, reason: str, remedy: str = "Download it in another way, and name the file.") -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class _Place:
    """An address in parts, in the letters that go over the wire."""

    scheme: str
    host: str
    """A name, or an IP address without brackets."""
    port: int
    target: str
    """Path and query."""


def is_address(source: str) -> bool:
    """Whether `source` is to be fetched: it has a scheme, if only one that is refused."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source) is not None


def fetch_picture(address: str, rules: Rules = RULES) -> bytes:
    """The bytes at an http or https address.

    Raises:
        UnreadablePicture: if it leads to an address that is not public, or to no picture within the rules.
    """
    ends_at_s = time.monotonic() + rules.seconds
    here = address
    try:
        for _ in range(1 + rules.redirects):
            answer = _ask(here, rules, ends_at_s)
            if isinstance(answer, bytes):
                return answer
            here = answer
        raise _Refusal(f"it redirects more than {rules.redirects} times")
    except _Refusal as refusal:
        reason, remedy = str(refusal), refusal.remedy
    except TimeoutError:
        reason, remedy = f"not all of it came within {rules.seconds:g} s", "Try again, or download it in another way."
    via = "" if here == address else f", which redirects to {here!r},"
    text = f"{address}{via} cannot be fetched: {reason}; expected a public picture. {remedy}"
    raise UnreadablePicture(showable(text))  # parts of it are the server's


def _ask(address: str, rules: Rules, ends_at_s: float) -> bytes | str:
    """The picture at an address, or the address that it redirects to."""
    place = _take_apart(address)
    with _connect(place, rules, ends_at_s) as channel:
        try:
            channel.sendall(_request(place))
            answer = _receive(channel, rules, ends_at_s)
            return urljoin(address, answer) if isinstance(answer, str) else answer
        except TimeoutError:
            raise
        except (OSError, HTTPException, ValueError) as error:
            raise _Refusal(f"the server gives no whole answer ({_reason(error)})") from None


def _take_apart(address: str) -> _Place:
    nonsense = _Refusal("it is no address", "Write it as in https://example.org/picture.jpg.")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
        if ":" not in host:
            host = host.encode("idna").decode("ascii").lower().removesuffix(".")
        target = quote(parts.path or "/", SAFE) + ("?" + quote(parts.query, SAFE) if parts.query else "")
    except ValueError:
        raise nonsense from None
    if parts.scheme not in PORTS:
        raise _Refusal(f"{parts.scheme} is not spoken here", "Use an address that begins with http:// or https://.")
    if "@" in parts.netloc:
        raise _Refusal("it names a user", "Use an address that needs no password.")
    is_clean = address == address.strip() and not re.search(r"[\x00-\x1f\x7f]", address)  # which `urlsplit` drops
    if not is_clean or not re.fullmatch(r"[a-z0-9_.-]+|[0-9a-f:.]*:[0-9a-f:.]*", host):
        raise nonsense
    return _Place(parts.scheme, host, PORTS[parts.scheme] if port is None else port, target)


def _connect(place: _Place, rules: Rules, ends_at_s: float) -> socket.socket:
    """A connection to one of the addresses that were checked, with TLS for https."""
    problem = ""
    for family, kind, protocol, _, socket_address in _resolve(place, rules, ends_at_s):
        channel = socket.socket(family, kind, protocol)
        try:
            channel.settimeout(_seconds_left(ends_at_s))
            channel.connect(socket_address)
            channel.settimeout(_seconds_left(ends_at_s))
            return channel if place.scheme == "http" else rules.tls().wrap_socket(channel, server_hostname=place.host)
        except TimeoutError:
            channel.close()
            raise
        except OSError as error:
            channel.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise _Refusal(f"the certificate of {place.host} is not valid ({error.verify_message})") from None
            problem = _reason(error)
    raise _Refusal(f"there is no connection to {place.host} ({problem})")


def _resolve(place: _Place, rules: Rules, ends_at_s: float) -> Sequence[tuple[Any, ...]]:
    """What `getaddrinfo` gives: the addresses of a host, every one of them allowed.

    The system's resolver knows no deadline: a thread waits for it, and is left behind where it takes too long.
    """
    answers: Queue[Sequence[tuple[Any, ...]]] = Queue()

    def ask() -> None:
        try:
            answers.put(rules.resolve(place.host, place.port, type=socket.SOCK_STREAM))
        except (OSError, ValueError):
            answers.put([])

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        found = answers.get(timeout=_seconds_left(ends_at_s))
    except Empty:
        raise TimeoutError from None
    if not found:
        raise _Refusal(f"no machine is called {place.host}", "Check the address.")
    for _, _, _, _, (number, *_) in found:
        if not rules.is_allowed(ip_address(number)):
            shown = number if number == place.host else f"{place.host} ({number})"
            raise _Refusal(f"{shown} is not on the public internet")
    return found


def _request(place: _Place) -> bytes:
    host = f"[{place.host}]" if ":" in place.host else place.host
    if place.port != PORTS[place.scheme]:
        host += f":{place.port}"
    lines = (
        f"GET {place.target} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: candid-vision",
        "Accept: image/*",
        "Accept-Encoding: identity",  # so that what is counted is all there is
        "Connection: close",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("ascii")


def _receive(channel: socket.socket, rules: Rules, ends_at_s: float) -> bytes | str:
    """The bytes of a picture, or where else the server says that it is."""
    response = HTTPResponse(_Arriving(channel, ends_at_s), method="GET")  # pyright: ignore[reportArgumentType]
    response.begin()
    if response.status in REDIRECTS and (location := response.headers["Location"]):
        return location
    if response.status != 200:
        raise _Refusal(f"the server answers {response.status} {response.reason}".rstrip(), "Check the address.")
    if response.headers.get_content_type() in WEB_PAGES:
        raise _Refusal("it is a web page", "Open it, and copy the picture's own address.")
    data = bytearray()
    while (response.length or 0) + len(data) <= rules.largest_bytes:
        chunk = response.read(CHUNK_BYTES)
        data += chunk
        if not chunk and response.length:
            raise _Refusal(f"the connection ended {response.length:,} bytes too early", "Try again.")
        if not chunk:
            return bytes(data)
    raise _Refusal(f"it has more than {rules.largest_bytes:,} bytes")


class _Arriving(io.RawIOBase):
    """What arrives on a socket until a moment, which a server that sends a byte now and then cannot stretch."""

    def __init__(self, channel: socket.socket, ends_at_s: float) -> None:
        self._channel, self._ends_at_s = channel, ends_at_s

    def makefile(self, mode: str) -> io.BufferedReader:
        """How `HTTPResponse` asks a socket for its bytes."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._channel.settimeout(_seconds_left(self._ends_at_s))
        return self._channel.recv_into(buffer)


def _seconds_left(ends_at_s: float) -> float:
    left_s = ends_at_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
