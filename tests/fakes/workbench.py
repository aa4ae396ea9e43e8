"""A spool, a ledger, a fake server and a clock of one's own: one life of an agent, in one event loop.

Owns the wiring only. Time passes where somebody sleeps; threads are called in place, so that one seed gives one history.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.fakes.tracking import FakeTracking
from tests.spooling import Logged

from mlferry_agent.carrier import Carrier
from mlferry_agent.courier import Courier
from mlferry_agent.discovery import discover
from mlferry_agent.ledger import Ledger
from mlferry_agent.terms import Terms

__all__ = ["Clock", "Workbench", "apart", "run_alone"]

URL = "http://server"

T = TypeVar("T")


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Workbench:
    """Below ``directory``: ``spool`` and the ledger of ``server``."""

    def __init__(self, directory: Path, server: FakeTracking | None = None, seed: int = 0) -> None:
        self.spool = directory / "spool"
        self.ledger_path = directory / "state" / "ledger.sqlite"
        self.server = server or FakeTracking()
        self.clock = Clock()
        self.terms = Terms()
        self._rng = random.Random(seed)

    def courier(self, **options: Any) -> Courier:
        return Courier(self.server, rng=self._rng, clock=self.clock, sleep=self.clock.sleep, **options)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        ledger = Ledger.open(self.ledger_path, URL)
        try:
            yield ledger
        finally:
            ledger.close()

    @contextmanager
    def carrier(
        self, on_progress: Callable[[str, int], None] = lambda run_id, records: None, **options: Any
    ) -> Iterator[Carrier]:
        with self.ledger() as ledger:
            yield self.carrier_of(ledger, on_progress, **options)

    def carrier_of(
        self,
        ledger: Ledger,
        on_progress: Callable[[str, int], None] = lambda run_id, records: None,
        **options: Any,
    ) -> Carrier:
        return Carrier(self.spool, ledger, self.courier(**options), self.terms, on_progress)

    async def deliver(self, **options: Any) -> None:
        """One life that ends well."""
        with self.carrier(**options) as carrier:
            await carrier.deliver(discover(self.spool))

    async def live_and_die(self, steps: int) -> None:
        """One life that is cut off after so many steps of its event loop."""
        with self.carrier() as carrier:
            life = asyncio.create_task(carrier.deliver(discover(self.spool)))
            while steps and not life.done():
                steps -= 1
                await asyncio.sleep(0)
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            await carrier.stop()


def apart(server: FakeTracking, logged: Logged) -> list[str]:
    """Everything in which the server's run is not what was logged."""
    runs = server.runs_of(logged.run_id)
    if len(runs) != 1:
        return [f"{len(runs)} runs"]
    [run] = runs
    points = {(point.key, point.timestamp, point.step, repr(float(point.value))) for point in logged.points}
    tags = {
        key: value for key, value in run.tags.items() if not key.startswith("mlferry.") and key != "mlflow.parentRunId"
    }
    artifacts = {path: hashlib.sha256(data).hexdigest() for path, data in logged.artifacts.items()}
    pairs = {
        "points": (run.points, points),
        "params": (run.params, logged.params),
        "tags": (tags, logged.tags),
        "artifacts": (run.artifacts, artifacts),
        "datasets": ({name for name, _ in run.datasets}, logged.datasets),
        "status": (run.status, logged.status),
    }
    return [f"{what}: {found} instead of {wanted}" for what, (found, wanted) in pairs.items() if found != wanted]


def run_alone(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, with what would go to threads done in place."""

    async def inside() -> T:
        asyncio.get_running_loop().set_default_executor(_InPlace())
        return await main

    return asyncio.run(inside())


class _InPlace(ThreadPoolExecutor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
