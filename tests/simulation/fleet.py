"""A fleet: hundreds of agents with a backlog, one server of known capacity that is away for a while, and virtual time.

Simulated is what meets at a server: each agent is the real ``Courier`` with the real pacing, backoff and judgement, and
some runs that each want one request after the other answered, as ``Delivery`` does. Spool, planner and ledger are left
out: they decide what stands in a request, never when it is sent. The server is a queue: so many requests a second, one
after the other, and beyond that it keeps them waiting, or sheds them, or limits everybody's rate.

A bystander, a person at MLflow's own page, asks once a second. What that person waits is what a fleet costs others.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import math
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from tests.simulation.loop import VirtualLoop, in_virtual_time

from mlferry_agent import requests
from mlferry_agent.answers import Answer, Verdict
from mlferry_agent.courier import Courier
from mlferry_agent.errors import Unreachable
from mlferry_agent.requests import Request

__all__ = ["Findings", "Fleet", "simulate"]

#: What an agent waits for an answer before it gives the connection up; the server works on it all the same.
_TIMEOUT_S = 120.0

#: Simulated seconds after which a fleet that is not drained is left alone.
_END_S = 4 * 3600.0

_GOOD, _FULL, _TOO_MANY = Answer(200, body=b"{}"), Answer(503, body=b"<html>"), Answer(429, {"retry-after": "1"}, b"")
_VERSION = Answer(200, body=b"3.17.0")
_EXHAUSTED = Answer(
    400, body=b'{"error_code": "BAD_REQUEST", "message": "QueuePool limit of size 5 overflow 10 reached"}'
)
_BATCH = requests.log_batch("run")


@dataclass(frozen=True)
class Fleet:
    """What is simulated. ``backlog``: requests of each agent, shared by its ``runs``. ``away_s``: when the server goes and
    when it comes back. ``when_full``: it keeps everybody waiting, answers 503 to what it has no place for (``places``), or
    429 with ``Retry-After`` to what is above its rate, or its pool of connections is exhausted (``_Pooled``). ``when_away``:
    connections are refused, or hang, or a proxy answers 503 with the time at which the server will be back, the same for
    all."""

    agents: int = 1000
    capacity: float = 100.0
    backlog: int = 60
    runs: int = 4
    away_s: tuple[float, float] = (120.0, 420.0)
    when_full: Literal["queues", "sheds", "limits", "exhausts"] = "queues"
    when_away: Literal["refuses", "hangs", "announces"] = "refuses"
    places: int = 200
    workers: int = 4
    way_s: float = 0.02
    seed: int = 1

    @property
    def work_s(self) -> float:
        """Seconds that the server needs for all of it, without a pause."""
        return self.agents * self.backlog / self.capacity


@dataclass
class Findings:
    """What was seen, by the second: requests that arrived, good answers; of each agent, when its requests were answered;
    of the bystander, when it asked and how long it waited. ``exhausted``: requests that got no connection to the
    database."""

    fleet: Fleet
    arrived: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)
    answered: list[list[float]] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    drained_s: float = math.inf
    exhausted: int = 0

    @property
    def stampede(self) -> float:
        """Requests in the worst second of the minute after the server came back, as multiples of its capacity."""
        back = math.floor(self.fleet.away_s[1])
        return max(self.arrived[second] for second in range(back, back + 60)) / self.fleet.capacity

    @property
    def knocks(self) -> float:
        """Requests a second in the last minute of the outage."""
        back = math.floor(self.fleet.away_s[1])
        return sum(self.arrived[second] for second in range(back - 60, back)) / 60

    @property
    def goodput(self) -> float:
        """Good answers while the server was there and at least half of the agents had a backlog, as a share of what it can
        give. What the last few stragglers do not ask for is nobody's loss."""
        ends = sorted(times[-1] if len(times) == self.fleet.backlog else math.inf for times in self.answered)
        until = min(ends[len(ends) // 2], _END_S)
        gone, back = self.fleet.away_s
        there = until - max(0.0, min(until, back) - min(until, gone))
        return sum(time <= until for times in self.answered for time in times) / (there * self.fleet.capacity)

    @property
    def recovery_s(self) -> float:
        """Seconds from the server's return until it gave nine tenths of what it can, over ten seconds."""
        back = self.fleet.away_s[1]
        times = sorted(time for one in self.answered for time in one if time >= back)
        wanted = max(1, int(self.fleet.capacity * 9))
        return next(
            (last - back for first, last in zip(times, times[wanted - 1 :], strict=False) if last - first <= 10.0),
            math.inf,
        )

    def fairness(self, share: float = 0.5) -> float:
        """Jain's index of what each agent had got when so much of the work was done: 1 if all had the same, 1/n if one had
        all."""
        times = sorted(time for one in self.answered for time in one)
        until = times[int(len(times) * share) - 1]
        got = [sum(time <= until for time in one) for one in self.answered]
        return sum(got) ** 2 / (len(got) * sum(count**2 for count in got))

    def wait_s(self, share: float) -> float:
        """What the bystander waited, while the server was there and had work: that share of the waits was shorter."""
        gone, back = self.fleet.away_s
        waits = sorted(wait for asked, wait in self.waits if not gone - wait <= asked < back)
        return waits[min(len(waits) - 1, int(len(waits) * share))] if waits else 0.0

    @property
    def lost_work(self) -> int:
        """Requests that failed, those of the outage left out."""
        gone, back = (math.floor(time) for time in self.fleet.away_s)
        return sum(count for second, count in self.failed.items() if not gone <= second < back)


class _Server:
    """A queue with some workers, which know how long all that was taken will take."""

    def __init__(self, fleet: Fleet, loop: VirtualLoop, rng: random.Random, found: Findings) -> None:
        self._fleet, self._loop, self._rng, self._found = fleet, loop, rng, found
        self._free_at = [0.0] * fleet.workers
        self._tokens, self._filled_at = fleet.capacity, 0.0

    async def serve(self, *, counts: bool = True, is_batch: bool = True) -> Answer:
        """Answer, in time or not at all. ``counts``: it is a request of the fleet. ``is_batch`` is all the same here."""
        await asyncio.sleep(self._fleet.way_s * self._rng.uniform(0.5, 1.5))
        if counts:
            self._found.arrived[int(self._loop.time())] += 1
        try:
            answer = await self._answer()
        except Unreachable:
            self._note(counts)
            raise
        if answer.status >= 300:
            self._note(counts)
        return answer

    def _note(self, counts: bool) -> None:
        if counts:
            self._found.failed[int(self._loop.time())] += 1

    async def _answer(self) -> Answer:
        now, (gone, back) = self._loop.time(), self._fleet.away_s
        if gone <= now < back:
            return await self._away(back - now)
        if (refusal := self._refusal(now)) is not None:
            return refusal
        worker = min(range(len(self._free_at)), key=self._free_at.__getitem__)
        takes = self._rng.uniform(0.5, 1.5) * self._fleet.workers / self._fleet.capacity
        ready = self._free_at[worker] = max(self._free_at[worker], now) + takes
        if now < gone < ready:
            self._free_at = [back] * self._fleet.workers
            await asyncio.sleep(min(gone - now, _TIMEOUT_S))
            raise Unreachable("reset")
        await asyncio.sleep(min(ready - now, _TIMEOUT_S))
        if ready - now > _TIMEOUT_S:
            raise Unreachable("timeout")
        return _GOOD

    async def _away(self, left: float) -> Answer:
        if self._fleet.when_away == "announces":
            now = self._loop.true_ns() / 1e9
            dates = {"retry-after": now + math.ceil(left), "date": now}
            return Answer(503, {name: email.utils.formatdate(at, usegmt=True) for name, at in dates.items()}, b"")
        if self._fleet.when_away == "hangs":
            await asyncio.sleep(_TIMEOUT_S)
        raise Unreachable("refused")

    def _refusal(self, now: float) -> Answer | None:
        fleet = self._fleet
        if fleet.when_full == "sheds":
            waiting = sum(max(0.0, free - now) for free in self._free_at) * fleet.capacity / fleet.workers
            return _FULL if waiting > fleet.places else None
        if fleet.when_full == "limits":
            filled = self._tokens + (now - self._filled_at) * fleet.capacity
            self._tokens, self._filled_at = min(filled, fleet.capacity), now
            if self._tokens < 1:
                return _TOO_MANY
            self._tokens -= 1
        return None


class _Pooled:
    """`mlflow server` 3.17 as it comes, one process: 40 threads; 15 connections, for which a request waits up to 30 s. A
    batch that has one needs a second, and one batch is written at a time. So 15 that have one each wait for nothing."""

    def __init__(self, fleet: Fleet, rng: random.Random, found: Findings) -> None:
        self._fleet, self._rng, self._found = fleet, rng, found
        self._threads, self._pool = asyncio.Semaphore(40), asyncio.Semaphore(15)
        self._interpreter, self._database = asyncio.Lock(), asyncio.Lock()

    async def serve(self, *, counts: bool = True, is_batch: bool = True) -> Answer:
        await asyncio.sleep(self._fleet.way_s * self._rng.uniform(0.5, 1.5))
        takes = self._rng.uniform(0.5, 1.5) / self._fleet.capacity
        try:
            async with self._threads, self._connected():
                async with self._interpreter:
                    await asyncio.sleep(takes * 0.1)
                if is_batch and counts:
                    async with self._connected(), self._database:
                        await asyncio.sleep(takes * 0.9)
        except asyncio.TimeoutError:
            self._found.exhausted += counts
            return _EXHAUSTED
        return _GOOD if is_batch else _VERSION

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        await asyncio.wait_for(self._pool.acquire(), 30)
        try:
            yield
        finally:
            self._pool.release()


class _Line:
    """An agent's connections: a ``Sender`` with as many slots as the transport has."""

    def __init__(self, server: _Server | _Pooled, slots: int = 4) -> None:
        self._server, self._slots = server, asyncio.Semaphore(slots)

    async def send(self, request: Request) -> Answer:
        async with self._slots:
            return await self._server.serve(is_batch=request.path != requests.VERSION)

    async def upload(self, request: Request, file: BinaryIO, size: int) -> Answer:
        raise NotImplementedError


async def _live(fleet: Fleet, loop: VirtualLoop, found: Findings) -> None:
    rng = random.Random(fleet.seed)
    server = _Pooled(fleet, rng, found) if fleet.when_full == "exhausts" else _Server(fleet, loop, rng, found)
    watching = loop.create_task(_stand_by(server, loop, found))
    agents = [
        loop.create_task(_agent(fleet, server, loop, random.Random(rng.random()), times)) for times in found.answered
    ]
    done, late = await asyncio.wait(agents, timeout=_END_S)
    for task in (watching, *late):
        task.cancel()
    await asyncio.gather(watching, *late, return_exceptions=True)
    for task in done:
        task.result()
    found.drained_s = math.inf if late else loop.time()


async def _agent(
    fleet: Fleet, server: _Server | _Pooled, loop: VirtualLoop, rng: random.Random, times: list[float]
) -> None:
    await asyncio.sleep(rng.uniform(0, 5))
    courier = Courier(_Line(server), rng=rng, clock=loop.time)
    left = fleet.backlog

    async def run() -> None:
        nonlocal left
        while left:
            left -= 1
            assert (await courier.ask(_BATCH)).verdict is Verdict.ACCEPTED
            times.append(loop.time())

    await asyncio.gather(*(run() for _ in range(fleet.runs)))


async def _stand_by(server: _Server | _Pooled, loop: VirtualLoop, found: Findings) -> None:
    asked: set[asyncio.Task[None]] = set()

    async def ask() -> None:
        began = loop.time()
        with contextlib.suppress(Unreachable):
            await server.serve(counts=False)
        found.waits.append((began, loop.time() - began))

    try:
        while True:
            task = loop.create_task(ask())
            asked.add(task)
            task.add_done_callback(asked.discard)
            await asyncio.sleep(1)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def simulate(fleet: Fleet) -> Findings:
    """Live through it."""
    found = Findings(fleet, answered=[[] for _ in range(fleet.agents)])
    in_virtual_time(lambda loop: _live(fleet, loop, found))
    return found
