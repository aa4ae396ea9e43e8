"""The console of a program that logs by MLflow: captured from its first run's start to that run's end, if asked for.

MLflow has no place to ask for it but the environment (``MLFERRY_CAPTURE``), so every run that a process creates or resumes
asks; the outermost gets it.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlferry import config
from mlferry.errors import MlferryError
from mlferry.launch import detect
from mlferry.trouble import warn

if TYPE_CHECKING:
    from mlferry.console.capture import Capture

__all__ = ["Consoles"]


class _Journal(Protocol):
    config: config.Config

    def directory(self, run_id: str) -> Path: ...
    def lose(self, run_id: str, error: MlferryError) -> None: ...


class Consoles:
    """The one capture that a process may have, by the run that it belongs to."""

    def __init__(self, journal: _Journal) -> None:
        self._journal = journal
        self._captures: dict[str, Capture] = {}

    def begin(self, run_id: str) -> None:
        """A run has started, or goes on."""
        if not config.boolean(os.environ, "MLFERRY_CAPTURE", False, warn):
            return
        from mlferry.console.capture import Target, begin

        journal = self._journal
        lose, fsync = partial(journal.lose, run_id), journal.config.fsync.value
        capture = begin(Target(journal.directory(run_id), run_id, detect(os.environ).rank, fsync, lose))
        if capture is not None:
            self._captures[run_id] = capture

    def end(self, run_id: str) -> None:
        """A run is about to end: what was printed is in it when this returns."""
        capture = self._captures.pop(run_id, None)
        if capture is not None:
            capture.stop()

    def end_all(self) -> None:
        """The process ends."""
        for run_id in list(self._captures):
            self.end(run_id)
