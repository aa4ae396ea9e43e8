"""Wakes the agent when a run begins in a spool. A hint only; polling finds all.

One directory is watched, however many runs there are, and of it only what comes (watchdog's event filter sets the inotify
mask): a trainer that logs a thousand points a second wakes nobody. What happens within a run is polled. On network file
systems events do not arrive and nothing is watched.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from watchdog.events import DirCreatedEvent, DirMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from mlferry_agent.filesystems import is_local

__all__ = ["Wakeups"]


class Wakeups(FileSystemEventHandler):
    """An asyncio event that is set when a run comes into the spool at ``root``."""

    def __init__(self, root: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._root = root
        self._loop = loop
        self._observer = Observer()
        self._event = asyncio.Event()
        self.watching = self._refused = False

    def start(self) -> None:
        """Watch, if events arrive here; a spool that is not there yet is found by polling."""
        runs = self._root / "runs"
        if self.watching or self._refused or not runs.is_dir() or not is_local(runs):
            return
        kinds: list[type[FileSystemEvent]] = [DirCreatedEvent, DirMovedEvent]
        # Out of inotify watches or descriptors: polling does without.
        self._refused = True
        with contextlib.suppress(OSError):
            self._observer.schedule(self, str(runs), recursive=False, event_filter=kinds)
            self._observer.start()
            self.watching, self._refused = True, False
            self.wake()  # what began before the watch, in a spool that was not there yet, told nobody

    def stop(self) -> None:
        if self.watching:
            self._observer.stop()
            self._observer.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Until something happens (True), or for as long (False)."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)
        happened = self._event.is_set()
        self._event.clear()
        return happened
