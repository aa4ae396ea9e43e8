"""Who lives and who is dead, with real processes, a real agent and a real server.

A run that lives is never closed, one that is dead always is, and one that was closed wrongly (which only silence on another
machine can bring about) is open again as soon as its writer speaks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.hosts import can_be_elsewhere, elsewhere, rebooted
from tests.late_files import can_be_late, late_files
from tests.servers import MlflowServer
from tests.spooling import (
    Ferry,
    LiveWriter,
    Logged,
    differences,
    live_writer,
    on_server,
    server_runs,
    stored_point,
    unique,
    wait_for_arrival,
    wait_until,
)

from mlferry_spool.layout import new_run_directory

STALE_AFTER_S = 2.0

needs_hosts = pytest.mark.skipif(bool(can_be_elsewhere()), reason=can_be_elsewhere() or "-")


@pytest.fixture
def ferry(tmp_path: Path, mlflow_server: MlflowServer) -> Ferry:
    impatient = {"MLFERRY_STALE_AFTER_S": str(STALE_AFTER_S)}
    (tmp_path / "spool" / "runs").mkdir(parents=True, mode=0o700)
    return Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url, impatient)


@contextmanager
def watched(ferry: Ferry) -> Iterator[Callable[[], None]]:
    """An agent, and what makes it look at everything now instead of within a quarter of a minute."""
    numbers = itertools.count()
    with ferry.agent():
        yield lambda: (ferry.spool / "runs" / f"no run {next(numbers)}").mkdir()


def status_of(server: MlflowServer, logged: Logged) -> str:
    return server.stored(on_server(server, logged.run_id)).status


def await_status(server: MlflowServer, logged: Logged, status: str, look: Callable[[], None]) -> None:
    def holds() -> bool:
        look()
        time.sleep(0.3)
        return status_of(server, logged) == status

    wait_until(holds, f"the run is {status}", 30)


def stays_open(server: MlflowServer, logged: Logged, look: Callable[[], None], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        look()
        assert status_of(server, logged) == "RUNNING"
        time.sleep(0.1)


def await_appearance(server: MlflowServer, live: LiveWriter) -> None:
    live.await_steps(20)
    wait_until(lambda: server_runs(server, live.logged.run_id), "the run appears")
    wait_until(lambda: server.metric_points(on_server(server, live.logged.run_id)), "its points appear")


# -- on the agent's own machine: the lock tells -----------------------------------------------------------------------------


def test_a_process_that_is_stopped_for_long_is_not_dead_and_its_run_is_closed_once_it_is(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    with watched(ferry) as look, live_writer(ferry.spool, unique("stopped")) as live:
        await_appearance(mlflow_server, live)
        live.process.send_signal(signal.SIGSTOP)
        stays_open(mlflow_server, live.logged, look, 2 * STALE_AFTER_S)
        live.process.send_signal(signal.SIGCONT)
        live.await_steps(50)
        live.kill()
        wait_for_arrival(mlflow_server, live.logged)


def test_a_run_is_preempted_and_goes_on_where_it_was(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    program = (
        "import mlferry, os, signal\n"
        "with mlferry.start_run(run_id='4' * 32):\n"
        "    mlferry.log_metric('step', 1.0, step=int(os.environ['ATTEMPT']))\n"
        "    if os.environ['ATTEMPT'] == '1':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    run_id = "4" * 32
    with watched(ferry) as look:
        for attempt, status in (("1", "KILLED"), ("2", "FINISHED")):
            subprocess.run([sys.executable, "-c", program], env={**ferry.env(), "ATTEMPT": attempt}, check=False)
            wait_until(lambda: server_runs(mlflow_server, run_id), "the run appears")
            await_status(mlflow_server, Logged(run_id), status, look)
    assert len(mlflow_server.metric_points(on_server(mlflow_server, run_id))) == 2


_FORKING = """
import os, sys, time
from pathlib import Path
from mlferry_spool import records
from mlferry_spool.writer import Writer
directory, run_id, experiment = sys.argv[1:]
writer = Writer(Path(directory), records.Open(writer_id="w-parent", run_id=run_id, experiment_name=experiment))
writer.append(4, (1, 1, {"parent": 1.0}))
if os.fork():
    time.sleep(600)
