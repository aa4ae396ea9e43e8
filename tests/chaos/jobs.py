"""Trainings as their killers see them: a job is one run, logged by one process after the other until the last one ends it.

Owns processes and their journals. What became of the records is ``agreement``'s business.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.chaos.training import STEPS_A_LIFE, Order
from tests.spooling import SOURCE, wait_until

#: Seconds that a training has for starting, or for coming to its end.
PATIENCE_S = 60.0

_PROGRAM = ("-m", "tests.chaos.training")


def environment(**more: str) -> dict[str, str]:
    """What a training is given of this process's environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    paths = os.pathsep.join(str(SOURCE / name) for name in (".", "spool", "sdk", "agent"))
    return {**clean, "PYTHONPATH": paths, "MLFLOW_DISABLE_TELEMETRY": "true", **more}


class Nursery:
    """A context manager; the process that forks trainings (see ``training``)."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Nursery:
        with self._log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, *_PROGRAM],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        assert said == "ready", self._log.read_text()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def bear(self, order: Order) -> int:
        """Start a training; its process id, which is also its group's."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(order.encoded() + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def interpreter(*before: str, **environ: str) -> Callable[[Order], int]:
    """How to start a training in an interpreter of its own: behind another command, or in another environment."""

    def bear(order: Order) -> int:
        command = [*before, sys.executable, *_PROGRAM, order.encoded()]
        with Path(f"{order.journal}.log").open("ab") as sink:
            process = subprocess.Popen(
                command, env=environment(**environ), stdout=sink, stderr=sink, start_new_session=True
            )
        _children.append(process)
        return process.pid

    return bear


_children: list[subprocess.Popen[bytes]] = []


def bury() -> None:
    """Wait for the interpreters that have ended."""
    _children[:] = [child for child in _children if child.poll() is None]


@dataclass(slots=True)
class Life:
    """One process of a job. It is recognised by a descriptor, which no other process can take over as it can a number."""

    order: Order
    pid: int
    descriptor: int

    @property
    def is_alive(self) -> bool:
        return not select.select([self.descriptor], [], [], 0)[0]

    def kill(self, *, group: bool) -> None:
        """SIGKILL to the training alone, or to all its processes at once."""
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        elif self.is_alive:
            os.kill(self.pid, signal.SIGKILL)
        self.await_death()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Between SIGSTOP and SIGCONT: it does nothing meanwhile."""
        os.killpg(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.pid, signal.SIGCONT)

    def await_death(self) -> None:
        assert select.select([self.descriptor], [], [], PATIENCE_S)[0], f"process {self.pid} lives on"
        bury()

    def notes(self) -> list[list[Any]]:
        """What its journal says; of a line that was cut short, nothing."""
        parts = [Path(self.order.journal)]
        while (more := Path(f"{self.order.journal}+{len(parts)}")).exists():
            parts.append(more)
        text = "".join(part.read_text() for part in parts if part.exists())
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def of(self, what: str) -> list[list[Any]]:
        return [fields for name, *fields in self.notes() if name == what]

    @property
    def words(self) -> str:
        """What it printed."""
        path = Path(f"{self.order.journal}.log")
        return path.read_text(errors="replace") if path.exists() else ""


@dataclass(slots=True)
class Job:
    """A training with one run, resumed after each death, or not.

    ``bear`` starts a process; ``order`` is the order of the first life.
    """

    bear: Callable[[Order], int]
    order: Order
    lives: list[Life] = field(default_factory=list)

    @property
    def life(self) -> Life:
        return self.lives[-1]

    @property
    def run_id(self) -> str | None:
        """The run's id, once a process has said it."""
        return next((str(fields[0]) for life in self.lives for fields in life.of("run")), None)

    @property
    def is_alive(self) -> bool:
        return bool(self.lives) and self.life.is_alive

    @property
    def is_finished(self) -> bool:
        return bool(self.lives and self.life.of("end"))

    def start(self, **changed: Any) -> Life:
        """Begin, or go on with the run that a former life has begun."""
        number = len(self.lives)
        journal = f"{self.order.journal}.{number}"
        order = replace(self.order, run_id=self.run_id, life=number, journal=journal, **changed)
        pid = self.bear(replace(order, seed=order.seed + number))
        self.lives.append(Life(order, pid, os.pidfd_open(pid)))
        return self.life

    def await_notes(self, what: str, count: int) -> None:
        """Until the present life has noted so many of a kind."""

        def enough() -> bool:
            notes = self.life.of(what)
            assert len(notes) >= count or self.is_alive, f"it has died: {self.life.words[-2000:]}"
            return len(notes) >= count

        wait_until(enough, f"{count} notes of {what}", PATIENCE_S)

    def finish(self) -> None:
        """Tell it that it has trained enough, and wait for its end."""
        Path(f"{self.life.order.journal}.enough").touch()
        self.life.await_death()

    def notes(self) -> Iterator[list[Any]]:
        for life in self.lives:
            yield from life.notes()

    @property
    def failures(self) -> list[str]:
        """Logging calls that raised."""
        return [str(fields[0]) for life in self.lives for fields in life.of("failed")]

    def close(self) -> None:
        """Whatever still lives of it dies, and is dead."""
        lives, self.lives[:] = list(self.lives), []
        for life in lives:
            # The number of a group that is gone may be another's by now; an orphan keeps its group's.
            if life.is_alive or life.order.helper:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(life.pid, signal.SIGKILL)
            life.await_death()
            os.close(life.descriptor)


def first_step(life: Life) -> int:
    """From this step on, a point is this life's."""
    return life.order.life * STEPS_A_LIFE
