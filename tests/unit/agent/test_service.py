"""The daemon's loop: it lives while it looks, and a look never keeps it from stopping."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlferry_agent.config import Config
from mlferry_agent.courier import Health
from mlferry_agent.notify import Notifier
from mlferry_agent.service import _Orders, _Service


class Endless:
    """A carrier whose look at the spool never ends, as on a disk that hangs."""

    is_busy, delayed, blind = False, 0, None

    def __init__(self) -> None:
        self.broken_off = False

    async def look(self, *, everywhere: bool) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.broken_off = True

    def pause_s(self, at_rest_s: float) -> float:
        return at_rest_s


@dataclass
class Session:
    carrier: Any = field(default_factory=Endless)
    courier: Any = field(default_factory=lambda: type("Courier", (), {"health": Health(), "store_health": Health()})())


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ears:
        ears.bind(str(tmp_path / "notify"))
        ears.settimeout(10)
        yield ears


async def test_it_says_that_it_lives_during_a_look_that_takes_long_and_ends_it_when_told_to_stop(
    heard: socket.socket, tmp_path: Path
) -> None:
    config = Config(dir=tmp_path, poll_s=0.01)
    orders, session = _Orders(), Session()
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"})
    service = _Service(config, lambda: config, {}, notifier, orders)
    looking = asyncio.create_task(service._look_and_sleep(session))  # type: ignore[arg-type]
    for _ in range(3):
        assert (await asyncio.to_thread(heard.recv, 100)).startswith(b"WATCHDOG=1\n")
    orders.end()
    assert await asyncio.wait_for(looking, 5) is None
    assert session.carrier.broken_off


async def test_a_reload_is_told_to_systemd_and_uses_what_is_configured_then(
    heard: socket.socket, tmp_path: Path
) -> None:
    then = Config(to="http://server", dir=tmp_path / "elsewhere")
    orders = _Orders()
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    service = _Service(Config(dir=tmp_path), lambda: then, {}, notifier, orders)
    orders.begin_again()
    assert await service._look_and_sleep(Session()) is then  # type: ignore[arg-type]
    assert heard.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert not orders.reload
