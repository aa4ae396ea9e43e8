"""What a print costs a training whose console is captured, and one whose console is not; and how long the ends wait.

    python benchmarks/console.py [--lines N] [--pause US]

Each contestant prints lines of 80 characters to a file, in a process of its own, a little apart from each other, as a
training does. The second writes each line at once, as a captured one does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import json, os, resource, statistics, sys, time
import mlferry
lines, pause, how, into = int(sys.argv[1]), float(sys.argv[2]) / 1e6, sys.argv[3], sys.argv[4]
text = "x" * 79
began = time.perf_counter()
run = mlferry.start_run(capture=how != "off")
started = time.perf_counter() - began
if how == "off, by line":
    sys.stdout.reconfigure(line_buffering=True)
took = []
for number in range(lines):
    before = time.perf_counter()
    print(text)
    took.append(time.perf_counter() - before)
    until = before + pause
    while time.perf_counter() < until:
        pass
before = time.perf_counter()
mlferry.end_run()
ended = time.perf_counter() - before
took.sort()
found = {"p50_us": took[lines // 2], "p99_us": took[lines * 99 // 100], "max_us": took[-1], "mean_us": sum(took) / lines,
         "start_us": started, "end_us": ended}
open(into, "w").write(json.dumps({name: value * 1e6 for name, value in found.items()}))
"""

CONTESTANTS = {"not captured": "off", "not captured, a write a line": "off, by line", "captured": "on"}


def measured(how: str, lines: int, pause: float) -> dict[str, float]:
    """Microseconds of each print, and of beginning and ending the run."""
    with tempfile.TemporaryDirectory() as directory:
        environ = {**os.environ, "MLFERRY_DIR": f"{directory}/spool", "MLFERRY_QUIET": "1", "PYTHONUNBUFFERED": ""}
        environ["PYTHONPATH"] = os.pathsep.join(str(ROOT / name) for name in ("spool", "sdk"))
        program = PROGRAM.replace('how != "off"', 'how == "on"')
        command = [sys.executable, "-c", program, str(lines), str(pause), how, f"{directory}/found"]
        with Path(directory, "shown").open("wb") as sink:
            subprocess.run(command, env=environ, stdout=sink, check=True)
        found: dict[str, float] = json.loads(Path(directory, "found").read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--pause", type=float, default=50.0, help="microseconds from one print to the next")
    given = parser.parse_args()
    for name, how in CONTESTANTS.items():
        found = measured(how, given.lines, given.pause)
        print(f"{name:30}" + "  ".join(f"{key} {value:9.1f}" for key, value in found.items()))


if __name__ == "__main__":
    main()
