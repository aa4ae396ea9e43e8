"""Server-sent events: whoever looks gets the newest state. None is kept for who reads slowly.

Nothing runs while nobody looks. Each listener has a task of its own that sends what is newest when the last message has
left; so a listener that does not read costs one message of memory, and after a while his place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from aiohttp import web

__all__ = ["Audience"]

#: Browsers that look at once.
#: Beyond: 503; their page tries again.
#: Test: tests/unit/agent/test_web_app.py::test_more_than_a_few_cannot_look_at_once
_MOST_LISTENERS = 16

#: How many seconds a message may take to leave.
#: Beyond: the listener's connection is closed.
#: Test: tests/unit/agent/test_web_app.py::test_who_does_not_read_loses_his_place_and_delays_nobody
_STALLED_S = 10.0

#: Seconds between two looks, and of silence after which a listener is asked whether he is still there.
_TICK_S, _SILENCE_S = 2.0, 15.0

_BEAT = b": still here\n\n"


class Audience:
    """Those who look. ``tell`` makes the newest message; it is called every two seconds while there are any."""

    def __init__(
        self,
        tell: Callable[[], Awaitable[str]],
        *,
        most: int = _MOST_LISTENERS,
        tick_s: float = _TICK_S,
        stalled_s: float = _STALLED_S,
    ) -> None:
        self._tell, self._most, self._tick_s, self._stalled_s = tell, most, tick_s, stalled_s
        self._listeners: set[asyncio.Event] = set()
        self._telling: asyncio.Task[None] | None = None
        self._message = b""

    def __len__(self) -> int:
        return len(self._listeners)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """The answer to one listener, for as long as he reads it."""
        if len(self._listeners) >= self._most:
            return web.Response(status=503, text="enough people are looking already\n", headers={"Retry-After": "10"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        news = asyncio.Event()
        self._join(news)
        try:
            await response.prepare(request)
            await self._follow(response, news)
        except (asyncio.TimeoutError, ConnectionError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self._leave(news)
        return response

    async def close(self) -> None:
        """Let everybody go."""
        if self._telling is not None:
            self._telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._telling

    def _join(self, news: asyncio.Event) -> None:
        self._listeners.add(news)
        if self._telling is None:
            self._telling = asyncio.create_task(self._keep_telling(), name="tell the status page's listeners")
        elif self._message:
            news.set()

    def _leave(self, news: asyncio.Event) -> None:
        self._listeners.discard(news)
        if not self._listeners and self._telling is not None:
            self._telling.cancel()
            self._telling, self._message = None, b""

    async def _keep_telling(self) -> None:
        while True:
            message = f"event: status\ndata: {await self._tell()}\n\n".encode()
            if message != self._message:
                self._message = message
                for news in self._listeners:
                    news.set()
            await asyncio.sleep(self._tick_s)

    async def _follow(self, response: web.StreamResponse, news: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(news.wait(), _SILENCE_S)
            message = self._message if news.is_set() else _BEAT
            news.clear()
            await asyncio.wait_for(response.write(message), self._stalled_s)
