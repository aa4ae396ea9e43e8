"""What an agent takes as its spool grows: 100, 1,000, 10,000 runs (and 100,000 with --full), 100 of which are being written.

    python benchmarks/scale.py [--runs N ...] [--full] [--active N] [--window-s S] [--parts PART ...] [--json FILE]
                               [--directory DIR]

The server is a process that only counts (``tests/fakes/sink.py``): a real one would idle here. Runs that are being written
belong to a process that holds their logs and their locks.

``cold``: nothing was ever delivered. Time from the start of the process to READY (what systemd waits for), to the first
request, and to the first point that arrived. ``warm``: all is delivered, and the ledger knows. The same times, and the
processor time until there is no more to look at. ``idle``: half a minute later, over a window in which nobody logs: share
of a core, resident memory, inotify watches. ``busy``: one run logs one record a second; processor time for each, less
that of idling. ``commands``: `mlferry status`, `mlferry ls` (on a terminal) and `mlferry` alone, where all is delivered,
medians of three; and `mlferry status` where nothing is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import platform
import pty
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from backlog import PATHS, T0, agent, counts, log, opened, sink  # noqa: E402

from mlferry_agent.answers import Answer  # noqa: E402
from mlferry_agent.carrier import Carrier  # noqa: E402
from mlferry_agent.courier import Courier  # noqa: E402
from mlferry_agent.discovery import discover  # noqa: E402
from mlferry_agent.filesystems import file_system  # noqa: E402
from mlferry_agent.ledger import Ledger, ledger_path  # noqa: E402
from mlferry_agent.requests import Request  # noqa: E402
from mlferry_agent.terms import Terms  # noqa: E402
from mlferry_spool import records  # noqa: E402
from mlferry_spool.codec import decode, pack  # noqa: E402
from mlferry_spool.frames import encode, preamble  # noqa: E402
from mlferry_spool.layout import LOCK, new_run_directory, segment_name  # noqa: E402
from mlferry_spool.reader import LogReader  # noqa: E402
from mlferry_spool.tailer import Entry  # noqa: E402

PARTS = ("cold", "warm", "idle", "busy", "commands")
WAIT_S = 120.0

#: Seconds after the last growth from which an agent looks less often (mlferry_agent.carrier), and a little more.
AT_REST_S = 31.0


# -- the spool ----------------------------------------------------------------------------------------------------------


def finished_runs(spool: Path, count: int) -> None:
    """Short runs that are over: one by the real writer, all others as it would have written them."""
    directory, writer = opened(spool, 0)
    writer.put(records.Params(T0, {f"param {key}": str(key) for key in range(5)}))
    log(writer, 0, 5)
    writer.close(records.RunEnd(T0 + 10**6, "FINISHED"))
    log_of_it = LogReader(directory / "w")
    entries = [event for event in log_of_it.read() if isinstance(event, Entry)]
    first = decode(entries[0].kind, entries[0].payload)
    assert isinstance(first, records.Open)
    salt = 7
    tail = b"".join(encode(entry.kind, entry.offset, entry.payload, salt) for entry in entries[1:])
    for number in range(1, count):
        opening = replace(first, run_id=f"{number:032x}", run_name=f"run {number}")
        place = new_run_directory(spool, f"{number:032x}", T0 + number * 1000) / "w"
        place.mkdir(mode=0o700, parents=True)
        (place / LOCK).touch(mode=0o600)
        head = preamble(salt) + encode(records.Kind.OPEN, 0, pack(opening), salt)
        (place / segment_name(0)).write_bytes(head + tail)


def train(spool: Path, first: int, count: int) -> None:
    """The process that is training: a record of its first run for each line that it reads, and it ends with them."""
    writers = [opened(spool, number)[1] for number in range(first, first + count)]
    for writer in writers:
        writer.put(records.Params(T0, {"param": "1"}))
        log(writer, 0, 5)
    print("ready", flush=True)
    for step, _ in enumerate(sys.stdin, 5):
        log(writers[0], step, 1)
        print("logged", flush=True)


class Training:
    """Runs that are being written, in a process of their own."""

    def __init__(self, spool: Path, first: int, count: int) -> None:
        words = [sys.executable, str(Path(__file__).resolve()), "--train", str(spool), str(first), str(count)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def log(self) -> None:
        """One record more."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError("the training has ended")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


