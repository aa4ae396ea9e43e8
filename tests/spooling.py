"""Spools for tests: written by the real writer, and compared with what a real server holds of them.

Owns the bookkeeping of "what was logged": each call that writes a record also notes what the server must hold of it, by
MLflow's own rules (infinities are clamped, no zero is negative, of a tag the last value counts). It never reads a spool
back, so that a reader's mistake cannot hide itself.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import MlflowServer, Point, point

from mlferry_spool import records
from mlferry_spool.blobs import Blobs
from mlferry_spool.layout import find_run, new_run_directory
from mlferry_spool.writer import Writer

SOURCE = Path(__file__).parents[1]

#: Unix milliseconds that no machine of these tests has now, so that a time that was made up on the way is seen.
T0 = 1_700_000_000_000

_LARGEST = sys.float_info.max
_OURS = ("mlferry.", "mlflow.runName", "mlflow.user", "mlflow.parentRunId")


@dataclass(slots=True)
class Logged:
    """What the server must hold of one run."""

    run_id: str
    points: Counter[Point] = field(default_factory=Counter)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)
    status: str = "RUNNING"


class SpooledRun:
    """One writer's part of a run, written by the real ``Writer``; ``beside`` adds another writer to the same run."""

    def __init__(
        self,
        root: Path,
        experiment: str,
        *,
        logged: Logged | None = None,
        directory: Path | None = None,
        **opening: Any,
    ) -> None:
        self.root, self.experiment = root, experiment
        self.logged = logged or Logged(uuid.uuid4().hex)
        self.directory = directory or new_run_directory(root, self.run_id, T0)
        told = {"start_time": T0, "user": "somebody", "run_name": "a run", "writer_id": f"w-{uuid.uuid4().hex}"}
        self.writer = Writer(
            self.directory, records.Open(run_id=self.run_id, experiment_name=experiment, **{**told, **opening})
        )

    @property
    def run_id(self) -> str:
        return self.logged.run_id

    def beside(self, **opening: Any) -> SpooledRun:
        """Another writer of the same run; ``directory`` may be another one too."""
        directory = opening.pop("directory", self.directory)
        return SpooledRun(self.root, self.experiment, logged=self.logged, directory=directory, **opening)

    def metrics(self, step: int, values: Mapping[str, float], timestamp: int | None = None) -> None:
        time_ms = T0 + abs(step) if timestamp is None else timestamp
        assert self.writer.append(records.Kind.METRICS, (time_ms, step, dict(values)))
        self.logged.points.update(stored_point(key, value, time_ms, step) for key, value in values.items())

    def series(self, series: records.Series) -> None:
        assert self.writer.put(series)
        self.logged.points.update(stored_point(series.key, value, at, step) for value, step, at in series.points())

    def params(self, values: Mapping[str, str]) -> None:
        assert self.writer.put(records.Params(T0, dict(values)))
        self.logged.params.update(values)

    def tags(self, values: Mapping[str, str]) -> None:
        assert self.writer.put(records.Tags(T0, dict(values)))
        self.logged.tags.update(values)

    def delete_tag(self, key: str) -> None:
        assert self.writer.put(records.TagsDeleted(T0, (key,)))
        self.logged.tags.pop(key, None)

    def artifact(self, path: str, data: bytes) -> Path:
        """Log a file; returns where its bytes are in the spool."""
        blobs = Blobs(self.directory, durable=False)
        blob = blobs.put_bytes(data)
        assert self.writer.put(records.Artifact(T0, path, blob.sha256, blob.size))
        self.logged.artifacts[path] = data
        return blobs.path(blob.sha256)

    def dataset(self, dataset: records.Dataset) -> None:
        assert self.writer.put(records.Inputs(T0, (dataset,)))
        self.logged.datasets.add(dataset.name)

    def end(self, status: str = "FINISHED", end_time: int | None = None) -> None:
        assert self.writer.close(records.RunEnd(T0 + 10**6 if end_time is None else end_time, status))
        self.logged.status = status


def a_bit_of_everything(
    root: Path, experiment: str, *, points: int = 300, files: int = 3, **opening: Any
) -> SpooledRun:
    """A finished run with records of each common kind."""
    run = SpooledRun(root, experiment, **opening)
    run.params({f"param {number}": str(number) for number in range(5)})
    run.tags({"first": "1", "second": "2"})
    for step in range(points):
        run.metrics(step, {"loss": 1 / (step + 1)})
    run.tags({"first": "changed"})
    run.delete_tag("second")
    for number in range(files):
        run.artifact(f"folder/{number}.bin", os.urandom(2_000))
    run.dataset(records.Dataset("rows", "d1", "local", '{"uri": "/nowhere"}', tags={"mlflow.data.context": "training"}))
    run.end()
    return run


