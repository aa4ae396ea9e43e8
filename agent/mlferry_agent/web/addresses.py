"""Where the status page is: a host and a port, or a socket in the file system; and by which names it may be asked.

A page on another site can have its own name resolve to this machine (DNS rebinding) and would then be let to read what it
asks for; but it has to ask by that name. So who asks by a name that is not ours is refused. Addresses are no names: nobody
can have a page of theirs stand at one of ours.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["OFF", "SocketAddress", "TcpAddress", "names_of", "parse"]

#: Turns off what an earlier source of configuration turned on.
OFF = "off"

_UNIX = "unix:"

#: What fits into the kernel's ``sockaddr_un``, with its NUL.
#: Beyond: `BadConfiguration`; nothing is started.
#: Test: tests/unit/agent/test_web_addresses.py::test_anything_else_is_refused_with_the_place_that_said_it
_MOST_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """``port`` 0: whichever is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{_bracketed(self.host)}:{self.port}/"

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """A Unix socket, which only its owner reaches."""

    path: Path

    def __str__(self) -> str:
        return f"{_UNIX}{self.path}"


def parse(text: str) -> TcpAddress | SocketAddress | None:
    """``HOST:PORT``, ``[IPv6]:PORT`` or ``unix:/path``; None for ``off``.

    Raises:
        ValueError: it is none of these; its text says what is wrong, without quoting.
    """
    if text == OFF:
        return None
    return _socket(text.removeprefix(_UNIX)) if text.startswith(_UNIX) else _tcp(text)


def names_of(address: TcpAddress | SocketAddress) -> frozenset[str]:
    """The host names by which the page may be asked for, besides addresses."""
    own = socket.gethostname().lower()
    told = {address.host.lower()} if isinstance(address, TcpAddress) else set()
    return frozenset({"localhost", own, own.partition(".")[0], *told} - {""})


def is_ours(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header names this page: one of ``names`` or an address, with or without a port."""
    name, bracket, rest = host.partition("]")
    name, rest = (name + bracket, rest) if bracket else (host.partition(":")[0], host[len(host.partition(":")[0]) :])
    if rest and not (rest[0] == ":" and rest[1:].isascii() and rest[1:].isdecimal()):
        return False
    return name.lower().rstrip(".") in names or _is_address(name)


def _is_address(name: str) -> bool:
    literal = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        return ipaddress.ip_address(literal).version == (6 if literal != name else 4)
    except ValueError:
        return False


def _socket(path: str) -> SocketAddress:
    if "\0" in path or not path.startswith(("/", "~")):
        raise ValueError("unix: is followed by an absolute path")
    try:
        resolved = Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    if len(str(resolved).encode(errors="surrogateescape")) > _MOST_PATH_BYTES:
        raise ValueError(f"a socket's path has at most {_MOST_PATH_BYTES} bytes")
    return SocketAddress(resolved)


def _tcp(text: str) -> TcpAddress:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 1 << 16):
        raise ValueError("it is HOST:PORT, such as 127.0.0.1:9477, or unix:/path, or off")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError("an IPv6 address stands in brackets, such as [::1]:9477")
    host = host.strip("[]")
    if not host or any(not (char.isascii() and (char.isalnum() or char in ".-:_%")) for char in host):
        raise ValueError("the host is a name or an address of this machine")
    return TcpAddress(host, int(port))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
