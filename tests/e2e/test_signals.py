"""What signals do to a running agent: SIGHUP has it read its settings anew, SIGTERM ends it whatever it is doing."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from tests import faults
from tests.faults import FaultProxy
from tests.servers import MlflowServer, free_port
from tests.spooling import Ferry, SpooledRun, a_bit_of_everything, unique, wait_for_arrival, wait_until

from mlferry_spool.blobs import Blobs
from mlferry_spool.records import Artifact


@pytest.fixture
def ferry(tmp_path: Path) -> Ferry:
    """Its settings stand in a file, which a test may change while it runs."""
    return Ferry(tmp_path / "spool", tmp_path / "state")


def settings(ferry: Ferry, text: str) -> None:
    file = ferry.state / ".config" / "mlferry" / "agent.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def wait_for_words(log: Path, words: str, deadline_s: float = 30.0) -> None:
    wait_until(lambda: log.exists() and words in log.read_text(), words, deadline_s)


def open_files(pid: int) -> str:
    names = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            names.append(os.readlink(fd))
    return " ".join(names)


def test_an_address_that_is_corrected_is_used_without_a_restart(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("corrected"))
    settings(ferry, f'to = "http://127.0.0.1:{free_port()}"')
    with ferry.agent(log=tmp_path / "log") as agent:
        wait_for_words(tmp_path / "log", "waiting, everything is kept")
        settings(ferry, f'to = "{mlflow_server.url}"')
        agent.send_signal(signal.SIGHUP)
        wait_for_arrival(mlflow_server, run.logged, 20)
        assert agent.poll() is None


@pytest.mark.parametrize(
    "wrong", ["this is no TOML", 'to = "ftp://somewhere"', "polls = 3"], ids=["no toml", "no server", "no such setting"]
)
def test_settings_that_make_no_sense_are_refused_and_the_old_ones_stay(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path, wrong: str
) -> None:
    settings(ferry, f'to = "{mlflow_server.url}"')
    with ferry.agent(log=tmp_path / "log") as agent:
        wait_for_words(tmp_path / "log", "idle")
        settings(ferry, wrong)
        agent.send_signal(signal.SIGHUP)
        wait_for_words(tmp_path / "log", "not reloaded, going on as before: ")
        run = a_bit_of_everything(ferry.spool, unique("as before"))
        wait_for_arrival(mlflow_server, run.logged, 20)
        assert agent.poll() is None


def test_what_is_on_its_way_when_it_reloads_is_sent_again(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("on its way"), files=1)
    with FaultProxy(mlflow_server.port) as proxy:
        settings(ferry, f'to = "{proxy.url}"')
        proxy.add(faults.HANG, method="PUT")
        with ferry.agent(log=tmp_path / "log") as agent:
            wait_until(lambda: proxy.held, "the upload hangs")
            agent.send_signal(signal.SIGHUP)
            wait_for_arrival(mlflow_server, run.logged, 20)


def test_the_hang_up_of_its_terminal_ends_it_in_order(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    ours, theirs = pty.openpty()
    settings(ferry, f'to = "{mlflow_server.url}"')
    command, told = ferry.command("agent"), {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=ferry.env(), stdin=theirs, start_new_session=True, **told) as agent:
        try:
            assert agent.stderr is not None
            assert "destination" in agent.stderr.readline()
            agent.send_signal(signal.SIGHUP)
            assert "everything that is not acknowledged waits" in agent.communicate(timeout=20)[1]
            assert agent.returncode == 0
        finally:
            agent.kill()
            os.close(ours)
            os.close(theirs)


def test_an_agent_that_reads_a_huge_file_stops_at_once(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    """Its digest takes minutes, in a thread that nobody can cancel."""
    run = SpooledRun(ferry.spool, unique("huge"))
    blob = Blobs(run.directory, durable=False).put_bytes(b"")
    size = 256 << 30
    with Blobs(run.directory).path(blob.sha256).open("r+b") as file:
        file.truncate(size)
    assert run.writer.put(Artifact(0, "huge.bin", blob.sha256, size))
    settings(ferry, f'to = "{mlflow_server.url}"')
    with ferry.agent(log=tmp_path / "log") as agent:
        wait_until(lambda: "blobs/" in open_files(agent.pid), "it reads the file")
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=5) == 0
