"""What ``import mlferry`` costs a process, and what the first run costs it: CPU milliseconds, medians of many processes.

    python benchmarks/import_time.py [--processes N] [--json FILE]

Bytecode is cached before anything is measured, as in an installed package. ``first run`` is from the import to the first
metric stored, in a spool on a temporary directory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks import results  # noqa: E402

#: What MLflow has imported of the standard library by the time that it loads its plugins.
ENTRY = "import contextlib, importlib, typing, warnings"

PROGRAMS = {
    "import dataclasses (for scale)": "import dataclasses",
    "import msgpack (for scale)": "import msgpack",
    "import mlferry": "import mlferry",
    "mlferry's part of import mlflow": f"{ENTRY}; begun = time.process_time(); import mlferry.plugin.entry",
    "first run": "import mlferry; mlferry.start_run(); mlferry.log_metric('loss', 0.5)",
}


def milliseconds(source: str, directory: str) -> float:
    """CPU milliseconds of a statement in a fresh process."""
    timed = f"import time; begun = time.process_time(); {source}; print(time.process_time() - begun); "
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPATH": os.pathsep.join([str(ROOT / "spool"), str(ROOT / "sdk")]),
        "PYTHONPYCACHEPREFIX": f"{directory}/bytecode",
        "MLFERRY_DIR": f"{directory}/spool",
        "MLFERRY_QUIET": "1",
    }
    ended = subprocess.run([sys.executable, "-c", timed], env=environment, capture_output=True, text=True, check=True)
    return float(ended.stdout) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=15, help="for each statement")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    with tempfile.TemporaryDirectory() as directory:
        for source in PROGRAMS.values():
            milliseconds(source, directory)
        for _ in range(given.processes):
            for name, source in PROGRAMS.items():
                taken[name].append(milliseconds(source, directory))
    for name, times in taken.items():
        print(f"{name:32}{statistics.median(times):8.1f} ms  (from {min(times):.1f} to {max(times):.1f})")
    if given.json:
        record(given.json, taken)


def record(path: Path, taken: dict[str, list[float]]) -> None:
    results.write(
        path,
        "import_time",
        "What `import mlferry` and the first run cost a process.",
        columns={"name": "", "ms": "median (CPU ms)", "ms_p10": "p10", "ms_p90": "p90"},
        rows=[{"name": name, **results.spread(times, "ms")} for name, times in taken.items()],
        plot={"kind": "bar", "x": "name", "y": ["ms"]},
        notes=[
            f"Medians of {len(next(iter(taken.values())))} fresh processes each, which take turns; the start of Python "
            "itself is not counted, and bytecode is cached before.",
            "First run: from the import to the first metric stored.",
        ],
    )


if __name__ == "__main__":
    main()
