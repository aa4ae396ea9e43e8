"""What several benchmarks share: the machine they ran on, the spread of what they measured, and the file of the results."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["machine", "save", "spread"]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile, each of them one of the values."""
    ordered = sorted(values)
    return tuple(ordered[round((len(ordered) - 1) * part)] for part in (0.5, 0.1, 0.9))  # type: ignore[return-value]


def machine(directory: Path) -> dict[str, Any]:
    """What the numbers depend on; ``directory``: where was written."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "file_system": _file_system(directory),
    }


def _file_system(directory: Path) -> str:
    """Of the mount points above a directory the nearest one's."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if directory.resolve().is_relative_to(point)]
    return max(above)[1]


def save(path: Path, directory: Path, **told: Any) -> None:
    """Write results as ``benchmarks/results`` keeps them; ``told``: benchmark, title, columns, rows, plot, notes."""
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    first = {"benchmark": told.pop("benchmark"), "title": told.pop("title"), "date": today}
    path.write_text(f"{json.dumps({**first, 'machine': machine(directory), **told}, indent=1)}\n")
