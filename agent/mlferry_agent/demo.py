"""`mlferry demo`: the main job, with real parts, in one command.

A model is trained without a network, its process group is killed with SIGKILL half-way and started again; then an MLflow
server (SQLite) begins on loopback, the run is delivered, read back and compared. Everything stays in one directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from mlferry_agent.config import Config, load
from mlferry_agent.destinations import statuses
from mlferry_agent.discovery import discover
from mlferry_agent.errors import DemoFailed
from mlferry_agent.ledger import Ledger, ledger_path
from mlferry_agent.status import RunStatus, exit_code
from mlferry_agent.syncing import sync, verify
from mlferry_agent.views.plots import plot
from mlferry_agent.views.progress import progress
from mlferry_agent.views.statuses import show_statuses
from mlferry_agent.views.verifications import show_verifications
from mlferry_spool.codec import decode
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Metrics
from mlferry_spool.tailer import Entry

__all__ = ["run"]

_KILL_AT_STEP = 90
_TRAINING_S, _SERVER_S = 600.0, 120.0


def run(directory: Path, console: Console, *, keep: bool) -> int:
    """Run the demo; returns the exit code of the delivery, or of a verification that found a difference.

    Raises:
        DemoFailed: a part that it needs is not installed, or did not do its part.
    """
    _require("torch", "mlflow", "mlferry")
    directory = directory.resolve()
    _make_anew(directory)
    _train(directory, console)
    with _server(directory) as url:
        console.print(f"\n[bold]3. The network is back:[/] an MLflow server at {url}", highlight=False)
        return _deliver(directory, url, console, keep=keep)


def _require(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise DemoFailed(f"{', '.join(missing)} is missing: pip install 'mlferry[agent,torch,mlflow]'")


def _make_anew(directory: Path) -> None:
    """Only a directory that an earlier demo made is ever removed."""
    mark = directory / "made-by-mlferry-demo"
    if directory.exists() and any(directory.iterdir()) and not mark.exists():
        raise DemoFailed(f"{directory} is not empty and no demo made it; name another with --in")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    mark.touch()


# -- training -----------------------------------------------------------------------------------------------------------


def _train(directory: Path, console: Console) -> None:
    isolated = _isolation()
    network = "no network (unshare -n)" if isolated else "unshare -n is not permitted here, so only the spool is used"
    run_id = uuid.uuid4().hex
    console.print(f"[bold]1. Training offline:[/] {network}", highlight=False)
    process = _start_training(directory, run_id, isolated)
    _wait_for_step(directory, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    console.print(f"   kill -9 of the whole process group at step {_last_step(directory)}", highlight=False)
    console.print("[bold]2. Started again,[/] from its checkpoint, into the same run", highlight=False)
    process = _start_training(directory, run_id, isolated)
    if process.wait(_TRAINING_S) != 0:
        raise DemoFailed(f"the training ended with {process.returncode}; see {directory / 'training.log'}")
    console.print(f"   finished at step {_last_step(directory)}", highlight=False)


def _isolation() -> list[str]:
    """The prefix that takes the network away, if that is permitted."""
    for prefix in (["unshare", "-rn"], ["unshare", "-n"]):
        with contextlib.suppress(OSError):
            if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
                return prefix
    return []


def _start_training(directory: Path, run_id: str, isolated: list[str]) -> subprocess.Popen[bytes]:
    environ = {**os.environ, "MLFERRY_DIR": str(directory / "spool"), "MLFERRY_RUN_ID": run_id, "MLFERRY_QUIET": "1"}
    command = [*isolated, sys.executable, "-m", "mlferry.demo", str(directory / "checkpoint.pt")]
    with (directory / "training.log").open("ab") as log:
        return subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)


def _wait_for_step(directory: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _TRAINING_S
    while _last_step(directory) < _KILL_AT_STEP:
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoFailed(f"the training came to nothing; see {directory / 'training.log'}")
        time.sleep(0.01)


def _losses(directory: Path) -> dict[int, float]:
    """The loss of each step, straight from the spool."""
    losses: dict[int, float] = {}
    for found in discover(directory / "spool"):
        for writer in found.writers():
            reader = LogReader(writer)
            while events := reader.read():
                for event in events:
                    record = decode(event.kind, event.payload) if isinstance(event, Entry) else None
                    if isinstance(record, Metrics) and "loss" in record.values:
                        losses[record.step] = record.values["loss"]
    return losses


def _last_step(directory: Path) -> int:
    return max(_losses(directory), default=-1)


# -- delivery -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(directory: Path) -> Iterator[str]:
    """A real MLflow server on a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = directory / "server"
    where.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{where}/mlflow.db",
        "--artifacts-destination",
        str(where / "artifacts"),
    ]
    with (where / "server.log").open("wb") as log:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environ = {**os.environ, **quiet}  # no jobs here: their runner is seven more processes
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True, cwd=where)
    try:
        _wait_until_healthy(process, f"http://127.0.0.1:{port}", where)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, where: Path) -> None:
    deadline = time.monotonic() + _SERVER_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), opener.open(f"{url}/health", timeout=5):
            return
        time.sleep(0.1)
    raise DemoFailed(f"the MLflow server did not start; see {where / 'server.log'}")


def _deliver(directory: Path, url: str, console: Console, *, keep: bool) -> int:
    config = load({}, {"to": url, "dir": directory / "spool", "state_dir": directory / "state"})
    before = statuses(config, {})
    with progress(console, sum(status.pending for status in before), quiet=False) as meter:
        asyncio.run(sync(config, {}, [], meter.add, lambda: None))
    found = statuses(config, {})
    console.print("\n[bold]4. Delivered:[/]", highlight=False)
    show_statuses(console, found, url)
    verified = asyncio.run(verify(config, {}, []))
    console.print("\n[bold]5. Read back from the server and compared, record by record:[/]", highlight=False)
    show_verifications(console, verified)
    _plot(directory, console)
    _show_url(config, found, console, keep=keep)
    return exit_code(found) or int(any(item.differences for item in verified))


def _plot(directory: Path, console: Console) -> None:
    losses = sorted(_losses(directory).items())
    drawn = plot(losses, "loss", "step", min(console.width - 1, 90), 18, ascii_only=console.options.ascii_only)
    console.print(f"\n{drawn}\n", highlight=False, markup=False, soft_wrap=True)


def _show_url(config: Config, found: list[RunStatus], console: Console, *, keep: bool) -> None:
    experiment = _experiment_id(config)
    for status in found:
        url = f"{config.to}/#/experiments/{experiment}/runs/{status.server_run_id}"
        console.print(f"\nThe run: {url}", highlight=False, soft_wrap=True)
    if keep:
        console.input("The server runs until you press Enter. ")
    else:
        command = "mlferry" if shutil.which("mlferry") else sys.argv[0]
        console.print(
            f"(its server ends with the demo; to look at it: {command} demo --keep)", highlight=False, soft_wrap=True
        )


def _experiment_id(config: Config) -> str:
    ledger = Ledger.read(ledger_path(config.state_dir, str(config.to)))
    assert ledger is not None
    try:
        return next((row.experiment_id or "" for row in ledger.runs()), "")
    finally:
        ledger.close()
