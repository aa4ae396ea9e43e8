"""Clocks that jump a day back or a month ahead, at the training, at the agent and at the server, while all three work.

What jumps is what a Python program is told by ``time.time`` and ``time.time_ns``, from its first import on: by how much it
is wrong stands in a file, which is read at each call. Monotonic clocks are left alone, as by any change of a real clock.
(libfaketime does the same to any program, but makes ``time.sleep`` of Python 3.11 fail, which sleeps until a moment.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests.chaos.jobs import interpreter
from tests.chaos.trial import Trial
from tests.servers import MlflowServer
from tests.spooling import SOURCE

#: Seconds for which a clock is wrong.
_WRONG_S = 2.0


#: Imported by Python before anything else.
_SITE = """
import time
from pathlib import Path
file, right = Path({file!r}), time.time_ns
time.time_ns = lambda: right() + int(file.read_text()) * 1_000_000_000
time.time = lambda: time.time_ns() / 1e9
"""

_DAY_S = 86_400


def jumps(days: int) -> Callable[[Trial], None]:
    """By so many days."""

    def scenario(trial: Trial) -> None:
        clocks = {side: _Clock(trial.folder / f"clock of the {side}") for side in ("server", "agent", "training")}
        own = MlflowServer(trial.folder / "own", extra_env=clocks["server"].environ)
        with own, trial.using(server=own, environ=clocks["agent"].environ):
            bear = interpreter(**clocks["training"].environ)
            trial.job("sdk", bear=bear, pace_s=0.01)
            trial.job("sdk", bear=bear, pace_s=0.01)
            trial.job("plugin", pace_s=0.01)
            trial.start_agent()
            trial.await_agent()
            for side, clock in clocks.items():
                _live_with(trial, side, clock, days)
            trial.ferry = replace(trial.ferry, environ={})
            trial.settle()

    return scenario


class _Clock:
    """The time of day of one side."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._file = folder / "seconds"
        (folder / "sitecustomize.py").write_text(_SITE.format(file=str(self._file)))
        self.set(0)
        roots = (str(SOURCE / name) for name in (".", "spool", "sdk", "agent"))
        self.environ = {"PYTHONPATH": os.pathsep.join([str(folder), *roots])}

    def set(self, days: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(str(days * _DAY_S))
        new.rename(self._file)


def _live_with(trial: Trial, side: str, clock: _Clock, days: int) -> None:
    """The clock jumps; one training is killed and resumed, another ends and a new one begins; the clock jumps back."""
    for job in trial.jobs:
        if job.is_alive:
            job.await_notes("metrics", 20)
    clock.set(days)
    trial.tally.faults[f"clock of the {side}"] += 1
    time.sleep(_WRONG_S)
    resumed, ended = trial.jobs[0], trial.jobs[-1]
    if (
        side != "training" or days > 0
    ):  # whose clock went back between two lives of a run cannot tell which was the later
        trial.kill_training(resumed, group=True)
        resumed.start()
    ended.finish()
    trial.job("sdk", bear=resumed.bear, pace_s=0.01)
    for job in (resumed, trial.jobs[-1]):
        job.await_notes("metrics", 20)
    if side == "agent":  # one that starts while its clock is wrong
        trial.kill_agent()
        trial.start_agent()
        trial.await_agent()
    time.sleep(_WRONG_S)
    if side == "training":  # it ends while its clock is wrong
        resumed.finish()
    clock.set(0)
    trial.tally.faults[f"clock of the {side}"] += 1
