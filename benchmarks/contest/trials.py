"""Trials: workers in the environment of a system, started fresh, watched, killed, and what they left counted.

Each trial has a directory of its own, which is the worker's home and holds its temporary files, too. Systems that need no
server run in a network namespace without a network, where the system allows one (``unshare -rn``).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest import environments, table, worker

#: A phase that takes longer counts as failed; a killed trainer's helpers may go on for so long.
PHASE_LIMIT_S, HELPERS_LIMIT_S = 45.0, 10.0
_MARK = "PEERS_TRIAL"


class Failed(Exception):
    """A worker ended otherwise than it should; the last line that it printed says why."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One start of one system."""

    peer: table.Peer
    python: Path
    root: Path
    server: str
    mark: str

    @property
    def directory(self) -> Path:
        return self.root / "data"

    @property
    def adapter(self) -> Any:
        return importlib.import_module(f"benchmarks.contest.adapters.{self.peer.adapter}")

    def run(self, phase: str, number: float = 0) -> dict[str, Any]:
        """A phase to its end, and its answer. Raises Failed."""
        with self.started(phase, number) as process:
            try:
                answer, _ = process.communicate(timeout=PHASE_LIMIT_S)
            except subprocess.TimeoutExpired:
                raise Failed(f"{phase} took longer than {PHASE_LIMIT_S:.0f} s") from None
        if process.returncode:
            raise Failed(f"{phase}: {self.last_words()}")
        return json.loads(answer)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def started(self, phase: str, number: float) -> Iterator[subprocess.Popen[str]]:
        """A worker in a phase; whatever is left of it in the end is killed."""
        words = [*self.prefix(), str(self.python), "-m", "benchmarks.contest.worker", self.peer.adapter, phase]
        words += [str(self.directory), str(number)]
        with (self.root / "log").open("ab") as log:
            process = subprocess.Popen(
                words, env=self.environ(), cwd=self.root, stdout=subprocess.PIPE, stderr=log, text=True
            )
        try:
            yield process
        finally:
            self.kill()
            process.wait()

    def statement(self, source: str) -> float:
        """Milliseconds that a statement takes a fresh process."""
        timed = f"import time; begun = time.perf_counter()\n{source}\nprint(time.perf_counter() - begun)"
        words = [str(self.python), "-c", timed]
        ended = subprocess.run(words, env=self.environ(), cwd=self.root, capture_output=True, text=True)
        if ended.returncode:
            raise Failed(ended.stderr.strip().splitlines()[-1])
        return float(ended.stdout.split()[-1]) * 1000

    def prefix(self) -> list[str]:
        return [] if self.peer.needs_server else list(without_network())

    def environ(self) -> dict[str, str]:
        """Nothing of the caller's but the search path; a home of its own."""
        paths = [*([str(environments.mlferry())] if self.peer.has_mlferry else []), str(table.ROOT)]
        given = {**self.adapter.ENVIRONMENT, **self.peer.environment}
        filled = {name: value.format(directory=self.directory, server=self.server) for name, value in given.items()}
        basic = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(self.root / "home"), _MARK: self.mark}
        alone = {"PEERS_NO_NETWORK": "1"} if self.prefix() else {}
        return {**basic, "TMPDIR": str(self.directory / "tmp"), "PYTHONPATH": os.pathsep.join(paths), **alone, **filled}

    def processes(self) -> list[int]:
        """Every process of this trial, by the mark in its environment: some of the helpers leave their group."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            return f"{_MARK}={self.mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL all of them, until none is left."""
        while ours := self.processes():
            for pid in ours:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def peak_mb(self) -> float:
        """The most memory that its processes have had, helpers included (each at its own peak)."""
        return sum(_peak_kb(pid) for pid in self.processes()) / 1024

    def stored_bytes(self) -> int:
        """What lies on the disk after it."""
        return sum(path.lstat().st_size for path in self.root.rglob("*") if path.is_file())

    def last_words(self) -> str:
        lines = (self.root / "log").read_text(errors="replace").strip().splitlines()
        return (lines or ["no word"])[-1].strip()[:200]


@contextlib.contextmanager
def trial(peer: table.Peer, python: Path, server: str, directory: Path | None) -> Iterator[Trial]:
    root = Path(tempfile.mkdtemp(dir=directory, prefix=f"{peer.name}-"))
    for name in ("data/tmp", "home"):
        (root / name).mkdir(parents=True)
    made = Trial(peer, python, root, server, uuid.uuid4().hex)
    try:
        yield made
    finally:
        made.kill()
        shutil.rmtree(root, ignore_errors=True)


def killed(made: Trial, rate: float, seconds: float, *, alone: bool) -> dict[str, float]:
    """Log at a rate, SIGKILL after so many seconds: every process at once, or (``alone``) the logging one.

    Returns the calls that had returned, and the memory before. The counter is written after a call returns, so that one
    more may have been stored.
    """
    counter = made.root / worker.COUNTER
    counter.write_bytes(bytes(8))
    with made.started("paced", rate) as process:
        _await_first(process, counter, made)
        time.sleep(seconds)
        peak = made.peak_mb()
        if alone:
            process.kill()
            process.wait()
            deadline = time.monotonic() + HELPERS_LIMIT_S
            while made.processes() and time.monotonic() < deadline:
                time.sleep(0.05)
        else:
            made.kill()
    return {"returned": struct.unpack("<q", counter.read_bytes())[0], "peak_mb": peak}


def _await_first(process: subprocess.Popen[str], counter: Path, made: Trial) -> None:
    deadline = time.monotonic() + PHASE_LIMIT_S
    while not any(counter.read_bytes()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"paced: {made.last_words()}")
        time.sleep(0.01)


def counted(made: Trial) -> int:
    """What its own reader finds, once nothing is added any more (a server may still work through what it was sent)."""
    found = int(made.run("count")["points"])
    while made.peer.needs_server:
        time.sleep(1)
        before, found = found, int(made.run("count")["points"])
        if found == before:
            break
    return found


@functools.cache
def without_network() -> tuple[str, ...]:
    """The words that start a command where there is no network; none where the system does not let us."""
    words = ("unshare", "-rn")
    usable = shutil.which(words[0]) and subprocess.run([*words, "true"], capture_output=True).returncode == 0
    return words if usable else ()


def _peak_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