# -- what the server has ---------------------------------------------------


def stored_point(key: str, value: float, timestamp: int, step: int) -> Point:
    """The point that MLflow's documented rules make of what was logged."""
    clamped = math.copysign(_LARGEST, value) if math.isinf(value) else value
    return point(key, clamped + 0.0, timestamp, step)


def server_runs(server: MlflowServer, run_id: str) -> list[tuple[str, str]]:
    """(server id, lifecycle stage) of every run that carries this offline id, deleted ones included."""
    sql = (
        "SELECT runs.run_uuid, runs.lifecycle_stage FROM runs JOIN tags ON runs.run_uuid = tags.run_uuid"
        " WHERE tags.key = 'mlferry.run_id' AND tags.value = ? ORDER BY runs.rowid"
    )
    return [(str(found), str(stage)) for found, stage in server.query(sql, run_id)]


def on_server(server: MlflowServer, run: SpooledRun | str) -> str:
    """The server's id of the one run that was made for a spooled one."""
    run_id = run if isinstance(run, str) else run.run_id
    [(found, _stage)] = server_runs(server, run_id)
    return found


def differences(server: MlflowServer, logged: Logged, *, removed: int = 0) -> list[str]:
    """Everything in which the server's run is not what was logged; an empty list is the proof.

    ``removed``: how many deleted runs there must be besides, which a create that was carried out too late has left.
    """
    found = server_runs(server, logged.run_id)
    standing = [server_id for server_id, stage in found if stage == "active"] if removed else [row[0] for row in found]
    if len(standing) != 1 or len(found) != 1 + removed:
        return [f"{len(found)} runs: {found}"]
    [server_id] = standing
    stored = server.stored(server_id)
    tags = {key: value for key, value in stored.tags.items() if not key.startswith(_OURS) or key in logged.tags}
    told = list(_points_apart(Counter(stored.metrics), logged.points))
    told += _apart("param", stored.params, logged.params)
    told += _apart("tag", tags, logged.tags)
    told += _apart("artifact", server.artifacts(server_id), logged.artifacts)
    names = {row[0] for row in server.query(_DATASETS, server_id)}
    told += [] if names == logged.datasets else [f"datasets {names} instead of {logged.datasets}"]
    told += [] if stored.status == logged.status else [f"status {stored.status} instead of {logged.status}"]
    return told + ([] if stored.lifecycle_stage == "active" else [f"the run is {stored.lifecycle_stage}"])


_DATASETS = (
    "SELECT datasets.name FROM inputs JOIN datasets ON inputs.source_id = datasets.dataset_uuid"
    " WHERE inputs.destination_id = ?"
)


def _points_apart(stored: Counter[Point], logged: Counter[Point]) -> Iterator[str]:
    expected = Counter(dict.fromkeys(logged, 1))  # MLflow keeps equal points once, online as well
    for word, apart in (("missing", expected - stored), ("too many", stored - expected)):
        if apart:
            yield f"{sum(apart.values())} points {word}, such as {next(iter(apart))}"


def _apart(what: str, stored: Mapping[str, Any], logged: Mapping[str, Any]) -> list[str]:
    names = sorted(name for name in {*stored, *logged} if stored.get(name) != logged.get(name))
    return [f"{what} {name!r}: {_short(stored.get(name))} instead of {_short(logged.get(name))}" for name in names]


def _short(value: object) -> str:
    return repr(value)[:80]


