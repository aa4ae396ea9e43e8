"""Sends one request until it is settled: with backoff, without a stampede, never giving up on what is transient.

Owns the health of the destination, and the gates at which requests and files wait until they may go. When the server does
not answer, one request at a time tries and the others wait for it, so that a server that comes back is not met by
everything at once. What an answer means is ``answers``; how many go at once and how soon the next is ``pace`` and
``pacing``; how long to wait is ``retry``; what to do about a refusal is ``deliveries``.

Waits are shared: what has failed because the server is down waits as everything else does, and whoever is first at the
gate tries. A request that fails while others pass has a wait of its own besides, and holds nobody up.

Artifact stores that are reached past the server have a health of their own: while one is away, curves stay live.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Protocol

from mlferry_agent import requests
from mlferry_agent.answers import Answer, Judgement, Verdict, classify
from mlferry_agent.errors import GaveUp, Misconfigured, Unreachable
from mlferry_agent.gate import Gate
from mlferry_agent.pace import work_of
from mlferry_agent.pacing import HUNG_S, Breaker, Norms, Window
from mlferry_agent.requests import API, ARTIFACTS, Request
from mlferry_agent.retry import Attempts, Backoff

__all__ = ["Courier", "Health", "Reply", "Sender"]

#: Seconds between two tries of a destination that is configured wrongly: somebody may be mending it.
#: Beyond: the agent tries again, after half of it at the earliest; a command says what is wrong and ends.
#: Test: tests/unit/agent/test_courier.py::
#: test_a_wrong_token_is_raised_by_a_command_and_waited_for_by_the_daemon
_CONFIG_RETRY_S = 60.0

#: Seconds that a server which left a request hanging has to answer a small question, before the next one is sent to it.
#: Beyond: it still hangs, and is asked again later.
#: Test: tests/unit/agent/test_courier.py::test_a_server_that_hangs_is_asked_something_small
_KNOCK_S = 10.0

#: What every MLflow server has. If one of these is unknown, something else answers: an ingress without its backend, a
#: wrong path in the address. No record is to blame for that.
_CORE = frozenset(
    API + name
    for name in (
        *("runs/create", "runs/get", "runs/search", "runs/update", "runs/log-batch", "runs/delete-tag", "runs/delete"),
        *("experiments/create", "experiments/get-by-name"),
    )
)


class Sender(Protocol):
    """What a courier needs of a transport."""

    async def send(self, request: Request) -> Answer: ...

    async def upload(self, request: Request, file: BinaryIO, size: int) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A settled request: the judgement and the answer it was made from."""

    judgement: Judgement
    answer: Answer

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def reason(self) -> str:
        return self.judgement.reason


@dataclass(slots=True)
class Health:
    """How the destination does. ``trouble``: the last failure in words, None while all is well. ``failing_since``: when
    the first of the attempts began that failed since the last good answer. ``answered_at``: when that came. Both are of
    the courier's clock."""

    trouble: str | None = None
    misconfigured: bool = False
    failing_since: float | None = None
    answered_at: float | None = None
    requests: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Road:
    """One way to the destination: how it does, what holds requests up while it does badly, and how many may be on it. Those
    for requests and for files of the server share ``health`` and ``breaker``."""

    health: Health
    breaker: Breaker
    gate: Gate
    norms: Norms = field(default_factory=Norms)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    one_left: asyncio.Event = field(default_factory=asyncio.Event)


