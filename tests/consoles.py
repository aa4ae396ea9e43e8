"""Consoles that were captured, for tests: what a spool holds of them, and the processes that captured it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tests.spools import read_writers, run_ids

from mlferry_spool.blobs import Blobs
from mlferry_spool.layout import find_run
from mlferry_spool.records import Artifact

__all__ = ["captured", "captures", "together"]


def captured(root: Path, run_id: str | None = None) -> dict[str, bytes]:
    """The last content of each part of each console of a run (the only one), by its path."""
    if run_id is None:
        [run_id] = run_ids(root)
    directory = find_run(root, run_id)
    assert directory is not None
    found = {}
    for records in read_writers(root, run_id).values():
        for record in records:
            if isinstance(record, Artifact) and record.path.startswith("console/"):
                found[record.path] = Blobs(directory).path(record.sha256).read_bytes()
    return dict(sorted(found.items()))


def together(root: Path) -> str:
    """All of the only run's consoles."""
    return b"".join(captured(root).values()).decode()


def captures(marker: Path) -> list[int]:
    """The processes, the one that waits first, that capture for a training which logs below ``marker``."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            words = Path("/proc", name, "cmdline").read_bytes()
            if name.isdigit() and b"mlferry.console.child" in words and str(marker).encode() in words:
                found.append(int(name))
    return sorted(found)
