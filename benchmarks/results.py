"""What a benchmark leaves behind: one JSON file a benchmark, all of the same shape, with the facts of the machine.

Owns the shape and the file; ``report.py`` makes the document of them. Never measures.

    {"benchmark": stem, "title": "one sentence", "date": "2026-11-26", "machine": {"cpu": ..., "cores": ..., ...},
     "columns": {"row key": "header with unit", ...}, "rows": [{...}, ...],
     "plot": {"kind": "bar" or "line", "x": "row key", "y": ["row key", ...], "log_x": bool, "log_y": bool} or null,
     "notes": ["what was compared with what, medians of how many, what is not measured", ...]}

Rows may hold more than the columns show. ``command`` is the command line, where a benchmark wrote it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "results"
FIELDS = {
    **{"benchmark": str, "title": str, "date": str, "machine": dict, "columns": dict, "rows": list},
    **{"plot": (dict, type(None)), "notes": list},
}
MACHINE = ("cpu", "cores", "python", "kernel", "file_system")


def machine(directory: Path | str | None = None) -> dict[str, Any]:
    """What numbers depend on. ``directory``: where the benchmark wrote; the folder of temporary files by default."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "file_system": file_system(Path(directory or os.environ.get("TMPDIR", "/tmp"))),
    }


def file_system(directory: Path) -> str:
    """The type of the file system that holds a directory; empty where the kernel does not say."""
    of_device = {os.stat(mount).st_dev: kind for mount, kind in _mounts() if os.path.exists(mount)}
    return of_device.get(directory.stat().st_dev, "")


def spread(values: Sequence[float], name: str) -> dict[str, float]:
    """The median of some values and their 10th and 90th percentile, as ``name``, ``name_p10`` and ``name_p90``."""
    ordered = sorted(values)
    last = len(ordered) - 1
    ends = {f"{name}{suffix}": ordered[round(last * part)] for suffix, part in (("_p10", 0.1), ("_p90", 0.9))}
    return {name: statistics.median(ordered), **ends}


def write(
    path: Path,
    benchmark: str,
    title: str,
    *,
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    plot: Mapping[str, Any] | None = None,
    directory: Path | str | None = None,
) -> None:
    """Raises ValueError for what the report could not show."""
    command = command_line()
    result = {
        **{"benchmark": benchmark, "title": title, "date": datetime.date.today().isoformat()},
        **({"command": command} if command else {}),
        **{"machine": machine(directory), "columns": dict(columns), "rows": list(rows), "plot": plot},
        "notes": list(notes),
    }
    if wrong := problems(result):
        raise ValueError("; ".join(wrong))
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def command_line() -> str | None:
    """How this process was started, if by a benchmark; where its lock lay is left out."""
    script, *words = sys.argv
    if Path(script).resolve().parent != FOLDER.parent:
        return None
    at = words.index("--lock") if "--lock" in words else len(words)
    words = [*words[:at], *words[at + 2 :]]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *words])


def problems(result: Mapping[str, Any]) -> list[str]:
    """What is wrong with a result, in words; empty if nothing is."""
    wrong = [f"{name} is missing or of another type" for name, kind in FIELDS.items() if not _is_a(result, name, kind)]
    if wrong:
        return wrong
    wrong += [f"machine says nothing of {name}" for name in MACHINE if name not in result["machine"]]
    keys = {key for row in result["rows"] for key in row}
    wrong += [f"no row has {key}" for key in result["columns"] if key not in keys]
    plot = result["plot"] or {"kind": "bar", "x": None, "y": []}
    wrong += [f"plot: no row has {key}" for key in [plot["x"], *plot["y"]] if key is not None and key not in keys]
    wrong += [] if plot["kind"] in ("bar", "line") else [f"plot: {plot['kind']}"]
    return wrong + ([] if result["notes"] else ["no note says what was compared"])


def _is_a(result: Mapping[str, Any], name: str, kind: Any) -> bool:
    return name in result and isinstance(result[name], kind)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _mounts() -> list[tuple[str, str]]:
    lines = Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    return [(fields[1], fields[2]) for fields in map(str.split, lines) if fields[1].startswith("/")]
