"""One agent after the other on one machine: each lives in the virtual loop until it is killed, stopped or done.

A kill is what SIGKILL is. At the await where it strikes the ledger is copied as it stands, and whatever the dying tasks
still do in their ``finally`` goes to a ledger that is closed. What was on its way to the server arrives or not, by
chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.simulation.loop import VirtualLoop
from tests.simulation.network import Server

from mlferry_agent.carrier import Carrier
from mlferry_agent.courier import Courier
from mlferry_agent.discovery import discover
from mlferry_agent.errors import GaveUp
from mlferry_agent.ledger import Ledger
from mlferry_agent.terms import Terms

__all__ = ["Agents"]

_POLL_S = 5.0

#: How often a file-system event has arrived between two looks.
_WOKEN = 0.2


class Agents:
    """``ledger``: what the disk holds of the agent's memory, whether an agent lives or not."""

    def __init__(self, root: Path, server: Server, loop: VirtualLoop, rng: random.Random) -> None:
        self._root, self._server, self._loop, self._rng = root, server, loop, rng
        self._database = _copy(_empty())
        self._synced = _copy(_empty())
        self._life: asyncio.Task[None] | None = None
        self._carrier: Carrier | None = None

    @property
    def ledger(self) -> Ledger:
        return _Ledger(self._database, self.note_synced)

    @property
    def is_alive(self) -> bool:
        return self._life is not None and not self._life.done()

    @property
    def is_idle(self) -> bool:
        return self._carrier is None or not (self._carrier.is_busy or self._carrier.delayed)

    def start(self, terms: Terms, *, once: bool = False) -> None:
        """Begin a life, if none goes on: as ``mlferry agent``, or ``once`` as ``mlferry sync``."""
        if self.is_alive:
            return
        options = {"rng": self._rng, "clock": self._loop.time}
        courier = Courier(self._server, give_up_after_s=30.0 if once else None, **options)  # type: ignore[arg-type]
        carrier = self._carrier = Carrier(self._root, self.ledger, courier, terms)
        self._life = self._loop.create_task(self._sync(carrier) if once else self._serve(carrier))

    async def _serve(self, carrier: Carrier) -> None:
        while True:
            await carrier.look(everywhere=self._rng.random() < _WOKEN)
            await asyncio.sleep(_POLL_S)

    async def _sync(self, carrier: Carrier) -> None:
        try:
            await carrier.deliver(discover(self._root))
        except GaveUp:
            await carrier.stop()

    async def kill(self, steps: int) -> None:
        """SIGKILL after so many steps of the loop, or half a minute."""
        if self.is_alive:
            struck = asyncio.Event()
            self._loop.alarm(steps, struck.set)
            late = self._loop.call_later(30, struck.set)
            await struck.wait()
            late.cancel()
            self._loop.disarm()
        await self._end(_copy(self._database))

    async def stop(self) -> None:
        """SIGTERM."""
        carrier = self._carrier
        if carrier is not None and self.is_alive:
            await carrier.stop()
        await self._end(self._database)

    async def _end(self, kept: sqlite3.Connection) -> None:
        life, carrier, old = self._life, self._carrier, self._database
        self._life, self._carrier, self._database = None, None, kept
        if kept is not old:
            old.close()
        if life is not None:
            if life.done() and not life.cancelled():
                life.result()
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
        if carrier is not None:
            await carrier.stop()

    # -- what becomes of the ledger ---------------------------------------------------------------------------------------

    def note_synced(self) -> None:
        """The disk has everything up to here."""
        self._synced = _copy(self._database)

    async def lose_power(self) -> None:
        """The machine loses power: the ledger is what the disk had last."""
        await self._end(_copy(self._synced))

    async def lose_ledger(self) -> None:
        """Somebody deletes the file."""
        await self._end(_copy(_empty()))
        self.note_synced()


class _Ledger(Ledger):
    """Tells when the disk has everything."""

    def __init__(self, database: sqlite3.Connection, on_synced: Callable[[], None]) -> None:
        super().__init__(database)
        self._on_synced = on_synced

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        with super().transaction():
            yield
        if durable:
            self._on_synced()


@lru_cache(maxsize=1)
def _empty() -> sqlite3.Connection:
    """A new ledger, as ``Ledger.open`` makes it."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "ledger.sqlite"
        Ledger.open(path, "http://server").close()
        return _copy(sqlite3.connect(path))


def _copy(database: sqlite3.Connection) -> sqlite3.Connection:
    copy = sqlite3.connect(":memory:", isolation_level=None)
    database.backup(copy)
    return copy
