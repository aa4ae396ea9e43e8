"""What a scenario works with: a server, a spool and a ledger of its own, trainings, an agent, and the check at the end.

Owns processes and their orderly end, and the watch that nothing is closed that lives. What goes wrong is the scenarios'.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.chaos.agreement import Agreement, agree
from tests.chaos.jobs import Job, Life, Nursery, first_step
from tests.chaos.training import Order
from tests.servers import MlflowServer
from tests.spooling import Ferry, unique, wait_until

#: Seconds that a delivery of what is left may take at the end of a scenario.
_DELIVERY_S = 240.0

#: What the agent says when it has taken its ledger.
_GREETING = ", destination "

CLOSED = frozenset({"FINISHED", "FAILED", "KILLED"})


@dataclass(frozen=True, slots=True)
class Stage:
    """What several scenarios share, since it takes seconds to start."""

    server: MlflowServer
    nursery: Nursery


@dataclass(slots=True)
class Tally:
    """What a scenario did, and what came of it. ``kills`` and ``faults`` are counted by what they befell."""

    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    found: Agreement = field(default_factory=Agreement)
    closed_alive: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.kills.update(other.kills)
        self.faults.update(other.faults)
        self.found.add(other.found)
        self.closed_alive += other.closed_alive


class Trial:
    """One run of one scenario. A context manager: whatever it has started is gone afterwards."""

    def __init__(self, stage: Stage, folder: Path, dice: random.Random) -> None:
        self.stage, self.server, self.dice, self.folder = stage, stage.server, dice, folder
        self.ferry = Ferry(folder / "spool", folder / "state", stage.server.url)
        self.tally = Tally()
        self.jobs: list[Job] = []
        self._begun = 0
        self._agent: subprocess.Popen[bytes] | None = None
        self._vigil = _Vigil(self)

    def __enter__(self) -> Trial:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._vigil.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing of it runs any more."""
        self._vigil.stop()
        self.end_agent()
        for job in self.jobs:
            job.close()

    @contextlib.contextmanager
    def using(self, *, server: MlflowServer | None = None, **changed: Any) -> Iterator[None]:
        """With another server, ``spool``, ``state``, ``to`` or ``environ``; nothing of the trial runs afterwards."""
        if server is not None:
            self.server, changed = server, {"to": server.url, **changed}
        self.ferry = replace(self.ferry, **changed)
        try:
            yield
        finally:
            self.close()

    @property
    def watched(self) -> int:
        """How many lives were seen to run on the server."""
        return len(self._vigil.known)

    # -- trainings ---------------------------------------------------

    def job(
        self,
        kind: str = "sdk",
        *,
        bear: Callable[[Order], int] | None = None,
        experiment: str | None = None,
        **order: Any,
    ) -> Job:
        """A training, started."""
        number = len(self.jobs)
        made = Order(
            kind,
            str(self.ferry.spool),
            experiment or unique(f"chaos {kind}"),
            str(self.folder / f"job-{number}"),
            seed=self.dice.randrange(1 << 32),
            **order,
        )
        job = Job(bear or self.stage.nursery.bear, made)
        job.start()
        self.jobs.append(job)
        return job

    def kill_training(self, job: Job, *, group: bool) -> None:
        job.life.kill(group=group)
        self.tally.kills["training, whole group" if group else "training, one process"] += 1

    def finish(self) -> None:
        """End every training that is alive, in order."""
        for job in self.jobs:
            if job.is_alive:
                job.finish()
        for job in self.jobs:
            job.life.await_death()

    # -- the agent ---------------------------------------------------

    @property
    def agent_log(self) -> Path:
        return self.folder / "agent.log"

    def start_agent(self, *words: str) -> None:
        assert self._agent is None
        log = self.agent_log
        self._begun = log.read_text(errors="replace").count(_GREETING) if log.exists() else 0
        self._agent = self.ferry.start("agent", *words, log=log)

    def await_agent(self) -> None:
        """Until the last agent that was started has taken its ledger and delivers."""
        log = self.agent_log
        wait_until(lambda: log.read_text(errors="replace").count(_GREETING) > self._begun, "the agent begins")

    def kill_agent(self) -> None:
        assert self._agent is not None
        self._agent.kill()
        self._agent.wait()
        self._agent = None
        self.tally.kills["agent"] += 1

    def end_agent(self) -> int | None:
        """SIGTERM; its exit code, None if there is none, or if it had not come to listening for signals."""
        agent, self._agent = self._agent, None
        if agent is None:
            return None
        agent.send_signal(signal.SIGTERM)
        try:
            code = agent.wait(30)
            return None if code == -signal.SIGTERM else code
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
            self.tally.found.apart.append("the agent did not stop within 30 s of SIGTERM")
            return None

    # -- the end ---------------------------------------------------

    def settle(self, *, stated_may: bool = False) -> None:
        """End all trainings, stop the agent, deliver what is left, and compare."""
        self.finish()
        if (code := self.end_agent()) not in (0, None):
            words = self.agent_log.read_text(errors="replace")[-2000:]
            self.tally.found.apart.append(f"the agent ended with {code}: {words}")
        done = self.ferry("sync", "--give-up-after", "60", deadline_s=_DELIVERY_S)
        if done.returncode:
            self.tally.found.apart.append(
                f"mlferry sync: {done.returncode}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
            )
        self.tally.found.add(agree(self.ferry, self.server, self.jobs, stated_may=stated_may))
        self.tally.closed_alive += self._vigil.stop()


class _Vigil:
    """Looks again and again whether the server shows a run as closed whose training lives.

    A training that is resumed finds its run closed, rightly, until the agent has heard of it. So what counts is a run that
    the server has shown as running, with points of this very life, and then as closed while that life goes on.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self.known: set[int] = set()
        self._found: dict[int, str] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="vigil", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[str]:
        """What was found."""
        self._stopping.set()
        self._thread.join(30)
        return list(self._found.values())

    def _watch(self) -> None:
        while not self._stopping.wait(0.15):
            for job in list(self._trial.jobs):
                with contextlib.suppress(sqlite3.Error, OSError):
                    self._look(job, job.life)

    def _look(self, job: Job, life: Life) -> None:
        run_id = job.run_id
        if run_id is None or not life.is_alive:
            return
        rows = self._trial.server.query(_STANDING, first_step(life), run_id)
        if not rows or not life.is_alive:
            return
        [(status, of_this_life), *_] = rows
        if status == "RUNNING" and of_this_life:
            self.known.add(life.pid)
        elif status in CLOSED and life.pid in self.known:
            self._found.setdefault(life.pid, f"run {run_id} was {status} while life {life.order.life} went on")


_STANDING = (
    "SELECT runs.status, EXISTS (SELECT 1 FROM latest_metrics AS m WHERE m.run_uuid = runs.run_uuid AND m.step >= ?)"
    " FROM runs JOIN tags ON runs.run_uuid = tags.run_uuid"
    " WHERE tags.key = 'mlferry.run_id' AND tags.value = ? AND runs.lifecycle_stage = 'active'"
)


def rest(dice: random.Random, longest_s: float) -> None:
    """A pause of random length."""
    time.sleep(dice.random() * longest_s)
