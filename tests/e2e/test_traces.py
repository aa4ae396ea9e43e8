"""Traces that were assessed and used prompts arrive with the server's names for what they speak of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.servers import MlflowServer

mlflow = pytest.importorskip("mlflow")

SCRIPT = """
import mlflow

def same(model_input: list[str]) -> list[str]:
    return model_input

experiment = mlflow.set_experiment("asked")
with mlflow.start_run(run_name="before"):  # this version waits for its run, and what is registered after it with it
    info = mlflow.pyfunc.log_model(name="m", python_model=same, registered_model_name="waiting", pip_requirements=[])
mlflow.set_active_model(name="answering")
mlflow.genai.register_prompt("asked", "hello {{name}}")

@mlflow.trace
def ask(name):
    span = mlflow.get_current_active_span()
    span.set_attribute("mlflow.experimentId", experiment.experiment_id)  # as MLflow's first versions that keep spans do
    return mlflow.genai.load_prompt("prompts:/asked/1").format(name=name)

with mlflow.start_run(run_name="asking"):
    mlflow.genai.load_prompt("prompts:/asked/1")
    ask("you")
mlflow.flush_trace_async_logging()
mlflow.MlflowClient().link_prompt_version_to_model("asked", "1", mlflow.get_active_model_id())
[trace] = mlflow.search_traces(return_type="list")
first = mlflow.log_feedback(trace_id=trace.info.trace_id, name="good", value=1)
second = mlflow.override_feedback(trace_id=trace.info.trace_id, assessment_id=first.assessment_id, value=2)
mlflow.update_assessment(trace.info.trace_id, second.assessment_id, mlflow.entities.Feedback(name="good", value=3))
mlflow.update_assessment(trace.info.trace_id, first.assessment_id, mlflow.entities.Feedback(name="good", value=0))
print(trace.info.trace_id)
"""


def run(*command: object, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    told = {**clean, "MLFLOW_DISABLE_TELEMETRY": "true", **environment}
    done = subprocess.run([*map(str, command)], env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_assessments_and_prompts_of_traces_arrive(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(mlflow_server.url, mlflow_server.url)
    client.register_prompt(name="asked", template="the server's own")  # so that the spool's first version is its second
    while "_mlflow_experiment_ids" not in client.get_prompt("asked").tags:
        time.sleep(0.05)  # MLflow sets it in a thread
    client.set_prompt_tag("asked", "_mlflow_experiment_ids", ",0,12,")
    trace_id = run(sys.executable, "-W", "ignore", "-c", SCRIPT, MLFLOW_TRACKING_URI=f"spool://{tmp_path}/spool")
    settings = {"MLFERRY_DIR": f"{tmp_path}/spool", "MLFERRY_STATE_DIR": f"{tmp_path}/state"}
    for verb in ("sync", "verify"):
        run(Path(sys.executable).with_name("mlferry"), verb, "--to", mlflow_server.url, **settings)
    trace = client.get_trace(trace_id)
    told = sorted(trace.info.assessments, key=lambda one: one.value)
    overridden = told[0].assessment_id
    assert [(one.value, one.valid, one.overrides) for one in told] == [(0, False, None), (3, True, overridden)]
    experiment = client.get_experiment_by_name("asked").experiment_id
    assert trace.info.experiment_id == trace.data.spans[0].attributes["mlflow.experimentId"] == experiment
    linked = [{"name": "asked", "version": "2"}]
    [run_of_it] = client.search_runs([experiment], "attributes.run_name = 'asking'")
    [model] = client.search_logged_models([experiment], "name = 'answering'")
    tags = [run_of_it.data.tags, model.tags, trace.info.tags]
    assert [json.loads(of["mlflow.linkedPrompts"]) for of in tags] == [linked] * 3
    assert trace.data.spans[0].attributes["mlflow.linkedPrompts"] == linked
    assert client.get_prompt("asked").tags["_mlflow_experiment_ids"] == f",0,12,{experiment},"
    for version, traces in (("1", []), ("2", [trace_id])):
        found = client.search_traces(locations=[experiment], filter_string=f"prompt = 'asked/{version}'")
        assert [one.info.trace_id for one in found] == traces
