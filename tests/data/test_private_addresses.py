"""A fetched address is never a private one, however it is written and whatever redirects or names do."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from serving import CONNECTIONS, CONTENTS, HERE, Server, names, redirecting, refusal, serving, whole

from candid.data.fetching import RULES, fetch_picture, is_address, is_public
from candid.words import showable


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(whole) as server:
        yield server


LOOPBACK = """
127.0.0.1 127.0.0.2 127.255.255.254 127.1 127.0.1 0177.0.0.1 00000177.0.0.1 017700000001 0177.1
2130706433 0x7f000001 0x7F.0x0.0x0.0x1 0x7f.1 0x7f.0.0.0x1 127.0x1 127.0.0.1. 0 0.0.0.0 0x0 00 0.1
[::1] [::] [0:0:0:0:0:0:0:1] [0000:0000:0000:0000:0000:0000:0000:0001] [::127.0.0.1] [::7f00:1]
[::ffff:127.0.0.1] [::ffff:7f00:1] [::FFFF:0.0.0.0] [0:0:0:0:0:ffff:7f00:0001] [::ffff:0:127.0.0.1]
[2002:7f00:1::] [64:ff9b::127.0.0.1] [64:ff9b:1::7f00:1] [2001:0:7f00:1::] [2001:0:4136:e378:8000:63bf:80ff:fffe]
①②⑦.⓪.⓪.① １２７.０.０.１ 127。0。0。1 127．0．0．1 localhost LOCALHOST localhost. loopback.test
"""
ELSEWHERE = """
10.0.0.1 10.255.255.255 167772161 0xa000001 012.0.0.1 10.1 172.16.0.1 172.31.255.255 192.168.0.1 192.168.1.255
192.168.257 3232235521 0xc0a80001 169.254.169.254 0xa9fea9fe 2852039166 169.254.43518 100.64.0.1 198.18.0.1
192.0.0.8 192.0.2.1 198.51.100.1 203.0.113.1 192.88.99.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
[fe80::1] [fec0::1] [fc00::1] [fd00:ec2::254] [ff02::1] [ff0e::1] [::ffff:10.0.0.1] [::ffff:169.254.169.254]
[2002:a9fe:a9fe::] [64:ff9b::a00:1] [::10.0.0.1] [2001:db8::1] [3fff::1] [100::1] [5f00::1] [2001:20::1] [4000::1]
metadata.test
"""
NAMES = names(localhost="127.0.0.1", loopback_test="::1", metadata_test="169.254.169.254")


@pytest.mark.parametrize("host", (LOOPBACK + ELSEWHERE).split())
def test_no_spelling_of_a_private_address_is_connected_to(server: Server, host: str):
    before = len(CONNECTIONS)
    text = refusal(server.address(host=host), replace(RULES, resolve=NAMES))
    assert text.startswith(f"http://{host}:{server.port}/picture.png cannot be fetched: ")
    assert text.endswith(
        " is not on the public internet; expected a public picture. Download it in another way, and name the file."
    )
    assert CONNECTIONS[before:] == []
    assert server.asked == []


def test_there_are_more_spellings_than_promised():
    assert len(set((LOOPBACK + ELSEWHERE).split())) >= 60


NONSENSE = """
http:// http:/// http://? http://# http://[ http://[] http://[::1 http://] http://. http://.. http://a..b
http://[fe80::1%25lo] http://[::1%251] http://127.0.0.1%00 http://127.0.0.1%2f@ http://%31%32%37.0.0.1 http://127.0.0.1\\
http://8.8.8.8\\@127.0.0.1 http://127.0.0.1:99999 http://127.0.0.1:-1 http://127.0.0.1:８x http://[127.0.0.1]
http://127.0.0.1,8.8.8.8 http://8.8.8.8＠127.0.0.1 http://<127.0.0.1> http://*
"""


@pytest.mark.parametrize(
    "address",
    [
        *NONSENSE.split(),
        "http://127.0.0.1\t/",
        "http://127.0.0.1\r\nHost: x/",
        " http://127.0.0.1",
        "http://12 7.0.0.1",
        "http://\0",
    ],
)
def test_what_programs_could_read_in_two_ways_is_no_address(address: str):
    before = len(CONNECTIONS)
    text = refusal(address, replace(RULES, resolve=NAMES))
    assert text in (
        f"{showable(address)} cannot be fetched: it is no address; expected a public picture. "
        "Write it as in https://example.org/picture.jpg.",
        f"{showable(address)} cannot be fetched: it names a user; expected a public picture. "
        "Use an address that needs no password.",
    )
    assert CONNECTIONS[before:] == []


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (
            "http://8.8.8.8@127.0.0.1/",
            "it names a user; expected a public picture. Use an address that needs no password.",
        ),
        (
            "ftp://127.0.0.1/a.png",
            "ftp is not spoken here; expected a public picture. Use an address that begins with http:// or https://.",
        ),
        (
            "file:///etc/passwd",
            "file is not spoken here; expected a public picture. Use an address that begins with http:// or https://.",
        ),
        (
            "http://nowhere.test/a.png",
            "no machine is called nowhere.test; expected a public picture. Check the address.",
        ),
    ],
)
def test_what_else_is_refused_before_any_connection(address: str, text: str):
    before = len(CONNECTIONS)
    assert is_address(address)
    assert refusal(address, replace(RULES, resolve=NAMES)) == f"{address} cannot be fetched: {text}"
    assert CONNECTIONS[before:] == []


PUBLIC = """
8.8.8.8 1.1.1.1 93.184.216.34 172.15.0.1 172.32.0.1 192.167.1.1 100.63.0.1 100.128.0.1 223.255.255.255
2606:4700::1111 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::
"""


@pytest.mark.parametrize("text", PUBLIC.split())
def test_public_addresses_are_public(text: str):
    assert is_public(ip_address(text))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "localhost", "2130706433"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_a_private_address_is_not_followed(server: Server, host: str, status: int):
    """Allowed is only the name of the first server, by an address that no redirect names."""
    first_only = replace(
        RULES,
        resolve=names(pictures_test="127.0.0.1", localhost="127.0.0.1"),
        is_allowed=partial(allow_first, []),
    )
    with serving(redirecting(server.address(host=host), status)) as first:
        text = refusal(first.address(host="pictures.test"), first_only)
        assert len(first.asked) == 1
        assert text.startswith(f"http://pictures.test:{first.port}/picture.png, which redirects to ")
    assert text.endswith(
        " is not on the public internet; expected a public picture. Download it in another way, and name the file."
    )
    assert server.asked == []


def allow_first(seen: list[object], address: IPv4Address | IPv6Address) -> bool:
    """Whether it is the first address that is asked about; the strict rule for all later ones."""
    seen.append(address)
    return len(seen) == 1 or is_public(address)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/a.png", "gopher://127.0.0.1/"])
def test_a_redirect_to_another_scheme_is_not_followed(location: str):
    scheme = location.split(":")[0]
    with serving(redirecting(location)) as server:
        assert refusal(server.address()) == (
            f"{server.address()}, which redirects to {location!r}, cannot be fetched: {scheme} is not spoken here; "
            "expected a public picture. Use an address that begins with http:// or https://."
        )


def test_a_name_that_changes_its_address_is_resolved_once_and_connected_to_where_it_was_checked(server: Server):
    answers = ["127.0.0.1", "127.0.0.2", "127.0.0.2"]
    before = len(CONNECTIONS)
    rules = replace(HERE, resolve=lambda host, port, **options: socket.getaddrinfo(answers.pop(0), port, **options))
    assert fetch_picture(server.address(host="rebinding.test"), rules) == CONTENTS
    assert answers == ["127.0.0.2", "127.0.0.2"]
    assert CONNECTIONS[before:] == [("127.0.0.1", server.port)]


def test_a_name_that_changes_its_address_for_the_redirect_is_checked_anew():
    answers = ["127.0.0.1", "127.0.0.2"]
    before = len(CONNECTIONS)
    rules = replace(HERE, resolve=lambda host, port, **options: socket.getaddrinfo(answers.pop(0), port, **options))
    with serving(redirecting("/again.png")) as server:
        address = server.address(host="rebinding.test")
        assert refusal(address, rules) == (
            f"{address}, which redirects to {server.address('/again.png', 'rebinding.test')!r}, cannot be fetched: "
            "rebinding.test (127.0.0.2) is not on the public internet; expected a public picture. "
            "Download it in another way, and name the file."
        )
        assert CONNECTIONS[before:] == [("127.0.0.1", server.port)]


def test_a_name_with_a_private_address_beside_a_public_one_is_refused(server: Server):
    def resolve(host: str, port: int, **options: Any) -> Any:
        return [found for place in ("127.0.0.1", "10.0.0.1") for found in socket.getaddrinfo(place, port, **options)]

    assert refusal(server.address(host="both.test"), replace(HERE, resolve=resolve)) == (
        f"http://both.test:{server.port}/picture.png cannot be fetched: both.test (10.0.0.1) is not on the public "
        "internet; expected a public picture. Download it in another way, and name the file."
    )
    assert server.asked == []
