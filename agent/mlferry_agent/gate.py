"""Lets so many requests at once to the server, in the order in which they came.

How many is decided by two rules that know nothing of each other: ``pace`` finds out how many serve this agent best, and
``pacing`` how many leave enough of the server to others. The smaller number holds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator

from mlferry_agent.pace import Pace
from mlferry_agent.pacing import Window

__all__ = ["Gate"]


class Gate:
    """``pace`` and ``window`` say how many. One event loop."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self.pace = Pace(window.most, window.whole)
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"Gate({self._inside} inside, {len(self._waiting)} waiting, {self.pace}, {self.window})"

    @property
    def limit(self) -> int:
        """Requests at once."""
        return min(self.pace.limit, self.window.whole)

    @property
    def has_room(self) -> bool:
        """Whether a request would go at once, and there is nobody whom it would go before."""
        return self._inside < self.limit and not self._waiting

    @property
    def is_waited_for(self) -> bool:
        """Whether somebody waits to be let in."""
        return bool(self._waiting)

    @contextlib.asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Inside. Whoever waits is let in first."""
        if self.has_room:
            self._inside += 1
        else:
            await self._wait()
        try:
            yield
        finally:
            self._inside -= 1
            self._let_in()

    async def _wait(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # let in at the moment at which it was given up
                self._inside -= 1
            elif turn in self._waiting:
                self._waiting.remove(turn)
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and self._inside < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():  # else it was given up, and has not noticed yet
                self._inside += 1
                turn.set_result(None)
