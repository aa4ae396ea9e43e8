"""Where the status page may be, and by which names it may be asked: what is allowed is listed, all else is refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlferry_agent.config import load
from mlferry_agent.errors import BadConfiguration
from mlferry_agent.web.addresses import SocketAddress, TcpAddress, is_ours, names_of, parse

OURS = frozenset({"localhost", "node17"})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9477", TcpAddress("127.0.0.1", 9477)),
        ("[::1]:9477", TcpAddress("::1", 9477)),
        ("localhost:0", TcpAddress("localhost", 0)),
        ("0.0.0.0:65535", TcpAddress("0.0.0.0", 65535)),
        ("unix:/run/mlferry/page.sock", SocketAddress(Path("/run/mlferry/page.sock"))),
        ("off", None),
    ],
)
def test_an_address_is_a_host_with_a_port_or_a_socket(text: str, address: object) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "9477", ":9477", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:٣", "::1:9477"),
        *("[::1:9477", "http://127.0.0.1:9477", "a b:1", "a/b:1", "unix:", "unix:page.sock", "unix:/a\0b"),
        f"unix:/{'a' * 107}",
    ],
)
def test_anything_else_is_refused_with_the_place_that_said_it(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)
    with pytest.raises(BadConfiguration, match="--http"):
        load({"HOME": "/nowhere"}, {"http": text})


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except ValueError as error:
        assert str(error)
    else:
        assert found is None or parse(str(found).removeprefix("http://").rstrip("/")) == found


def test_a_later_source_turns_the_page_off() -> None:
    environ = {"HOME": "/nowhere", "MLFERRY_HTTP": "127.0.0.1:1"}
    assert load(environ, {}).http == "127.0.0.1:1"
    assert load(environ, {"http": "off"}).http is None


@pytest.mark.parametrize(
    "host",
    [
        *(
            "localhost",
            "localhost:9477",
            "LOCALHOST",
            "localhost.",
            "127.0.0.1:9477",
            "10.1.2.3",
            "[::1]",
            "[::1]:9477",
        ),
        *("node17", "node17:80"),
    ],
)
def test_addresses_and_our_own_names_are_ours(host: str) -> None:
    assert is_ours(host, OURS)


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "evil.example:9477", "127.0.0.1.evil.example", "localhost.evil.example", "xlocalhost"),
        *(
            "localhost:80:80",
            "localhost:x",
            "localhost:",
            "::1",
            "[::1",
            "[::1]x",
            "[127.0.0.1]",
            "localhost@evil",
            "2130706433",
        ),
        *("node17.evil.example", "127.1", "0x7f.0.0.1", "[evil.example]"),
    ],
)
def test_every_other_name_could_be_a_strangers(host: str) -> None:
    assert not is_ours(host, OURS)


def test_the_machine_and_the_setting_name_the_page() -> None:
    names = names_of(TcpAddress("Status.Example.org", 80))
    assert {"localhost", "status.example.org", socket.gethostname().lower()} <= names
    assert "" not in names


@pytest.mark.parametrize(
    ("host", "private"), [("127.0.0.1", True), ("::1", True), ("0.0.0.0", False), ("node17", False)]
)
def test_what_only_this_machine_reaches_is_known(host: str, private: bool) -> None:
    assert TcpAddress(host, 1).is_private is private
