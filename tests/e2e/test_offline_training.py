"""The main job: a PyTorch training logs with no network, is killed, goes on, and ends; the server tells one true story.

The training is a real one in a process group of its own, in a network namespace without so much as a loopback. After each
logging call that has returned it notes the call in a file of its own; what that file says must be on the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from tests.servers import MlflowServer, Point
from tests.spooling import Ferry, server_runs, unique, wait_until

_TRAINING = """
import json, os, socket, sys, tempfile, time
from pathlib import Path
import torch
import mlferry

experiment, notes, run_id, first, server_port = sys.argv[1:]
first, enough = int(first), Path(notes + ".enough")
journal = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(what, *fields):
    os.write(journal, (json.dumps([what, *fields]) + "\\n").encode())

class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 4096
    def __getitem__(self, index):
        x = torch.tensor([index / 4096])
        return x, x * x

def main():
    try:
        socket.create_connection(("127.0.0.1", int(server_port)), timeout=2).close()
        note("network", True)
    except OSError:
        note("network", False)
    torch.manual_seed(first)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(Squares(), batch_size=32, shuffle=True, num_workers=1)
    mlferry.set_experiment(experiment)
    with mlferry.start_run(run_id=run_id or None, run_name=None if run_id else "squares") as run:
        note("run", run.info.run_id)
        if not run_id:
            mlferry.log_params({"lr": 0.1, "layers": 2})
            note("param", "lr", "0.1")
        step = first
        while not enough.exists():
            for x, y in loader:
                loss = torch.nn.functional.mse_loss(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                value, time_ms = loss.item(), time.time_ns() // 1_000_000
                mlferry.log_metric("loss", value, step=step, timestamp=time_ms)
                note("metric", "loss", step, time_ms, value)
                mlferry.log_metrics({"grad": float(model[0].weight.grad.norm()), "lr": 0.1}, step=step)
                if step % 50 == 0:
                    with tempfile.TemporaryDirectory() as folder:
                        torch.save(model.state_dict(), Path(folder) / f"step-{step}.pt")
                        content = (Path(folder) / f"step-{step}.pt").read_bytes()
                        mlferry.log_artifact(Path(folder) / f"step-{step}.pt", "checkpoints")
                    note("artifact", f"checkpoints/step-{step}.pt", len(content))
                    mlferry.set_tag("last checkpoint", step)
                    note("tag", "last checkpoint", str(step))
                step += 1
                if enough.exists():
                    break
                time.sleep(0.003)
    note("end")

if __name__ == "__main__":
    main()
"""


@lru_cache(maxsize=1)
def _without_network() -> tuple[str, ...]:
    """What to put before a command so that it has no network; nothing where the machine does not permit it."""
    tried = subprocess.run(["unshare", "-rn", "true"], capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return ("unshare", "-rn")
    print(f"not isolated from the network: {tried.stderr.strip()}")
    return ()


@dataclass(slots=True)
class Training:
    """A training in a process group of its own, and the journal of its calls that returned."""

    process: subprocess.Popen[bytes]
    journal: Path
    log: Path

    def notes(self) -> list[list[Any]]:
        text = self.journal.read_text() if self.journal.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def of(self, what: str) -> list[list[Any]]:
        return [fields for name, *fields in self.notes() if name == what]

    def await_metrics(self, count: int) -> None:
        def enough() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return len(self.of("metric")) >= count

        wait_until(enough, f"{count} points are logged")

    def end(self) -> int:
        """Tell it that it has trained enough; its exit code."""
        Path(f"{self.journal}.enough").touch()
        return self.process.wait(timeout=120)

    def kill_group(self) -> None:
        """SIGKILL training and data loaders at once, as an OOM killer with `memory.oom.group` does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def returned_points(self) -> set[Point]:
        return {Point(key, step, time_ms, value) for key, step, time_ms, value in self.of("metric")}


@contextlib.contextmanager
def training(
    ferry: Ferry, experiment: str, folder: Path, name: str, *, run_id: str = "", first: int = 0, port: int
) -> Iterator[Training]:
    script, journal, log = folder / "train.py", folder / f"{name}.journal", folder / f"{name}.log"
    script.write_text(_TRAINING)
    words = [experiment, str(journal), run_id, str(first), str(port)]
    command = [*_without_network(), sys.executable, str(script), *words]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=ferry.env(), stdout=sink, stderr=sink, start_new_session=True)
    try:
        yield Training(process, journal, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def assert_all_there(server: MlflowServer, server_id: str, train: Training) -> None:
    """Every call that had returned is on the server, each point once."""
    points = server.metric_points(server_id)
    assert len(points) == len(set(points))
    assert train.returned_points() <= set(points)
    stored = server.stored(server_id)
    assert dict(train.of("param")).items() <= stored.params.items()
    assert dict(train.of("tag")).keys() <= stored.tags.keys()
    sizes = {path: len(data) for path, data in server.artifacts(server_id).items()}
    assert dict(train.of("artifact")).items() <= sizes.items()


@pytest.mark.timeout(300)
def test_a_training_that_is_killed_offline_and_goes_on_ends_as_one_whole_run(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)
    experiment = unique("offline training")
    with training(ferry, experiment, tmp_path, "first", port=mlflow_server.port) as first:
        first.await_metrics(200)
        [[run_id]] = first.of("run")
        assert first.of("network") == [[not _without_network()]], "the training could reach the server"

        early = ferry("sync")  # beside the living training
        assert early.returncode in (0, 4), early.stdout + early.stderr  # 4: more has been logged meanwhile
        [(server_id, _)] = server_runs(mlflow_server, run_id)
        assert mlflow_server.stored(server_id).status == "RUNNING"
        assert len(mlflow_server.metric_points(server_id)) >= 3 * 199
        assert first.process.poll() is None

        first.await_metrics(len(first.of("metric")) + 150)
        first.kill_group()
        assert not first.of("end")
    done = ferry("sync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_all_there(mlflow_server, server_id, first)
    logged = {point for point in mlflow_server.metric_points(server_id) if point.key == "loss"}
    assert len(logged - first.returned_points()) <= 1, "at most the call that was interrupted is there besides"
    killed = mlflow_server.stored(server_id)
    assert (killed.status, killed.name) == ("KILLED", "squares")

    port = mlflow_server.port
    with training(ferry, experiment, tmp_path, "second", run_id=run_id, first=1_000_000, port=port) as second:
        second.await_metrics(20)
        ferry("sync")
        assert mlflow_server.stored(server_id).status == "RUNNING"
        assert second.end() == 0, second.log.read_text()
    done = ferry("sync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert server_runs(mlflow_server, run_id) == [(server_id, "active")]
    for part in (first, second):
        assert_all_there(mlflow_server, server_id, part)
    assert second.of("end") and len(second.returned_points()) >= 20
    finished = mlflow_server.stored(server_id)
    assert (finished.status, finished.name, finished.start_time) == ("FINISHED", "squares", killed.start_time)
    assert finished.end_time is not None and finished.end_time > (killed.end_time or 0)


def test_the_agent_closes_a_killed_training_and_never_a_living_one(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)
    with (
        ferry.agent(),
        training(ferry, unique("watched"), tmp_path, "only", port=mlflow_server.port) as train,
    ):
        train.await_metrics(100)
        [[run_id]] = train.of("run")
        wait_until(lambda: server_runs(mlflow_server, run_id), "the run appears while it is trained")
        [(server_id, _)] = server_runs(mlflow_server, run_id)
        seen: set[str] = set()

        def caught_up() -> bool:
            seen.add(mlflow_server.stored(server_id).status)
            return len(mlflow_server.metric_points(server_id)) > 600

        wait_until(caught_up, "its points appear while it is trained")
        assert seen == {"RUNNING"}
        train.kill_group()
        wait_until(lambda: mlflow_server.stored(server_id).status == "KILLED", "it is closed soon after its death", 15)
        assert_all_there(mlflow_server, server_id, train)


def test_the_network_is_really_away_where_it_can_be_taken_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        knock = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2)"
        tried = subprocess.run([*_without_network(), sys.executable, "-c", knock], capture_output=True, check=False)
    assert (tried.returncode == 0) == (not _without_network())
