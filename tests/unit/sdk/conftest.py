"""Fixtures of the SDK's tests: a spool of the test's own, and no state of the process left over for the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.spools import told

from mlferry import ending, fluent, values
from mlferry.opening import Experiment
from mlferry.runs import Run

if TYPE_CHECKING:  # torch takes seconds
    from tests.fakes.gpu import Simulation

REPOSITORY = Path(__file__).parents[3]
_FOREIGN = ("MLF", "SLURM", "TORCHELASTIC", "WORLD_SIZE", "RANK", "LOCAL_", "MASTER_")

Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root of an empty spool that this process logs to."""
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        monkeypatch.delenv(name)
    root = tmp_path / "spool"
    monkeypatch.setenv("MLFERRY_DIR", str(root))
    monkeypatch.setenv("MLFERRY_QUIET", "1")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")  # set_experiment sets it for child processes
    monkeypatch.setattr(fluent, "_experiment", Experiment())
    fluent._process.process = None
    yield root
    while fluent.active_run() is not None:
        fluent.end_run()
    for run in ending.open_runs():
        run.end()


@pytest.fixture
def raising(spool: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with every refusal raised."""
    monkeypatch.setenv("MLFERRY_ON_ERROR", "raise")
    return spool


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What a child process gets to log to ``tmp_path / "spool"``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    paths = os.pathsep.join(str(REPOSITORY / root) for root in ("spool", "sdk", "."))
    return {**kept, "PYTHONPATH": paths, "MLFERRY_DIR": str(tmp_path / "spool"), "PYTHONWARNINGS": "error"}


@pytest.fixture
def program(tmp_path: Path, environment: dict[str, str]) -> Program:
    """Runs a program to its end in a process of its own."""

    def run(source: str, **more: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "program.py"
        script.write_text(source)
        command = [sys.executable, str(script)]
        return subprocess.run(
            command, env={**environment, **more}, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
        )

    return run


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """Simulated ones; what has landed is looked for when the test, or an end, looks."""
    yield from _simulation(monkeypatch, threaded=False)


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """The same, with the helper thread."""
    yield from _simulation(monkeypatch, threaded=True)


def _simulation(monkeypatch: pytest.MonkeyPatch, *, threaded: bool) -> Iterator[Simulation]:
    from tests.fakes.gpu import simulated

    import mlferry.devices  # noqa: F401 - registers the real ones, once

    simulation = simulated(threaded=threaded)
    monkeypatch.setattr(values, "_laters", [simulation.tensors])
    yield simulation
    simulation.gpus.work()


def points(root: Path, run: Run) -> list[tuple[str, float, int, int]]:
    """Every point of a run: name, value, step, timestamp."""
    return sorted(told(root, run.info.run_id).points)