class Courier:
    """Carries requests to one destination.

    Args:
        sender: the transport.
        give_up_after_s: seconds without any good answer after which ``GaveUp`` is raised; None: never.
        patient: nobody waits for it: begin as gently as fleets must (``pacing``), and wait for a wrong configuration to be
            mended, instead of raising ``Misconfigured``.
        connections, uploads: requests and files on their way at once, at most.
    """

    def __init__(
        self,
        sender: Sender,
        *,
        give_up_after_s: float | None = None,
        patient: bool = True,
        connections: int = 4,
        uploads: int = 4,
        backoff: Backoff | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sender = sender
        self._give_up_after_s = give_up_after_s
        self._patient = patient
        self._backoff = backoff or Backoff()
        self._rng = rng or random.Random()
        self._clock = clock
        self._sleep = sleep
        self.health, self.store_health = Health(), Health()
        breaker, past = Breaker(self._backoff, self._rng), Breaker(self._backoff, self._rng)
        window = Window(connections, self._rng) if patient else Window(connections, self._rng, size=1.0)
        self._requests = _Road(self.health, breaker, Gate(window))
        self._files = _Road(self.health, breaker, Gate(Window(uploads, self._rng, size=uploads)))
        self._direct = _Road(self.store_health, past, Gate(Window(uploads, self._rng, size=uploads)))
        self.gate = self._requests.gate

    async def ask(self, request: Request) -> Reply:
        """Send until settled; the verdict is never RETRY, and SUSPECT only after the attempts it is allowed.

        Raises:
            GaveUp: no good answer for ``give_up_after_s``. Misconfigured: the server refuses us, and not ``patient``.
        """
        road, attempts = self._road_of(request), self.attempts()
        while True:
            async with self._turn(road):
                reply = await self._attempt(road, request, lambda: self._sender.send(request))
            delay = self._delay(road, reply.judgement, attempts)
            if delay is None:
                return reply
            await self._sleep_for(delay)

    async def upload(self, request: Request, file: BinaryIO, size: int) -> Reply:
        """Send an open file until settled, each time from its beginning. Raises as ``ask``, and ``UnreadableFile``."""
        road, attempts = self._direct if request.is_direct else self._files, self.attempts()
        while True:
            async with self._turn(road):
                # A transfer may take hours before it breaks off: they are not hours without a good answer.
                reply = await self._attempt(
                    road, request, lambda: self._sender.upload(request, file, size), is_transfer=True
                )
            delay = self._delay(road, reply.judgement, attempts)
            if delay is None:
                return reply
            await self._sleep_for(delay)

    async def ask_once(self, request: Request, attempts: Attempts) -> Reply:
        """One attempt at a request that must not be repeated blindly. Verdict RETRY: whether the server acted on it is
        unknown, and the wait before the next look is over. Raises as ``ask``."""
        reply = await self.ask_unless(_never, request, attempts)
        assert reply is not None
        return reply

    async def ask_unless(self, overtaken: Callable[[], bool], request: Request, attempts: Attempts) -> Reply | None:
        """As ``ask_once``, unless it was ``overtaken`` when its turn came, which may take hours: then nothing is sent, and
        there is no answer."""
        road = self._road_of(request)
        async with self._turn(road):
            if overtaken():
                return None
            reply = await self._attempt(road, request, lambda: self._sender.send(request))
        delay = self._delay(road, reply.judgement, attempts)
        if delay is None:
            return reply
        shared = road.breaker.wait_s(self._clock())
        await self._sleep_for(delay if shared == math.inf else max(delay, shared))
        return Reply(Judgement(Verdict.RETRY, reply.reason), reply.answer)

    def attempts(self) -> Attempts:
        """A counter of attempts at one request, for ``ask_once``."""
        return Attempts(self._backoff, self._rng, self._clock)

    def _road_of(self, request: Request) -> _Road:
        return self._direct if request.is_direct else self._requests

    async def _sleep_for(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)

    # -- waiting at the gate --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _turn(self, road: _Road) -> AsyncIterator[None]:
        """When a request may go; while the destination is not well, one at a time."""
        breaker = road.breaker
        async with road.gate.passed():
            async with road.turn:
                await (self._file_opened(road) if road is self._files else self._opened(road))
                tries = breaker.is_open and road is not self._files
                breaker.is_tried = breaker.is_tried or tries
            try:
                yield
            finally:
                breaker.is_tried = breaker.is_tried and not tries
                road.one_left.set()

    async def _opened(self, road: _Road) -> None:
        breaker, window = road.breaker, road.gate.window
        while True:
            while wait := max(breaker.wait_s(self._clock()), window.pause_s(self._clock())):
                self._give_up_if_due(road)
                await (road.one_left.wait() if wait == math.inf else self._sleep(wait))
                road.one_left.clear()
            if not (breaker.is_open and breaker.hangs and road is self._requests) or await self._is_heard():
                return

    async def _file_opened(self, road: _Road) -> None:
        """A file that takes an hour is no way to find out whether the server is back."""
        await self._sleep_for(road.gate.window.pause_s(self._clock()))
        while road.breaker.is_open or road.breaker.wait_s(self._clock()):
            await self.ask(requests.server_version())

    async def _is_heard(self) -> bool:
        """Whether a server that left us hanging answers a small question soon. If not, that was one more failure."""
        breaker, began = self._requests.breaker, self._clock()
        self.health.requests += 1
        try:
            await asyncio.wait_for(self._sender.send(requests.server_version()), _KNOCK_S)
            return True
        except (asyncio.TimeoutError, Unreachable):
            self.health.failures += 1
            breaker.failed(began, self._clock())
            breaker.hangs = True
        except Misconfigured:
            return True  # the request itself will say so
        return False

    # -- one attempt ----------------------------------------------------------------------------------------------------

    async def _attempt(
        self, road: _Road, request: Request, send: Callable[[], Awaitable[Answer]], *, is_transfer: bool = False
    ) -> Reply:
        road.health.requests += 1
        answer, began = Answer(0), self._clock()
        try:
            answer = await send()
        except Unreachable as error:
            judgement = Judgement(Verdict.RETRY, error.reason)
        except Misconfigured as error:
            judgement = Judgement(Verdict.CONFIG, error.reason)
        else:
            judgement = _in_context(request, classify(request, answer, now_s=time.time()))
            denied = judgement.verdict is Verdict.CONFIG and answer.status == 403 and not request.is_direct
            if denied and await self._is_let_in():
                judgement = replace(judgement, verdict=Verdict.SUSPECT)
        _note(road.health, judgement, self._clock() if is_transfer else began, self._clock())
        self._pace(road, request, judgement, began, is_transfer=is_transfer)
        return Reply(judgement, answer)

    async def _is_let_in(self) -> bool:
        """Whether the server takes us for somebody, asked for what everybody may ask. Then what it denied us is one thing
        (a run, an experiment, a text that a firewall dislikes), and all else goes on."""
        request = requests.search_experiments(max_results=1)
        try:
            return classify(request, await self._sender.send(request)).verdict is Verdict.ACCEPTED
        except (Unreachable, Misconfigured):
            return False

    def _pace(self, road: _Road, request: Request, judgement: Judgement, began: float, *, is_transfer: bool) -> None:
        """What the end of an attempt means for those to come."""
        now, breaker, gate = self._clock(), road.breaker, road.gate
        if judgement.verdict is Verdict.CONFIG:
            breaker.failed(began, now, wait_s=_CONFIG_RETRY_S * self._rng.uniform(0.5, 1.0))
        elif judgement.verdict is Verdict.RETRY or (judgement.verdict is Verdict.SUSPECT and judgement.status >= 500):
            if judgement.status and not is_transfer and now - began >= HUNG_S:  # it drowns, and says so
                gate.window.answered(began, now - began, 0.0, now)
            else:
                gate.window.refused(began, now)
            gate.pace.forget()
            breaker.failed(began, now, judgement.retry_after_s)
        else:
            breaker.answered()
            took = 0.0 if is_transfer else now - began  # a file takes as long as it is
            kind = (request.path, len(request.body or b"").bit_length() // 2)
            gate.window.answered(began, took, road.norms.usual_s(kind, took, now), now, used=gate.pace.limit)
            if not is_transfer and judgement.verdict is Verdict.ACCEPTED:
                gate.pace.note(work_of(request.body), began, now)

    def _delay(self, road: _Road, judgement: Judgement, attempts: Attempts) -> float | None:
        """Seconds that this request waits by itself before the next attempt, or None when it is settled."""
        if judgement.verdict is Verdict.CONFIG:
            if not self._patient:
                raise Misconfigured(judgement.reason)
            return 0.0
        if judgement.verdict not in (Verdict.RETRY, Verdict.SUSPECT):
            return None
        self._give_up_if_due(road)
        return attempts.again(judgement, road.health.answered_at)

    def _give_up_if_due(self, road: _Road) -> None:
        since = road.health.failing_since
        if self._give_up_after_s is not None and since is not None and self._clock() - since >= self._give_up_after_s:
            raise GaveUp(road.health.trouble or "the server answers with errors")


def _never() -> bool:
    return False


def _note(health: Health, judgement: Judgement, began: float, now: float) -> None:
    health.misconfigured = judgement.verdict is Verdict.CONFIG
    if judgement.verdict in (Verdict.RETRY, Verdict.CONFIG, Verdict.SUSPECT):
        health.failing_since = began if health.failing_since is None else health.failing_since
        health.trouble = health.trouble if judgement.verdict is Verdict.SUSPECT else judgement.reason
        health.failures += 1
    else:
        health.trouble = health.failing_since = None
        health.answered_at = now


def _in_context(request: Request, judgement: Judgement) -> Judgement:
    """What is missing on every server is a wrong address; a server that takes no artifacts takes all else."""
    if judgement.verdict is Verdict.UNSUPPORTED and request.path in _CORE:
        return replace(judgement, verdict=Verdict.CONFIG)
    if judgement.verdict is Verdict.CONFIG and judgement.status == 503 and request.path.startswith(ARTIFACTS):
        return replace(judgement, verdict=Verdict.UNSUPPORTED)
    return judgement
