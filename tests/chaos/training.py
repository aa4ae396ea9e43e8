"""The trainings that are killed: they log by mlferry's own functions or by MLflow on ``spool:``, until told to stop.

Owns the program, and the journal in which it notes each call after it has returned: what the journal says must reach the
server, or be stated as dropped. Executed as a module it is a nursery: it imports once what takes seconds to import, and
forks a training for each order that it reads, so that a thousand of them can be killed in minutes. With an order as its
argument it is one training, in an interpreter of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Steps of one life begin here, so that no two lives of a run log the same point.
STEPS_A_LIFE = 1_000_000

_STANDARD_ERROR = 2


@dataclass(frozen=True, slots=True)
class Order:
    """One life of a training.

    Attributes:
        kind: ``sdk`` or ``plugin``.
        run_id: the run to go on with; None begins a new one.
        journal: what calls have returned; beside it ``.log`` is what the process printed, and ``.enough``, once it is
            there, ends the training.
        helper: it forks a second process, which logs to the same run and dies when its parent has died.
        file_limit: bytes that no file of the process may exceed (RLIMIT_FSIZE).
        artifact_bytes: size of every 40th step's file.
        source: a file to log each time instead.
    """

    kind: str
    spool: str
    experiment: str
    journal: str
    run_id: str | None = None
    life: int = 0
    seed: int = 0
    helper: bool = False
    pace_s: float = 0.004
    file_limit: int | None = None
    artifact_bytes: int = 3_000
    source: str | None = None

    def encoded(self) -> str:
        return json.dumps(asdict(self))


class _Journal:
    """Appends lines that other processes read while they grow; the file lies outside any disk that fails.

    ``limit``: bytes after which it goes on in another file, since it is subject to the process's own limit as well.
    """

    def __init__(self, path: str, limit: int | None = None) -> None:
        self._path, self._limit, self._part, self._size = path, limit, 0, 0
        self._fd = self._open(path)

    def note(self, what: str, *fields: Any) -> None:
        line = (json.dumps([what, *fields]) + "\n").encode()
        if self._limit is not None and self._size + len(line) > self._limit:
            os.close(self._fd)
            self._part, self._size = self._part + 1, 0
            self._fd = self._open(f"{self._path}+{self._part}")
        self._size += os.write(self._fd, line)

    def _open(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _library(kind: str, spool: str) -> Any:
    """The module that the training logs by: both have the same functions."""
    if kind == "sdk":
        os.environ.update(MLFERRY_DIR=spool, MLFERRY_QUIET="true")
        return importlib.import_module("mlferry")
    mlflow = importlib.import_module("mlflow")
    mlflow.set_tracking_uri(f"spool://{spool}")
    return mlflow


def train(order: Order) -> None:
    """One life, from start to end, or to wherever it is killed."""
    journal = _Journal(order.journal, order.file_limit)
    try:
        if order.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order.file_limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        _train(order, journal, Path(f"{order.journal}.enough"))
    except BaseException:
        journal.note("failed", traceback.format_exc())
        raise
    journal.note("end")


def _train(order: Order, journal: _Journal, enough: Path) -> None:
    log, dice = _library(order.kind, order.spool), random.Random(order.seed)
    log.set_experiment(order.experiment)
    run = log.start_run(run_id=order.run_id)
    journal.note("run", run.info.run_id)
    if order.run_id is None:
        params = {"lr": str(dice.random()), "layers": "2"}
        log.log_params(params)
        journal.note("params", params)
    helper = _fork_helper(log, run.info.run_id, order, enough) if order.helper else None
    step = order.life * STEPS_A_LIFE
    while not enough.exists():
        _log_step(log, journal, dice, order, step)
        step += 1
        time.sleep(order.pace_s * dice.random() * 2)
    if helper is not None:
        os.waitpid(helper, 0)
    log.end_run()


def _log_step(log: Any, journal: _Journal, dice: random.Random, order: Order, step: int) -> None:
    time_ms, loss = time.time_ns() // 1_000_000, dice.random()
    log.log_metric("loss", loss, step=step, timestamp=time_ms)
    journal.note("metrics", step, time_ms, {"loss": loss})
    if step % 5 == 0:
        values = {"grad": dice.gauss(0, 1), "lr": dice.random()}
        log.log_metrics(values, step=step, timestamp=time_ms)
        journal.note("metrics", step, time_ms, values)
    if step % 20 == 0:
        key = f"last twenty of life {order.life}"
        log.set_tag(key, str(step))
        journal.note("tag", key, str(step))
    if step % 40 == 0:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"step-{step}.bin")
            if order.source is None:
                file.write_bytes(dice.randbytes(order.artifact_bytes))
            else:
                file.symlink_to(order.source)
            log.log_artifact(str(file), "checkpoints")
            journal.note("artifact", f"checkpoints/{file.name}", hashlib.sha256(file.read_bytes()).hexdigest())


def _fork_helper(log: Any, run_id: str, order: Order, enough: Path) -> int:
    """A process such as a data loader's, which logs, too. MLflow has no active run in a forked process, and is told."""
    parent, pid = os.getpid(), os.fork()
    if pid:
        return pid
    journal, step = _Journal(order.journal), order.life * STEPS_A_LIFE
    told = {"run_id": run_id} if order.kind == "plugin" else {}
    try:
        while os.getppid() == parent and not enough.exists():
            time_ms = time.time_ns() // 1_000_000
            log.log_metric("helper", float(step), step=step, timestamp=time_ms, **told)
            journal.note("metrics", step, time_ms, {"helper": float(step)})
            step += 1
            time.sleep(order.pace_s * 3)
    except BaseException:
        journal.note("failed", traceback.format_exc())
    os._exit(0)


# -- the nursery ---------------------------------------------------


def _used_modules(kind: str) -> list[str]:
    """What a training of this kind imports, found out by a child that is one."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "journal.enough").touch()
            train(Order(kind, f"{folder}/spool", "to see what it imports", f"{folder}/journal"))
            os.write(writing, json.dumps(sorted(sys.modules)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        return [str(name) for name in json.load(answer)]


def _nursery() -> None:
    for kind in ("plugin", "sdk"):
        for name in _used_modules(kind):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the dead
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _be_born(Order(**json.loads(line)))
        print(pid, flush=True)


def _be_born(order: Order) -> None:
    """In the child: a process group of its own, and nothing of the nursery's but its modules."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        log = os.open(f"{order.journal}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, _STANDARD_ERROR)):
            os.dup2(source, target)
        train(order)
        status = 0
    finally:
        os._exit(status)


def main(arguments: Mapping[int, str]) -> None:
    """One training by the order that is given, or a nursery."""
    if 1 in arguments:
        train(Order(**json.loads(arguments[1])))
    else:
        _nursery()


if __name__ == "__main__":
    main(dict(enumerate(sys.argv)))
