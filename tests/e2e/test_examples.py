"""The scripts of examples/, each run as its first lines say, without a network, and delivered to a real server.

What a script is there to show is looked up on the server.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.servers import MlflowServer, StoredRun, free_port
from tests.spooling import SOURCE, Ferry, wait_until

from mlferry_spool.layout import run_directories

EXAMPLES = SOURCE / "examples"
WITHOUT_NETWORK = ("unshare", "-n")


@dataclass(frozen=True, slots=True)
class Desk:
    """Somebody's desk: a spool, a folder to work in, and the command."""

    ferry: Ferry
    folder: Path
    server: MlflowServer

    def environ(self, **more: str) -> dict[str, str]:
        programs = {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
        return {**self.ferry.env(), **programs, "TMPDIR": str(self.folder), **more}

    def run(self, *words: str, **more: str) -> str:
        """Run to the end, in a network namespace that has not even a loopback; what it printed."""
        command = [*WITHOUT_NETWORK, *words]
        done = subprocess.run(
            command, env=self.environ(**more), cwd=self.folder, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def script(self, name: str, *words: str, **more: str) -> str:
        return self.run(sys.executable, str(EXAMPLES / name), *words, **more)

    def delivered(self, *names: str) -> dict[str, str]:
        """Deliver; the server's ids of the runs of this spool, by the names of runs."""
        done = self.ferry("sync", "--to", self.server.url)
        assert done.returncode == 0, done.stdout + done.stderr
        statuses = self.ferry.statuses("--to", self.server.url).values()
        runs = {status["run_name"]: status["server_run_id"] for status in statuses if status["server_run_id"]}
        assert set(names) <= set(runs)
        return runs

    def stored(self, server_run_id: str) -> StoredRun:
        return self.server.stored(server_run_id)


@pytest.fixture
def desk(tmp_path: Path, mlflow_server: MlflowServer) -> Desk:
    (tmp_path / "work").mkdir()
    return Desk(Ferry(tmp_path / "spool", tmp_path / "state"), tmp_path / "work", mlflow_server)


def last_values(server: MlflowServer, run_id: str) -> dict[str, float]:
    return {
        str(key): float(value)
        for key, value in server.query("SELECT key, value FROM latest_metrics WHERE run_uuid = ?", run_id)
    }


def steps(server: MlflowServer, run_id: str, key: str) -> list[int]:
    return sorted(point.step for point in server.metric_points(run_id) if point.key == key)


def test_code_that_logs_with_mlflow_is_run_as_it_is(desk: Desk) -> None:
    desk.script("mlflow_training.py", MLFLOW_TRACKING_URI="spool:")
    run_id = desk.delivered("logistic regression")["logistic regression"]
    stored = desk.stored(run_id)
    assert (stored.status, stored.params["C"]) == ("FINISHED", "0.5")
    assert last_values(desk.server, run_id)["test accuracy"] > 0.8
    assert desk.server.artifacts(run_id)["notes.txt"] == b"trained without a network"
    [(model, status)] = desk.server.query("SELECT model_id, status FROM logged_models WHERE source_run_id = ?", run_id)
    assert (str(model)[:2], int(status)) == ("m-", 2)


def test_the_first_one_of_the_readme_trains_and_delivers(desk: Desk) -> None:
    desk.script("offline_training.py", "--epochs", "20")
    run_id = desk.delivered("seed 0")["seed 0"]
    assert (desk.stored(run_id).status, desk.stored(run_id).params["epochs"]) == ("FINISHED", "20")
    assert steps(desk.server, run_id, "accuracy") == list(range(20))
    assert "model.pt" in desk.server.artifacts(run_id)


def test_series_and_checkpoints_go_on_in_the_same_run(desk: Desk) -> None:
    told = re.search(r"\(([0-9a-f]{32})\)", desk.script("series_and_checkpoints.py", "--steps", "100"))
    assert told is not None
    desk.script("series_and_checkpoints.py", "--steps", "100", "--run-id", told[1])
    [run_id] = desk.delivered("series").values()
    assert desk.stored(run_id).status == "FINISHED"
    assert steps(desk.server, run_id, "loss") == sorted([*range(100), *range(100)])
    assert "checkpoints/last.pt" in desk.server.artifacts(run_id)


def test_an_example_that_is_run_twice_makes_two_runs(desk: Desk) -> None:
    for _ in range(2):
        desk.script("series_and_checkpoints.py", "--steps", "10")
    statuses = desk.ferry.statuses("--to", desk.server.url).values()
    assert len([status for status in statuses if status["run_name"] == "series"]) == 2


def test_a_requeued_training_without_an_id_is_told_to_name_one(desk: Desk) -> None:
    words = [sys.executable, str(EXAMPLES / "requeued_training.py")]
    environ = {name: value for name, value in desk.environ().items() if name != "MLFERRY_RUN_ID"}
    done = subprocess.run(words, env=environ, cwd=desk.folder, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "MLFERRY_RUN_ID must name the run" in done.stderr) == (2, True)


def test_lightning_logs_by_either_logger(desk: Desk) -> None:
    desk.script("lightning_training.py", MLFLOW_TRACKING_URI="spool:")
    desk.script("lightning_training.py", "--logger", "mlferry")
    runs = desk.delivered("mlflow", "mlferry")
    told = [
        (desk.stored(run_id).status, desk.stored(run_id).params["learning_rate"], steps(desk.server, run_id, "loss"))
        for run_id in (runs["mlflow"], runs["mlferry"])
    ]
    assert told[0] == told[1] == ("FINISHED", "0.1", list(range(3, 32, 4)))


def test_hugging_face_reports_either_way(desk: Desk) -> None:
    desk.script("huggingface_training.py", MLFLOW_TRACKING_URI="spool:")
    desk.script("huggingface_training.py", "--report-to", "mlferry")
    runs = desk.delivered("mlflow", "mlferry")
    for run_id in (runs["mlflow"], runs["mlferry"]):
        assert desk.stored(run_id).status == "FINISHED"
        assert steps(desk.server, run_id, "loss") == [4, 8, 12, 16]


def test_two_ranks_log_into_one_run(desk: Desk) -> None:
    # Ranks meet by a loopback, so this one has a network; it is not asked for by mlferry.
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    script = str(EXAMPLES / "distributed_training.py")
    subprocess.run([*words, script], env=desk.environ(OMP_NUM_THREADS="1"), cwd=desk.folder, timeout=300, check=True)
    runs = desk.delivered("two ranks")
    assert len(runs) == 1
    [run_id] = runs.values()
    assert (desk.stored(run_id).status, desk.stored(run_id).params) == ("FINISHED", {"world size": "2"})
    for key in ("loss", "loss/rank 0", "loss/rank 1"):
        assert steps(desk.server, run_id, key) == list(range(50))


def test_a_training_that_is_killed_and_started_again_is_one_run(desk: Desk) -> None:
    words = [*WITHOUT_NETWORK, sys.executable, str(EXAMPLES / "requeued_training.py"), "--steps", "60"]
    environ = desk.environ(MLFERRY_RUN_ID=f"requeued-{os.urandom(4).hex()}")
    with subprocess.Popen([*words, "--pace-s", "0.05"], env=environ, cwd=desk.folder) as first:
        wait_until(lambda: (desk.folder / "requeued.pt").exists(), "a checkpoint", 60)
        time.sleep(0.5)
        first.send_signal(signal.SIGKILL)
    subprocess.run([*words, "--pace-s", "0"], env=environ, cwd=desk.folder, timeout=60, check=True)
    runs = desk.delivered()
    assert len(runs) == 1
    [run_id] = runs.values()
    assert desk.stored(run_id).status == "FINISHED"
    found = steps(desk.server, run_id, "loss")
    assert sorted(set(found)) == list(range(60))
    assert len(found) <= 61  # the step whose checkpoint a kill cut short is done again


def test_a_sweep_is_a_parent_with_its_children(desk: Desk) -> None:
    desk.script("sweep.py")
    runs = desk.delivered("sweep", "lr 0.4")
    children = {name: run_id for name, run_id in runs.items() if name != "sweep"}
    assert len(children) == 4
    for run_id in children.values():
        stored = desk.stored(run_id)
        assert (stored.status, stored.tags["mlflow.parentRunId"]) == ("FINISHED", runs["sweep"])
    assert desk.stored(runs["sweep"]).params == {"best learning_rate": "0.4"}


@contextmanager
def _commands(folder: Path, ferry: Ferry) -> Iterator[dict[str, str]]:
    """The surroundings in which a shell finds `mlferry`, as an installed one has it."""
    program = folder / "bin" / "mlferry"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m mlferry_agent.main "$@"\n')
    program.chmod(0o755)
    yield {"PATH": os.pathsep.join((str(program.parent), str(Path(sys.executable).parent), os.environ["PATH"]))}


def test_the_way_across_an_air_gap_is_a_script_that_can_be_run_twice(desk: Desk) -> None:
    for turn in ("first", "beside-what-the-first-one-delivered"):
        folder = desk.folder / turn
        folder.mkdir()
        with _commands(folder, desk.ferry) as path:
            done = subprocess.run(
                [str(EXAMPLES / "air_gap.sh"), desk.server.url], env=desk.environ(TMPDIR=str(folder), **path),
                cwd=folder, capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tuesday.tar.zst.receipt.json" in done.stdout
        inside, outside = sorted((path for path in folder.glob("tmp*") if (path / "runs").is_dir()), key=_size)
        assert [len(list(run_directories(side))) for side in (inside, outside)] == [1, 6]


def _size(spool: Path) -> int:
    return len(list(run_directories(spool)))
