"""The way to the fake server: latency, every kind of bad answer, and what a killed agent still had on its way.

Which requests go wrong is a script (``trouble``: after so many requests, in this way), so that a day can be made smaller
without changing what is left of it. How long a request takes is chance, by the day's seed: it decides what overlaps.
"""

from __future__ import annotations

import asyncio
import email.utils
import enum
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from tests.fakes.registry import FakeServer
from tests.fakes.tracking import FakeRun, refusal
from tests.simulation.loop import VirtualLoop

from mlferry_agent.answers import Answer
from mlferry_agent.errors import Unreachable
from mlferry_agent.requests import Request

__all__ = ["Server", "Trouble"]

_PAGE = b"<html><body>please log in</body></html>"


class Trouble(enum.Enum):
    """How a request goes wrong."""

    BEFORE = "the connection breaks before the server reads it"
    AFTER = "the server acts on it, and the answer is lost"
    LATE = "the answer is lost, and the server acts on it a while later"
    HANG = "a minute of nothing, then a timeout; the server never saw it"
    HANG_AFTER = "a minute of nothing, then a timeout; the server acted on it"
    PAGE = "200 with a page of HTML in place of an answer"
    PAGE_AFTER = "the server acts on it, and a page of HTML comes back"
    CUT_AFTER = "the server acts on it, and half of the answer comes back"
    EMPTY = "200 with an empty object in place of an answer"
    BUSY = "429 with Retry-After in seconds"
    AWAY = "503 with Retry-After as a date"
    GATEWAY = "502 with a page"
    SLOW_GATEWAY_AFTER = "the server acts on it, and 504 comes back"
    ILL = "500 INTERNAL_ERROR"
    ILL_AFTER = "the server acts on it, and says 500 INTERNAL_ERROR"
    STRANGER = "401"
    FORBIDDEN = "403"
    MOVED = "302"

    @property
    def acts(self) -> bool:
        """Whether the server acts on the request nevertheless."""
        return self.name.endswith("AFTER")


#: Where an empty object is no good answer; elsewhere nobody could tell.
_NEVER_EMPTY = ("runs/create", "runs/get", "experiments/create", "experiments/get-by-name", "logged-models")

#: What may be blamed on the record in the end, so that a request meets it but once.
_SUSPICIOUS = (Trouble.EMPTY, Trouble.ILL, Trouble.ILL_AFTER, Trouble.FORBIDDEN)


class Server(FakeServer):
    """``outage``: how every request goes wrong for now. ``on_end`` is called when a run is told its end."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        super().__init__()
        self._loop, self._rng = loop, rng
        self._script: deque[tuple[int, Trouble]] = deque()
        self._met: Counter[tuple[str, bytes | None]] = Counter()
        self.outage: Trouble | None = None
        self._coming_late: list[Callable[[], Answer]] = []
        self.deleted_by_hand: set[str] = set()
        self.on_end: Callable[[FakeRun, str], None] = lambda run, status: None

    def trouble(self, skip: int, kind: Trouble) -> None:
        self._script.append((skip, kind))

    def be_well(self) -> None:
        """Nothing goes wrong any more."""
        self._script.clear()
        self.outage = None

    def catch_up(self) -> None:
        """Act on what came late."""
        late, self._coming_late = self._coming_late, []
        for serve in late:
            serve()

    async def _carry(self, request: Request, serve: Callable[[], Answer]) -> Answer:
        trouble, done = self._next(request), False
        acts = trouble is None or trouble.acts
        try:
            await self._pass()
            done = True
            answer = serve() if acts else Answer(0)
            await self._pass()
        except asyncio.CancelledError:
            if not done and acts and self._rng.random() < 0.5:
                serve()  # the agent was killed, not what it had sent
            raise
        return answer if trouble is None else await self._go_wrong(trouble, answer, serve)

    def _runs_update(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        if body.get("status") in ("FINISHED", "FAILED", "KILLED"):
            self.on_end(run, body["status"])
        return super()._runs_update(run, body)

    async def _pass(self) -> None:
        await asyncio.sleep(self._rng.choice((0.0, 0.0, 0.001, 0.01, 0.2)))

    def _next(self, request: Request) -> Trouble | None:
        if self.outage is not None:
            return self.outage
        if not self._script:
            return None
        skip, kind = self._script[0]
        if skip:
            self._script[0] = (skip - 1, kind)
            return None
        if kind in _SUSPICIOUS:
            self._met[request.path, request.body] += 1
            if self._met[request.path, request.body] > 1:
                return None
        self._script.popleft()
        only_for = {Trouble.LATE: ("runs/create",), Trouble.EMPTY: _NEVER_EMPTY}.get(kind, ("",))
        return kind if request.path.endswith(only_for) else Trouble.BEFORE

    async def _go_wrong(self, trouble: Trouble, answer: Answer, serve: Callable[[], Answer]) -> Answer:
        if trouble in (Trouble.HANG, Trouble.HANG_AFTER):
            await asyncio.sleep(60)
        if trouble is Trouble.LATE:
            self._coming_late.append(serve)
            self._loop.call_later(self._rng.uniform(0, 30), self.catch_up)
        found = self._answers(answer).get(trouble)
        if found is None:
            raise Unreachable(trouble.value)
        return found

    def _answers(self, answer: Answer) -> dict[Trouble, Answer]:
        until = email.utils.formatdate(self._loop.true_ns() / 1e9 + 20, usegmt=True)
        page, ill = Answer(200, body=_PAGE), refusal(500, "INTERNAL_ERROR", "out of memory")
        return {
            Trouble.PAGE: page,
            Trouble.PAGE_AFTER: page,
            Trouble.CUT_AFTER: Answer(answer.status, body=answer.body[: len(answer.body) // 2] or b"{"),
            Trouble.EMPTY: Answer(200, body=b"{}"),
            Trouble.BUSY: Answer(429, {"retry-after": "7"}, b""),
            Trouble.AWAY: Answer(503, {"retry-after": until, "date": email.utils.formatdate(usegmt=True)}, _PAGE),
            Trouble.GATEWAY: Answer(502, body=_PAGE),
            Trouble.SLOW_GATEWAY_AFTER: Answer(504, body=_PAGE),
            Trouble.ILL: ill,
            Trouble.ILL_AFTER: ill,
            Trouble.STRANGER: Answer(401, body=b"who are you?"),
            Trouble.FORBIDDEN: Answer(403, body=b"forbidden"),
            Trouble.MOVED: Answer(302, {"location": "http://elsewhere/"}, b""),
        }
