"""What examples/kubernetes/sidecar.yaml has its containers do, done here: the same words and settings, other places."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.hosts import can_be_elsewhere
from tests.servers import MlflowServer, free_port
from tests.spooling import SOURCE, Ferry, live_writer, on_server, server_runs, unique, wait_for_arrival, wait_until

TRAIN = """
import mlferry
with mlferry.start_run():
    for step in range(500):
        mlferry.log_metric("loss", 1 / (step + 1), step=step)
    mlferry.log_text("done", "notes.txt")
"""


def here(container: dict[str, Any], root: Path, **others: str) -> dict[str, str]:
    """A container's environment, with its volumes below a folder of this machine."""
    told = {item["name"]: str(item["value"]) for item in container["env"] if "value" in item}
    places = [mount["mountPath"] for mount in container["volumeMounts"]]
    placed = {name: f"{root}{value}" if value in places else value for name, value in told.items()}
    assert others.keys() <= placed.keys() | {"MLFERRY_RUN_ID", "MLFLOW_EXPERIMENT_NAME"}
    return {**placed, **others}


def test_a_job_with_the_agent_beside_it_has_arrived_when_the_hook_before_the_end_comes_back(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    pod = yaml.safe_load((SOURCE / "examples/kubernetes/sidecar.yaml").read_text())["spec"]["template"]["spec"]
    [beside], [train] = pod["initContainers"], pod["containers"]
    for volume in pod["volumes"]:
        (tmp_path / volume["name"]).mkdir()
    port = free_port()
    told = here(beside, tmp_path, MLFERRY_TO=mlflow_server.url, MLFERRY_HTTP=f"127.0.0.1:{port}")
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", environ=told)
    probe = f"http://127.0.0.1:{port}{beside['livenessProbe']['httpGet']['path']}"
    run_id = unique("uid").replace(" ", "-")
    with ferry.agent(*beside["args"][1:], log=tmp_path / "log"):
        wait_until(lambda: _is_well(probe), "the startup probe succeeds", 120)
        environ = here(train, tmp_path, MLFERRY_RUN_ID=run_id, MLFLOW_EXPERIMENT_NAME=unique("pod"))
        paths = ferry.env()["PYTHONPATH"]
        subprocess.run([sys.executable, "-c", TRAIN], env={"PYTHONPATH": paths, **environ}, check=True, timeout=120)
        before = ferry(*beside["lifecycle"]["preStop"]["exec"]["command"][1:])
        assert before.returncode == 0, before.stdout + before.stderr
        found = mlflow_server.stored(on_server(mlflow_server, run_id))
        assert _is_well(probe)
    assert (found.status, len(found.metrics)) == ("FINISHED", 500)
    assert mlflow_server.artifacts(on_server(mlflow_server, run_id)) == {"notes.txt": b"done"}


def _is_well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


#: What a container has of its own, besides its files: processes and a host name. The kernel is the node's.
_CONTAINER = ("unshare", "--pid", "--uts", "--fork", "--kill-child", "sh", "-c", 'hostname "$0" && exec "$@"')


@pytest.mark.skipif(bool(can_be_elsewhere()), reason=can_be_elsewhere())
def test_an_agent_in_one_container_sees_at_once_that_a_training_in_another_was_killed(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url, before=(*_CONTAINER, "agent-x7"))
    with live_writer(ferry.spool, unique("pods"), host=(*_CONTAINER, "train-0")) as training, ferry.agent():
        training.await_steps(10)
        wait_until(lambda: server_runs(mlflow_server, training.logged.run_id), "its points arrive", 120)
        assert mlflow_server.stored(on_server(mlflow_server, training.logged.run_id)).status == "RUNNING"
        training.kill()
        wait_for_arrival(mlflow_server, training.logged, 120)  # KILLED; by silence it would take 900 s
