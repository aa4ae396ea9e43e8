"""What a new run is called, where it lies and whose attempt it is. Owns the process's ordinals; opens no file but listings.

A run's id comes from the caller, else ``MLFERRY_RUN_ID`` (a launcher's choice, shared by its processes), else
``MLFLOW_RUN_ID`` (an existing run, taken once, as MLflow takes it), else the launch (``mlferry.launch``), else chance.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from mlferry.errors import BadExperiment
from mlferry.launch import Launch, derive_run_id, detect
from mlferry.validation import check_experiment_name, check_run_id, readable
from mlferry_spool.layout import find_run, new_run_directory

__all__ = ["Experiment", "Identity", "Process", "launcher", "locate", "resolve_experiment"]


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment by its name, by the server's id, or by neither (the server's default one)."""

    name: str | None = None
    experiment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """A run's id and what it means.

    Attributes:
        resumed: the run exists already, here or on the server.
        shared: other processes of the launch may open the same run.
    """

    run_id: str
    resumed: bool
    shared: bool
    rank: int | None
    attempt: str


class Process:
    """What one process must remember to name its runs: how many it has started, and how often each was opened."""

    def __init__(self, environ: MutableMapping[str, str], launch: Launch) -> None:
        self._environ = environ
        self.launch = launch
        self._unique = os.urandom(6).hex()
        self._started: Counter[str | None] = Counter()
        self._opened: Counter[str] = Counter()

    @classmethod
    def this(cls, *, forked: bool = False) -> Process:
        """The running process, as its environment describes it now.

        ``forked``: the environment describes the process it was forked from. What it starts itself are runs of its own.
        """
        return cls(os.environ, Launch() if forked else detect(os.environ, launcher()))

    @property
    def undecided(self) -> bool:
        """There are other ranks, but nothing says for sure that they belong to this launch; see ``mlferry.launch``."""
        return self.launch.world > 1 and self.launch.job is None and not self._environ.get("MLFERRY_RUN_ID")

    def identify(self, run_id: str | None, parent_run_id: str | None) -> Identity:
        """The identity of the run that is about to open. Raises BadRunId."""
        chosen, resumed, shared = self._choose(run_id, parent_run_id)
        check_run_id(chosen)
        opened = self._opened[chosen]
        self._opened[chosen] += 1
        origin = self.launch.attempt if shared else self._unique
        return Identity(chosen, resumed or opened > 0, shared, self.launch.rank, f"{origin}.{opened}")

    def _choose(self, run_id: str | None, parent_run_id: str | None) -> tuple[str, bool, bool]:
        several, job = self.launch.world > 1, self.launch.job
        if run_id is not None:
            return run_id, True, several
        given = self._environ.get("MLFERRY_RUN_ID")
        if not given and not parent_run_id and (existing := self._environ.pop("MLFLOW_RUN_ID", None)):
            return existing, True, several
        ordinal = self._started[parent_run_id]
        self._started[parent_run_id] += 1
        if given and (ordinal or parent_run_id):
            return derive_run_id(f"run/{given}", parent_run_id, ordinal), False, True
        if given:
            return given, False, True
        if job is not None:
            return derive_run_id(job, parent_run_id, ordinal), self.launch.attempt.strip("0.") != "", True
        return os.urandom(16).hex(), False, False


def locate(root: Path, identity: Identity, start_time: int) -> Path:
    """The directory of the run: the one that this spool has, else a new one."""
    held = find_run(root, identity.run_id) if identity.resumed or identity.shared else None
    return held or new_run_directory(root, identity.run_id, start_time)


def resolve_experiment(
    environ: MutableMapping[str, str], name: str | None, experiment_id: str | int | None, active: Experiment
) -> Experiment:
    """The experiment for a new run: the given one, the active one, ``MLFLOW_EXPERIMENT_NAME``, ``MLFLOW_EXPERIMENT_ID``.

    Raises:
        BadExperiment: both are given, or the name is none.
    """
    if name is not None and experiment_id is not None:
        raise BadExperiment("both a name and an id are given")
    if name is not None:
        return Experiment(name=check_experiment_name(name))
    if experiment_id is not None:
        return Experiment(experiment_id=readable(experiment_id))
    if active != Experiment():
        return active
    if environ.get("MLFLOW_EXPERIMENT_NAME"):
        return Experiment(name=readable(environ["MLFLOW_EXPERIMENT_NAME"]))
    return Experiment(experiment_id=readable(environ.get("MLFLOW_EXPERIMENT_ID", "")) or None)


def launcher() -> str:
    """Names the process that started this one: boot, pid and start time, so that a reused pid is another launcher."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot}/{os.getppid()}/{started}"