class Accepting:
    """A server inside this process, for making a ledger: it takes everything."""

    def __init__(self) -> None:
        self._runs = 0

    async def send(self, request: Request) -> Answer:
        name, body = request.path.rpartition("/mlflow/")[2], "{}"
        if name.startswith("experiments/get"):
            body = '{"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}}'
        elif name in ("runs/create", "runs/get"):
            self._runs += name == "runs/create"
            info = {"run_id": f"{self._runs:032x}", "experiment_id": "1", "artifact_uri": "mlflow-artifacts:/1"}
            body = json.dumps({"run": {"info": {**info, "status": "RUNNING", "lifecycle_stage": "active"}}})
        return Answer(200, {"content-type": "application/json"}, body.encode())

    async def upload(self, request: Request, file: object, size: int) -> Answer:
        return await self.send(request)


def deliver(spool: Path, state: Path, url: str) -> None:
    """What an agent remembers that has delivered it all."""
    ledger = Ledger.open(ledger_path(state, url), url)
    try:
        asyncio.run(Carrier(spool, ledger, Courier(Accepting()), Terms()).deliver(discover(spool)))
    finally:
        ledger.close()


# -- the agent ----------------------------------------------------------------------------------------------------------


def until(happened: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + WAIT_S
    while not happened():
        if time.monotonic() > limit:
            raise RuntimeError(f"no {what} within {WAIT_S:.0f} s")
        time.sleep(0.01)


def cpu_s(pid: int) -> float:
    """Seconds that all threads of a process have run, to the nanosecond (proc(5), schedstat)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def memory_mb(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(line.split()[1] for line in lines if line.startswith(name))) / 1024, 1)


def watches(pid: int) -> int:
    """inotify watches that a process holds."""
    found = 0
    for place in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += place.read_text().count("inotify wd:")
    return found


@contextlib.contextmanager
def started(spool: Path, state: Path, url: str) -> Iterator[tuple[int, float, dict[str, float]]]:
    """An agent: its process, when it was started, and how long it took to READY and to its first request."""
    with tempfile.TemporaryDirectory() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(f"{place}/notify")
        notified.settimeout(WAIT_S)
        os.environ["NOTIFY_SOCKET"] = f"{place}/notify"
        before, began = counts(url).get("requests", 0), time.monotonic()
        with agent(spool, state, url) as process:
            while b"READY=1" not in notified.recv(4096):
                pass
            ready = time.monotonic() - began
            notified.close()  # who keeps it open has to read it
            until(lambda: counts(url).get("requests", 0) > before, "request")
            yield process.pid, began, {"ready_s": round(ready, 2), "request_s": round(time.monotonic() - began, 2)}


def cold(spool: Path, state: Path) -> dict[str, Any]:
    with sink() as url, started(spool, state, url) as (pid, began, found):
        until(lambda: "point" in counts(url)["first"], "point")
        first = {name: round(at - began, 2) for name, at in counts(url)["first"].items()}
        return {
            "cold_ready_s": found["ready_s"],
            "cold_request_s": first["request"],
            "cold_point_s": first["point"],
            "cold_cpu_s": round(cpu_s(pid), 2),
        }


def settle(pid: int) -> float:
    """Wait until an agent has no more to look at: less than 5 % of a core for 3 seconds. Its processor time until then."""
    limit, calm, last = time.monotonic() + 600, 0, cpu_s(pid)
    until_now = last
    while calm < 3 and time.monotonic() < limit:
        time.sleep(1)
        now = cpu_s(pid)
        calm, until_now, last = (calm + 1, until_now, now) if now - last < 0.05 else (0, now, now)
    return until_now


def window(pid: int, seconds: float, each_second: Callable[[], None] = lambda: None) -> float:
    """Processor seconds within a window."""
    before, began = cpu_s(pid), time.monotonic()
    for second in range(round(seconds)):
        each_second()
        time.sleep(max(0.0, began + second + 1 - time.monotonic()))
    return cpu_s(pid) - before


def living(spool: Path, state: Path, url: str, training: Training, given: argparse.Namespace) -> dict[str, Any]:
    """An agent that knows everything: its start, its rest, and one run that logs."""
    with started(spool, state, url) as (pid, _, found):
        result: dict[str, Any] = {f"warm_{name}": value for name, value in found.items()}
        result["warm_cpu_s"] = round(settle(pid), 2)
        if "idle" in given.parts:
            time.sleep(AT_REST_S)
            before = counts(url)["requests"]
            idle = window(pid, given.window_s)
            result["idle_percent"] = round(100 * idle / given.window_s, 3)
            result["idle_requests"] = counts(url)["requests"] - before
        if "busy" in given.parts:
            busy = window(pid, given.window_s, training.log)
            result["wakeup_ms"] = round(1000 * (busy - (idle if "idle" in given.parts else 0.0)) / given.window_s, 2)
        return {
            **result,
            "rss_mb": memory_mb(pid, "VmRSS"),
            "peak_mb": memory_mb(pid, "VmHWM"),
            "watches": watches(pid),
        }


# -- commands -----------------------------------------------------------------------------------------------------------


def on_a_terminal(words: list[str], environ: dict[str, str]) -> float:
    """Seconds until a command has ended that writes to a terminal."""
    ours, theirs = pty.openpty()
    began = time.monotonic()
    process = subprocess.Popen(words, env=environ, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    with contextlib.suppress(OSError):
        while os.read(ours, 65536):
            pass
    if process.wait() not in (0, 3, 4):
        raise RuntimeError(f"{words} ended with {process.returncode}")
    os.close(ours)
    return time.monotonic() - began


def commands(spool: Path, state: Path, url: str, verbs: list[str], times: int) -> dict[str, float]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    environ |= {"MLFERRY_DIR": str(spool), "MLFERRY_STATE_DIR": str(state), "MLFERRY_TO": url, "HOME": str(state)}
    environ |= {"PYTHONPATH": os.pathsep.join(PATHS), "TERM": "xterm"}
    program = [sys.executable, "-m", "mlferry_agent.main"]
    return {
        verb: round(statistics.median(on_a_terminal([*program, *verb.split()], environ) for _ in range(times)), 2)
        for verb in verbs
    }


# -- all of it ----------------------------------------------------------------------------------------------------------


def measure(runs: int, directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    spool, row = directory / "spool", {"runs": runs}
    for name in ("spool", "cold", "warm"):
        (directory / name).mkdir(mode=0o700)
    active = min(given.active, runs)
    if runs > active:
        finished_runs(spool, runs - active)
    training = Training(spool, runs - active, active)
    try:
        if "cold" in given.parts:
            row |= cold(spool, directory / "cold")
        with sink() as url:
            if "commands" in given.parts:
                [row["new_status_s"]] = commands(spool, directory / "cold", "http://nobody", ["status"], 1).values()
            deliver(spool, directory / "warm", url)
            if {"warm", "idle", "busy"} & set(given.parts):
                row |= living(spool, directory / "warm", url, training, given)
            if "commands" in given.parts:
                found = commands(spool, directory / "warm", url, ["", "status", "ls"], 3)
                row |= {f"{verb or 'mlferry'}_s": taken for verb, taken in found.items()}
    finally:
        training.end()
    return row


COLUMNS = {
    "runs": "runs in the spool",
    "cold_ready_s": "cold: READY (s)",
    "cold_request_s": "cold: first request (s)",
    "cold_point_s": "cold: first point (s)",
    "warm_ready_s": "warm: READY (s)",
    "warm_request_s": "warm: first request (s)",
    "warm_cpu_s": "warm: processor until at rest (s)",
    "idle_percent": "idle: share of a core (%)",
    "wakeup_ms": "processor for one record (ms)",
    "rss_mb": "resident memory (MB)",
    "peak_mb": "peak (MB)",
    "watches": "inotify watches",
    "mlferry_s": "mlferry (s)",
    "status_s": "mlferry status (s)",
    "ls_s": "mlferry ls (s)",
    "new_status_s": "mlferry status, nothing delivered (s)",
}


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def result(rows: list[dict[str, Any]], directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "scale",
        "title": "What an agent takes as its spool grows, with 100 runs of it being written.",
        "date": datetime.date.today().isoformat(),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "file_system": file_system(directory),
        },
        "columns": {key: COLUMNS[key] for key in COLUMNS if any(key in row for row in rows)},
        "rows": rows,
        "plot": {
            "kind": "line",
            "x": "runs",
            "y": ["cold_request_s", "warm_request_s", "idle_percent"],
            "log_x": True,
            "log_y": True,
        },
        "notes": [
            "The server only counts (tests/fakes/sink.py), in a process of its own; a real one would idle here.",
            f"{given.active} runs are being written by another process, all others are over; {given.window_s:.0f} seconds"
            " each of rest and of one record a second.",
            "Each start is measured once, commands three times (the median stands here), all on a terminal.",
            "Files are in the page cache: a first look at a spool on a cold disk is not measured.",
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--full", action="store_true", help="100,000 runs, too: a quarter of an hour")
    parser.add_argument("--active", type=int, default=100, help="runs that are being written")
    parser.add_argument("--window-s", type=float, default=30.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where spools are made and deleted")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        train(Path(given.train[0]), int(given.train[1]), int(given.train[2]))
        return
    rows = []
    place = Path(given.directory or tempfile.gettempdir())
    for runs in [*given.runs, *([100_000] if given.full else [])]:
        directory = Path(tempfile.mkdtemp(dir=place, prefix="scale-"))
        try:
            rows.append(measure(runs, directory, given))
        finally:
            shutil.rmtree(directory)
        print(json.dumps(rows[-1]), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(result(rows, place, given), indent=2) + "\n")


if __name__ == "__main__":
    main()
