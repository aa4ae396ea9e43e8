"""Opens the page's address: a TCP port, or a socket that only its owner can connect to. Counts connections.

A connection costs a file descriptor, and an agent without descriptors cannot read a spool; so there are never more than a
few, whoever connects and says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from aiohttp.web import Server

from mlferry_agent.web.addresses import SocketAddress, TcpAddress

__all__ = ["MOST_CONNECTIONS", "Listener"]

#: To the status page, whoever holds them: each costs a file descriptor.
#: Beyond: closed at once.
#: Test: tests/unit/agent/test_web_app.py::test_connections_that_say_nothing_leave_the_agent_its_descriptors
MOST_CONNECTIONS = 64

_MODE = 0o600


class Listener:
    """A page that is open. ``url``: where, as the kernel knows it."""

    def __init__(self, server: asyncio.Server, address: TcpAddress | SocketAddress, inode: int | None) -> None:
        self._server, self._inode = server, inode
        self._address = address
        if isinstance(address, TcpAddress):
            address = TcpAddress(address.host, server.sockets[0].getsockname()[1])
        self.url = str(address)

    @classmethod
    async def open(cls, address: TcpAddress | SocketAddress, server: Server) -> Listener:
        """Raises OSError: it is taken, or not ours to take."""
        loop = asyncio.get_running_loop()
        protocol = _bounded(server)
        if isinstance(address, TcpAddress):
            return cls(await loop.create_server(protocol, address.host, address.port), address, None)
        bound = _bind(address.path)
        try:
            return cls(await loop.create_unix_server(protocol, sock=bound), address, _inode(address.path))
        except BaseException:
            bound.close()
            raise

    async def close(self) -> None:
        """Take no more connections, and the socket's file away, if it is still ours."""
        self._server.close()
        if isinstance(self._address, SocketAddress) and _inode(self._address.path) == self._inode is not None:
            with contextlib.suppress(OSError):
                self._address.path.unlink()


class _Full(asyncio.Protocol):
    """One too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _bounded(server: Server) -> Callable[[], asyncio.BaseProtocol]:
    return lambda: server() if len(server.connections) < MOST_CONNECTIONS else _Full()


def _bind(path: Path) -> socket.socket:
    """A Unix socket that nobody else can ever connect to: on Linux the file gets the mode that the socket had before."""
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(bound.fileno(), _MODE)
        bound.bind(str(path))
        bound.listen(MOST_CONNECTIONS)
        if stat.S_IMODE(path.lstat().st_mode) & ~_MODE:
            raise PermissionError(errno.EPERM, "this kernel lets others connect to it", str(path))
    except BaseException:
        bound.close()
        raise
    return bound


def _remove_stale(path: Path) -> None:
    """What an agent left behind that was killed. Raises OSError: it is no socket of ours, or somebody listens there."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
        raise FileExistsError(errno.EEXIST, "something else stands there", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.settimeout(1.0)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(errno.EADDRINUSE, "somebody listens there", str(path))


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None
