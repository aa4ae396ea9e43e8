"""What an agent needs for a spool that has waited: time to start, time to the first point, memory, CPU; a week, 10,000 runs,
a large file.

    python benchmarks/backlog.py [week] [runs] [artifact] [--records N] [--runs N] [--gigabytes N] [--limit-s S]
                                 [--to URL] [--lock FILE] [--json FILE] [--directory DIR]

The spool is written by the real writer, and delivered by `mlferry agent` in a process of its own to a server that only
counts (``tests/fakes/sink.py``), or to ``--to``, of which then only the agent's side is measured. ``start_s``: from the
start of the process to its first request; ``first_point_s``: to the first point that arrived; ``drained_s``: until
everything had; ``again``: the same agent started once more, with nothing to do, for ten seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
PATHS = [str(ROOT / name) for name in ("spool", "sdk", "agent", ".")]
sys.path[:0] = PATHS

from benchmarks import results  # noqa: E402
from benchmarks.quiet import quiet  # noqa: E402

from mlferry_spool import records  # noqa: E402
from mlferry_spool.blobs import Blob, Blobs  # noqa: E402
from mlferry_spool.layout import new_run_directory  # noqa: E402
from mlferry_spool.settings import Fsync, Settings  # noqa: E402
from mlferry_spool.writer import Writer  # noqa: E402

T0 = 1_700_000_000_000
METRICS = 4
RUNS_OF_THE_WEEK = 20
AGAIN_S = 10.0


def opened(spool: Path, number: int) -> tuple[Path, Writer]:
    run_id = f"{number:032x}"
    directory = new_run_directory(spool, run_id, T0 + number * 1000)
    opening = records.Open(
        writer_id="w", run_id=run_id, experiment_name="backlog", start_time=T0, run_name=f"run {number}"
    )
    return directory, Writer(directory, opening, Settings(fsync=Fsync.NEVER))


def log(writer: Writer, first: int, count: int) -> None:
    for step in range(first, first + count):
        writer.append(records.Kind.METRICS, (T0 + step, step, {f"metric {key}": step / 7 for key in range(METRICS)}))


def a_week(spool: Path, given: argparse.Namespace) -> dict[str, int]:
    """Runs of one process each that logged all the time."""
    each = given.records // RUNS_OF_THE_WEEK
    for number in range(RUNS_OF_THE_WEEK):
        _, writer = opened(spool, number)
        log(writer, 0, each)
        writer.close(records.RunEnd(T0 + 10**9, "FINISHED"))
    return {"points": each * METRICS * RUNS_OF_THE_WEEK, "ends": RUNS_OF_THE_WEEK}


def many_runs(spool: Path, given: argparse.Namespace) -> dict[str, int]:
    """Short runs, as a search of parameters makes them."""
    for number in range(given.runs):
        _, writer = opened(spool, number)
        writer.put(records.Params(T0, {f"param {key}": str(number) for key in range(5)}))
        writer.put(records.Tags(T0, {"tag": "1"}))
        log(writer, 0, 5)
        writer.close(records.RunEnd(T0 + 10**6, "FINISHED"))
    return {"points": given.runs * 5 * METRICS, "ends": given.runs}


def a_large_file(spool: Path, given: argparse.Namespace) -> dict[str, int]:
    """A checkpoint, no hole in it; made where it belongs, since a copy of it would take as long again."""
    directory, writer = opened(spool, 10**6)
    blobs, noise, sha256 = Blobs(directory, durable=False), os.urandom(1 << 20), hashlib.sha256()
    made = blobs.path(blobs.put_bytes(b"").sha256)
    with made.open("wb") as file:
        for number in range(int(given.gigabytes * 1024)):
            chunk = number.to_bytes(8, "big") + noise[8:]
            sha256.update(chunk)
            file.write(chunk)
    blob = Blob(sha256.digest(), made.stat().st_size)
    made.rename(blobs.path(blob.sha256))
    log(writer, 0, 10)
    writer.put(records.Artifact(T0, "checkpoint.pt", blob.sha256, blob.size))
    writer.close(records.RunEnd(T0 + 10**6, "FINISHED"))
    return {"artifact bytes": blob.size, "ends": 1}


SPOOLS = {"week": a_week, "runs": many_runs, "artifact": a_large_file}


@contextmanager
def sink() -> Iterator[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    words = [sys.executable, "-m", "tests.fakes.sink"]
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield next(word for word in process.stdout.readline().split() if word.startswith("http"))
        finally:
            process.kill()


def counts(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/counts") as answer:
        told: dict[str, Any] = json.load(answer)
    return told


@contextmanager
def agent(spool: Path, state: Path, url: str) -> Iterator[psutil.Process]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    environ |= {"HOME": str(state), "MLFERRY_DIR": str(spool), "MLFERRY_STATE_DIR": str(state), "MLFERRY_TO": url}
    environ["PYTHONPATH"] = os.pathsep.join(PATHS)
    words = [sys.executable, "-m", "mlferry_agent.main", "agent"]
    with (state / "log").open("ab") as log_file, subprocess.Popen(words, env=environ, stderr=log_file) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def spent(process: psutil.Process) -> dict[str, float]:
    """Peak memory (MB) and CPU (seconds) of an agent until now."""
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    times = process.cpu_times()
    return {"peak_mb": round(int(peak) / 1024, 1), "cpu_s": round(times.user + times.system, 1)}


def drain(spool: Path, state: Path, url: str, wanted: dict[str, int], limit_s: float) -> dict[str, Any]:
    began = time.monotonic()
    with agent(spool, state, url) as process:
        while time.monotonic() - began < limit_s:
            time.sleep(0.2)
            told = counts(url)
            if all(told.get(name, 0) >= count for name, count in wanted.items()):
                break
        drained = round(time.monotonic() - began, 1)
        found = {"drained_s": drained, "is_drained": time.monotonic() - began < limit_s, **spent(process)}
    first = {f"{name}_s": round(at - began, 2) for name, at in told.pop("first").items()}
    return {"start_s": first.get("request_s"), "first_point_s": first.get("point_s"), **found, "arrived": told}


def again(spool: Path, state: Path, url: str) -> dict[str, Any]:
    before = counts(url)["requests"]
    with agent(spool, state, url) as process:
        time.sleep(AGAIN_S)
        return {**spent(process), "requests": counts(url)["requests"] - before}


def measure(names: list[str], directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    spool, state = directory / "spool", directory / "state"
    for path in (spool, state):
        path.mkdir(mode=0o700)
    began, wanted = time.monotonic(), {"points": 0, "ends": 0, "artifact bytes": 0}
    for name in names:
        for what, count in SPOOLS[name](spool, given).items():
            wanted[what] += count
    found: dict[str, Any] = {"wanted": wanted, "written_in_s": round(time.monotonic() - began, 1)}
    if given.to is not None:
        with agent(spool, state, given.to) as process:
            time.sleep(given.limit_s)
            return {**found, **spent(process)}
    with quiet(given.lock), sink() as url:
        return {**found, **drain(spool, state, url, wanted, given.limit_s), "again": again(spool, state, url)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "spools", nargs="*", help=f"what is in the spool, of {', '.join(SPOOLS)}; each alone if none is named"
    )
    parser.add_argument("--records", type=int, default=500_000, help=f"of the week, {METRICS} points each")
    parser.add_argument("--runs", type=int, default=2_000)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--limit-s", type=float, default=300.0)
    parser.add_argument("--to", help="a real server; the agent runs for --limit-s")
    parser.add_argument(
        "--lock", type=Path, help="hold this file's lock, and run before others, while something is timed"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where the spool is made and deleted")
    given = parser.parse_args()
    found = {}
    for names in [given.spools] if given.spools else [[name] for name in SPOOLS]:
        directory = Path(tempfile.mkdtemp(dir=given.directory, prefix="backlog-"))
        try:
            found[" and ".join(names)] = measure(names, directory, given)
        finally:
            shutil.rmtree(directory)
    text = json.dumps(found, indent=2)
    print(text)
    if given.json is not None:
        record(given.json, found, given)


def record(path: Path, found: dict[str, Any], given: argparse.Namespace) -> None:
    """What a server that only counts got; against a real one nothing but the agent's side is known."""
    columns = {
        **{
            "name": "spool",
            "points": "points",
            "ends": "runs",
            "megabytes": "files (MB)",
            "start_s": "first request (s)",
        },
        **{"first_point_s": "first point (s)", "drained_s": "all delivered (s)", "points_a_second": "points/s"},
        **{"peak_mb": "peak memory (MB)", "cpu_s": "CPU (s)", "again_cpu_s": "CPU when idle (s)"},
    }
    rows = [row(name, told) for name, told in found.items()]
    results.write(
        path,
        "backlog",
        "What `mlferry agent` needs for a spool that has waited.",
        columns={key: text for key, text in columns.items() if any(key in row for row in rows)},
        rows=rows,
        notes=[
            f"One process of `mlferry agent` per spool and one measurement each: {given.records:,} records of {METRICS} "
            f"points in {RUNS_OF_THE_WEEK} runs, {given.runs:,} short runs, one file of {given.gigabytes:g} GB.",
            "The server only counts, so this is the agent's side alone: a real MLflow server takes longer than the agent.",
            "First request and first point: from the start of the process, Python's own included.",
            f"Idle: the same agent started once more with nothing to deliver, its CPU in the first {AGAIN_S:g} s.",
        ],
        directory=given.directory,
    )


def row(name: str, told: dict[str, Any]) -> dict[str, Any]:
    wanted, again = told["wanted"], told.get("again", {})
    made = {
        "name": name,
        "points": wanted["points"],
        "ends": wanted["ends"],
        "megabytes": wanted["artifact bytes"] / 1e6,
    }
    made |= {key: told[key] for key in ("start_s", "first_point_s", "drained_s", "peak_mb", "cpu_s") if key in told}
    if "drained_s" in told and not told["is_drained"]:
        made["drained_s"] = f"more than {told['drained_s']}"
    elif wanted["points"] > 1000:
        made["points_a_second"] = round(wanted["points"] / told["drained_s"])
    return made | ({"again_cpu_s": again["cpu_s"]} if again else {})


if __name__ == "__main__":
    main()