# -- the command ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ferry:
    """The `mlferry` command on one spool and one state directory, away from this machine's own configuration.

    ``before``: a command that executes it, in other surroundings.
    """

    spool: Path
    state: Path
    to: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()

    def env(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
        told = {"HOME": str(self.state), "MLFERRY_DIR": str(self.spool), "MLFERRY_STATE_DIR": str(self.state)}
        paths = os.pathsep.join(str(SOURCE / name) for name in ("spool", "sdk", "agent"))
        to = {} if self.to is None else {"MLFERRY_TO": self.to}
        return {**clean, **told, **to, "PYTHONPATH": paths, "COLUMNS": "200", **self.environ}

    def command(self, *words: str) -> list[str]:
        return [*self.before, sys.executable, "-m", "mlferry_agent.main", *words]

    def __call__(self, *words: str, deadline_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            self.command(*words), env=self.env(), capture_output=True, text=True, timeout=deadline_s, check=False
        )

    def statuses(self, *words: str) -> dict[str, dict[str, Any]]:
        """What `mlferry status --json` says, by run id."""
        found: list[dict[str, Any]] = json.loads(self("status", "--json", *words).stdout)
        return {status["run_id"]: status for status in found}

    def start(self, *words: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own; its words go to ``log``."""
        self.state.mkdir(parents=True, exist_ok=True)
        with (log or Path(os.devnull)).open("ab") as sink:
            return subprocess.Popen(
                self.command(*words),
                env=self.env(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )

    @contextmanager
    def agent(self, *words: str, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A running `mlferry agent`, killed at the end if it still runs."""
        process = self.start("agent", *words, log=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for_arrival(server: MlflowServer, logged: Logged, deadline_s: float = 60.0) -> None:
    """Return as soon as the server's run is what was logged; fail, and say in what it differs, when it never is."""
    end = time.monotonic() + deadline_s
    while found := differences(server, logged):
        assert time.monotonic() < end, f"after {deadline_s:g} s still apart: {found}"
        time.sleep(0.2)


def wait_until(holds: Callable[[], Any], what: str, deadline_s: float = 60.0) -> Any:
    """Return what ``holds`` says as soon as it is true; fail when it never is."""
    end = time.monotonic() + deadline_s
    while not (found := holds()):
        assert time.monotonic() < end, f"in {deadline_s:g} s it never came to pass: {what}"
        time.sleep(0.05)
    return found


# -- writers in processes of their own ---------------------------------------------------

#: Logs a metric every few milliseconds until it is killed, or told by SIGTERM to finish, and says which calls returned.
_LIVE = """
import signal, sys, time
from pathlib import Path
from mlferry_spool import records
from mlferry_spool.writer import Writer
directory, run_id, experiment, role, first = sys.argv[1:]
name, time_ms = f"live-{role}-{first}", 1_700_000_000_000
opening = records.Open(writer_id=name, run_id=run_id, experiment_name=experiment, role=role, start_time=time_ms)
writer = Writer(Path(directory), opening)
step, told = int(first), []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
while not told:
    assert writer.append(4, (time_ms + step, step, {"loss": float(step)}))
    print(step, flush=True)
    step += 1
    time.sleep(0.004)
assert writer.close(records.RunEnd(time.time_ns() // 1_000_000, "FINISHED"))
"""


@dataclass(slots=True)
class LiveWriter:
    """A process that logs points to a run until it is killed."""

    process: subprocess.Popen[str]
    logged: Logged
    steps: int = 0

    def await_steps(self, count: int) -> None:
        """Until so many more calls have returned."""
        assert self.process.stdout is not None
        for _ in range(count):
            self._note(self.process.stdout.readline())

    def kill(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL, or SIGTERM to let it finish in order; and note every call that had returned by then."""
        self.process.send_signal(number)
        self.process.wait()
        self.logged.status = "KILLED" if number == signal.SIGKILL else "FINISHED"
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._note(line)

    def _note(self, line: str) -> None:
        if line.endswith("\n"):
            step = int(line)
            self.logged.points[stored_point("loss", float(step), T0 + step, step)] += 1
            self.steps += 1


@contextmanager
def live_writer(
    root: Path,
    experiment: str,
    *,
    role: str = "primary",
    first: int = 0,
    logged: Logged | None = None,
    host: Sequence[str] = (),
) -> Iterator[LiveWriter]:
    """A run that is being logged by another process; killed at the end if it still lives.

    Args:
        logged: of a run that goes on.
        host: what stands before its command, to have it run on another machine (see ``hosts``).
    """
    logged = logged or Logged(uuid.uuid4().hex)
    directory = find_run(root, logged.run_id) or new_run_directory(root, logged.run_id, T0)
    words: Sequence[str] = (str(directory), logged.run_id, experiment, role, str(first))
    environ = {**os.environ, "PYTHONPATH": str(SOURCE / "spool")}
    process = subprocess.Popen(
        [*host, sys.executable, "-c", _LIVE, *words],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield LiveWriter(process, logged)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def unique(name: str) -> str:
    """A name for an experiment that no other test of a shared server has."""
    return f"{name} {uuid.uuid4().hex[:8]}"
