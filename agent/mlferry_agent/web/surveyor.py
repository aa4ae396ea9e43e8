"""When surveys are taken: only for somebody who asks, one at a time, and for a small share of the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mlferry_agent.carrier import Work
from mlferry_agent.web.surveys import Survey, Surveys

__all__ = ["Surveyor"]

#: Seconds from one survey to the next at least, and the share of the time that surveys take at most.
_PAUSE_S, _SHARE = 1.5, 0.05


class Surveyor:
    """The newest survey for everybody. ``work``: asks the carrier what it has in hand."""

    def __init__(self, surveys: Surveys, work: Callable[[], Work], clock: Callable[[], float] = time.monotonic) -> None:
        self._surveys, self._work, self._clock = surveys, work, clock
        # Not the loop's own threads: a file system that hangs must not keep deliveries from reading their files.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlferry-survey")
        self._taking: asyncio.Future[Survey] | None = None
        self._ended_at = 0.0
        self.newest: Survey | None = None

    async def look(self, patience_s: float) -> Survey | None:
        """The newest survey: a new one, if it is time for one and it takes no longer than ``patience_s``."""
        if self._taking is None and self._is_due():
            taking = asyncio.get_running_loop().run_in_executor(self._thread, self._surveys.take, self._work())
            self._taking = asyncio.ensure_future(taking)
            self._taking.add_done_callback(self._taken)
        if self._taking is not None:
            await asyncio.wait({self._taking}, timeout=patience_s)
        return self.newest

    def close(self) -> None:
        self._surveys.end()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _is_due(self) -> bool:
        if self.newest is None:
            return True
        return self._clock() - self._ended_at >= max(_PAUSE_S, self.newest.took_s / _SHARE)

    def _taken(self, taking: asyncio.Future[Survey]) -> None:
        self._taking, self._ended_at = None, self._clock()
        if not taking.cancelled():
            self.newest = taking.result()
