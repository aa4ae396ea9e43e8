"""Sends one request until it is settled: with backoff, without a stampede, never giving up on what is transient.

Owns the health of the destination, and the gate that lets a few requests to it at once. When the server does not answer,
one courier at a time tries and the others wait for it, so that a server that comes back is not met by everything at once.
What an answer means is ``answers``; how long to wait is ``retry``; what to do about a refusal is ``deliveries``.

Artifact stores that are reached past the server have a health of their own: while one is away, curves stay live.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from mlferry_agent.requests import API, ARTIFACTS, Request
from mlferry_agent.retry import Attempts, Backoff

__all__ = ["Courier", "Health", "Reply", "Sender"]

#: Seconds between two tries of a destination that is configured wrongly: somebody may be mending it.
#: Beyond: the agent tries again, after half of it at the earliest; a command says what is wrong and ends.
#: Test: tests/unit/agent/test_courier.py::
#: test_a_wrong_token_is_raised_by_a_command_and_waited_for_by_the_daemon
_CONFIG_RETRY_S = 60.0

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
    """One way to the destination: how it does, and whose turn it is to try while it does badly."""

    health: Health
    probe: asyncio.Lock = field(default_factory=asyncio.Lock)


class Courier:
    """Carries requests to one destination.

    Args:
        sender: the transport.
        give_up_after_s: seconds without any good answer after which ``GaveUp`` is raised; None: never.
        patient: wait for a wrong configuration to be mended, instead of raising ``Misconfigured``.
        connections: requests at once, at most; files have a bound of their own (``transport``).
    """

    def __init__(
        self,
        sender: Sender,
        *,
        give_up_after_s: float | None = None,
        patient: bool = True,
        connections: int = 4,
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
        self.gate = Gate(connections)
        self.health, self.store_health = Health(), Health()
        self._roads = {False: _Road(self.health), True: _Road(self.store_health)}

    async def ask(self, request: Request) -> Reply:
        """Send until settled; the verdict is never RETRY, and SUSPECT only after the attempts it is allowed.

        Raises:
            GaveUp: no good answer for ``give_up_after_s``. Misconfigured: the server refuses us, and not ``patient``.
        """
        return await self._settle(request, lambda: self._send(request), self._attempts())

    async def upload(self, request: Request, file: BinaryIO, size: int) -> Reply:
        """Send an open file until settled, each time from its beginning. Raises as ``ask``, and ``UnreadableFile``."""
        # A transfer may take hours before it breaks off: they are not hours without a good answer.
        return await self._settle(
            request, lambda: self._sender.upload(request, file, size), self._attempts(), transfer=True
        )

    async def ask_once(self, request: Request, attempts: Attempts) -> Reply:
        """One attempt at a request that must not be repeated blindly. Verdict RETRY: whether the server acted on it is
        unknown, and the wait before the next look is over. Raises as ``ask``."""
        async with self._turn(request):
            reply = await self._attempt(request, lambda: self._send(request))
        delay = self._delay(request, reply.judgement, attempts)
        if delay is not None:
            await self._sleep(delay)
            return Reply(Judgement(Verdict.RETRY, reply.reason), reply.answer)
        return reply

    def attempts(self) -> Attempts:
        """A counter of attempts at one request, for ``ask_once``."""
        return self._attempts()

    def _attempts(self) -> Attempts:
        return Attempts(self._backoff, self._rng, self._clock)

    async def _settle(
        self, request: Request, send: Callable[[], Awaitable[Answer]], attempts: Attempts, *, transfer: bool = False
    ) -> Reply:
        while True:
            async with self._turn(request):
                reply = await self._attempt(request, send, transfer=transfer)
                delay = self._delay(request, reply.judgement, attempts)
                if delay is None:
                    return reply
                await self._sleep(delay)

    @contextlib.asynccontextmanager
    async def _turn(self, request: Request) -> AsyncIterator[None]:
        """While the destination is not well, one at a time."""
        road = self._roads[request.is_direct]
        if road.health.trouble is None:
            yield
            return
        async with road.probe:
            yield

    async def _send(self, request: Request) -> Answer:
        if request.is_direct:  # the gate and its pace are the server's
            return await self._sender.send(request)
        async with self.gate.passed():
            began = self._clock()
            try:
                answer = await self._sender.send(request)
            except Unreachable:
                self.gate.pace.forget()
                raise
            if answer.status == 200:
                self.gate.pace.note(work_of(request.body), began, self._clock())
            return answer

    async def _attempt(
        self, request: Request, send: Callable[[], Awaitable[Answer]], *, transfer: bool = False
    ) -> Reply:
        health = self._roads[request.is_direct].health
        health.requests += 1
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
        _note(health, judgement, self._clock() if transfer else began, self._clock())
        return Reply(judgement, answer)

    async def _is_let_in(self) -> bool:
        """Whether the server takes us for somebody, asked for what everybody may ask. Then what it denied us is one thing
        (a run, an experiment, a text that a firewall dislikes), and all else goes on."""
        request = requests.search_experiments(max_results=1)
        try:
            return classify(request, await self._sender.send(request)).verdict is Verdict.ACCEPTED
        except (Unreachable, Misconfigured):
            return False

    def _delay(self, request: Request, judgement: Judgement, attempts: Attempts) -> float | None:
        """Seconds until the next attempt, or None when the request is settled."""
        if judgement.verdict is Verdict.CONFIG:
            if not self._patient:
                raise Misconfigured(judgement.reason)
            return _CONFIG_RETRY_S * self._rng.uniform(0.5, 1.0)
        if judgement.verdict not in (Verdict.RETRY, Verdict.SUSPECT):
            return None
        self._give_up_if_due(self._roads[request.is_direct].health, judgement)
        return attempts.again(judgement)

    def _give_up_if_due(self, health: Health, judgement: Judgement) -> None:
        since = health.failing_since
        if self._give_up_after_s is not None and since is not None and self._clock() - since >= self._give_up_after_s:
            raise GaveUp(judgement.reason)


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
