"""The two performances of a script: online against one server, and offline through a spool that is delivered to another.

Both are given the same working folder (emptied in between), script path and environment, so that whatever differs on the
servers afterwards differs because of the way it took.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import psutil
from tests.oracle import differences, normalise, snapshot
from tests.oracle.normalise import Flat, Window
from tests.servers import MlflowServer
from tests.spooling import SOURCE, Ferry

SCRIPTS = Path(__file__).parent / "scripts"
_DEADLINE_S = 240

#: What MLflow's client says of a server's pages when a run ends.
_ONLINE_WORDS = ("🏃 View run", "🧪 View experiment")


@lru_cache(maxsize=1)
def without_network() -> tuple[str, ...]:
    """What to put before a command so that it has no network; nothing where the machine does not permit it."""
    tried = subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False)
    # torchrun and gloo need a loopback interface, which is down in a new network namespace.
    up = 'ip link set lo up 2>/dev/null; exec "$@"'
    return ("unshare", "-rn", "sh", "-c", up, "sh") if tried.returncode == 0 else ()


@dataclass(frozen=True, slots=True)
class Performance:
    """One execution of a script: its exit code, its words, and when it was."""

    code: int
    words: str
    window: Window

    def last_line(self) -> str:
        """The error that it ended in, its last line; empty where it ended well."""
        if not self.code:
            return ""
        said = [line for line in self.words.splitlines() if line.strip() and not line.startswith(_ONLINE_WORDS)]
        return said[-1] if said else ""


@dataclass(slots=True)
class Stage:
    """Two servers, and a folder for spools and for the script to work in."""

    online: MlflowServer
    target: MlflowServer
    folder: Path
    seen: set[str] = field(default_factory=lambda: {"Default"})
    #: What executes a script, which is added as the next word.
    python: tuple[str, ...] = (sys.executable,)

    def perform_online(self, script: str, *words: str, on: MlflowServer | None = None, title: str = "") -> Performance:
        """Execute ``scripts/<script>.py`` against the online server."""
        return self._perform([], (on or self.online).url, script, title or script, words)

    def perform_offline(self, script: str, *words: str, title: str = "") -> Performance:
        """Execute it without a network, logging to a spool of its own; nothing is delivered yet."""
        return self._perform(
            without_network(), f"spool://{self.spool(title or script)}", script, title or script, words
        )

    def kill_offline(
        self, script: str, *words: str, title: str, seed: int, whole: str = ""
    ) -> tuple[Performance, float]:
        """Execute offline, and SIGKILL all of its processes once its spool has grown to a random share of the whole one's.

        The whole one is the spool that ``perform_offline`` left under the title ``whole``, else under the script's own name.
        Returns that share too.
        """
        share = random.Random(seed).uniform(0.05, 0.95)
        enough = share * _size(self.spool(whole or script))
        spool, start = self.spool(title), _now()
        with self._started(without_network(), f"spool://{spool}", script, title, words) as (process, log):
            while _size(spool) < enough and process.poll() is None and _now() - start < _DEADLINE_S * 1000:
                time.sleep(0.002)
            _kill_all(process)
        return Performance(process.returncode, log.read_text(errors="replace"), Window(start, _now())), share

    def deliver(self, title: str) -> subprocess.CompletedProcess[str]:
        """Carry the spool of ``title`` to the second server."""
        return self.ferry(title)("sync", "--quiet")

    def ferry(self, title: str) -> Ferry:
        """The `mlferry` command on the spool of ``title``, for the second server."""
        return Ferry(self.spool(title), self.folder / "state" / title, self.target.url)

    def spool(self, title: str) -> Path:
        """Where the offline execution under this title logs to."""
        return self.folder / "spools" / title

    def held(self, server: MlflowServer, performance: Performance) -> Flat:
        """What this server holds of the script that was executed last."""
        return normalise.flat(snapshot.take(server.url, but=self.seen), performance.window, server=server.url)

    def spooled(self, title: str, performance: Performance) -> Flat:
        """What this title's spool holds, read through MLflow as its own store."""
        return normalise.flat(snapshot.take(f"spool://{self.spool(title)}", but={"Default"}), performance.window)

    def forget(self) -> None:
        """Leave all that the servers hold now out of the next comparison."""
        for server in (self.online, self.target):
            self.seen |= snapshot.take(server.url, but=self.seen).names()

    def differences(self, script: str, *words: str) -> list[str]:
        """The whole oracle on one script: both executions, delivery, comparison of both servers."""
        title = "-".join((script, *words))
        online = self.perform_online(script, *words, title=title)
        offline = self.perform_offline(script, *words, title=title)
        assert (offline.code, offline.last_line()) == (online.code, online.last_line()), online.words + offline.words
        delivered = self.deliver(title)
        assert delivered.returncode == 0, delivered.stdout + delivered.stderr
        expected, found = self.held(self.online, online), self.held(self.target, offline)
        assert expected["experiments/count"], f"{script} logged nothing online:\n{online.words}"
        self.forget()
        return differences.between(expected, found, differences.allowed())

    def _perform(
        self, before: tuple[str, ...] | list[str], uri: str, script: str, title: str, words: tuple[str, ...]
    ) -> Performance:
        start = _now()
        with self._started(before, uri, script, title, words) as (process, log):
            code = process.wait(timeout=_DEADLINE_S)
        return Performance(code, log.read_text(errors="replace"), Window(start, _now()))

    @contextlib.contextmanager
    def _started(
        self, before: tuple[str, ...] | list[str], uri: str, script: str, title: str, words: tuple[str, ...]
    ) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        work, log = self.folder / "work", self.folder / f"{title}.log"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        command = [*before, *self.python, str(SCRIPTS / f"{script}.py"), *words]
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command, cwd=work, env=_environ(uri, title), stdout=sink, stderr=sink, start_new_session=True
            )
        try:
            yield process, log
        finally:
            _kill_all(process)


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL it and all that it started: torchrun gives each rank a session, so that its own group is not enough."""
    with contextlib.suppress(psutil.NoSuchProcess):
        ranks = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.kill()
        psutil.wait_procs(ranks, timeout=10)
    process.wait()


def _environ(uri: str, title: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    equal = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    paths = os.pathsep.join(str(SOURCE / name) for name in ("spool", "sdk"))
    told = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": f"oracle {title}", "PYTHONPATH": paths}
    return {**clean, **quiet, **equal, **told}


def _now() -> int:
    return time.time_ns() // 1_000_000


def _size(spool: Path) -> int:
    """Bytes of the logs of all runs (not of their files) in a spool."""
    return sum(path.stat().st_size for path in spool.glob("runs/*/*/*.seg"))