writer.append(4, (1, 1, {"child": 1.0}))
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_run_lives_as_long_as_a_child_that_was_forked_from_its_dead_process(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    logged = Logged(uuid.uuid4().hex)
    words = [str(new_run_directory(ferry.spool, logged.run_id, 1)), logged.run_id, unique("forked")]
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKING, *words], env=ferry.env(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with watched(ferry) as look:
            wait_until(lambda: server_runs(mlflow_server, logged.run_id), "the run appears")
            process.kill()
            process.wait()
            stays_open(mlflow_server, logged, look, 2 * STALE_AFTER_S)
            os.kill(child, signal.SIGKILL)
            await_status(mlflow_server, logged, "KILLED", look)
    finally:
        process.kill()
        process.stdout.close()
        with contextlib.suppress(ProcessLookupError):  # it is gone, and somebody has noticed
            os.kill(child, signal.SIGKILL)
        process.stdout.close()
    logged.points.update([stored_point("parent", 1.0, 1, 1), stored_point("child", 1.0, 1, 1)])
    logged.status = "KILLED"
    assert differences(mlflow_server, logged) == []


def reused(pid: int) -> subprocess.Popen[bytes]:
    """A process that has this id, which must be free."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "600"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    pytest.skip("other processes of this machine take every id at once")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses the next process id")
def test_a_run_whose_process_id_is_another_processs_by_now_is_closed(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    with live_writer(ferry.spool, unique("reused")) as live:
        live.await_steps(10)
        live.kill()
        with reused(live.process.pid) as other:
            try:
                assert ferry("sync").returncode == 0
            finally:
                other.kill()
    assert differences(mlflow_server, live.logged) == []


# -- on another machine, or another boot: silence tells -------------------------------------------------------------------


@needs_hosts
def test_what_ran_before_this_machine_was_started_anew_is_dead_at_once(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    with live_writer(ferry.spool, unique("rebooted"), host=rebooted(tmp_path)) as live:
        live.await_steps(10)
        live.kill()
    patient = Ferry(ferry.spool, ferry.state, ferry.to, {"MLFERRY_STALE_AFTER_S": "3600"})
    assert patient("sync").returncode == 0
    assert differences(mlflow_server, live.logged) == []


@needs_hosts
def test_a_run_that_another_host_takes_over_is_never_closed_in_between_and_ends_as_the_last_attempt_does(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    experiment = unique("requeued")
    with (
        watched(ferry) as look,
        live_writer(ferry.spool, experiment, host=elsewhere(tmp_path, "node-a")) as first,
    ):
        await_appearance(mlflow_server, first)
        first.kill()
        host = elsewhere(tmp_path, "node-b")
        with live_writer(ferry.spool, experiment, logged=first.logged, first=10_000, host=host) as second:
            second.await_steps(20)
            for _ in range(4):
                stays_open(mlflow_server, first.logged, look, STALE_AFTER_S / 2)
                second.await_steps(20)
            second.kill(signal.SIGTERM)
            await_status(mlflow_server, first.logged, "FINISHED", look)
            wait_for_arrival(mlflow_server, first.logged)


@needs_hosts
def test_a_run_elsewhere_that_is_silent_for_too_long_is_closed_and_open_again_when_it_speaks(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    host = elsewhere(tmp_path, "node-a")
    with watched(ferry) as look, live_writer(ferry.spool, unique("silent"), host=host) as live:
        await_appearance(mlflow_server, live)
        live.process.send_signal(signal.SIGSTOP)
        await_status(mlflow_server, live.logged, "KILLED", look)
        live.process.send_signal(signal.SIGCONT)
        await_status(mlflow_server, live.logged, "RUNNING", look)
        live.await_steps(20)
        live.kill()
        await_status(mlflow_server, live.logged, "KILLED", look)
        wait_for_arrival(mlflow_server, live.logged)


@needs_hosts
@pytest.mark.skipif(bool(can_be_late()), reason=can_be_late() or "-")
def test_a_run_on_another_host_whose_files_are_seen_late_is_neither_closed_nor_taken_for_damaged(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    source, host = tmp_path / "of the other host", elsewhere(tmp_path, "node-a")
    (source / "runs").mkdir(parents=True, mode=0o700)
    seen = Ferry(tmp_path / "seen late", ferry.state, ferry.to, {"MLFERRY_STALE_AFTER_S": "4"})
    with late_files(source, seen.spool, delay_s=1.0), live_writer(source, unique("late"), host=host) as live:
        live.await_steps(1)
        wait_until(lambda: list(seen.spool.glob("runs/*/*/*.seg")), "its files are seen", 20)
        with seen.agent(log=tmp_path / "log"):
            await_appearance(mlflow_server, live)
            for _ in range(4):
                stays_open(mlflow_server, live.logged, lambda: None, 1.0)
                live.await_steps(20)
        live.kill()
        time.sleep(5)  # it is stale then, and all of it is seen
        assert seen("sync").returncode == 0
        [status] = seen.statuses().values()
    assert differences(mlflow_server, live.logged) == []
    assert (status["lost"], status["troubles"], status["quarantined"]) == (0, [], [])
    assert "damage" not in (tmp_path / "log").read_text()
