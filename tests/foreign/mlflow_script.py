"""What somebody logged with plain MLflow before they knew of mlferry: of everything a little, to the tracking URI given.

Called with ``more``, it goes on with the runs of an earlier call: the source has grown.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient


class Echo(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A model that gives back what it gets."""

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        return model_input


def begin(experiment: str) -> None:
    """Two runs, one in the other, a model, a dataset, a registered version, a trace."""
    mlflow.set_experiment(experiment)
    mlflow.set_experiment_tags({"team": "vision", "mlflow.note.content": "what we tried"})
    with mlflow.start_run(run_name="parent", description="the sweep"):
        mlflow.log_params({"lr": 0.1, "name": "größer", **{f"p{number}": "x" * number for number in range(40)}})
        mlflow.set_tags({"stage": "draft", "long": "y" * 4000})
        for step in range(200):
            mlflow.log_metric("loss", 1 / (step + 3), step=step)
        for value in (math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2):
            mlflow.log_metric("odd values", value)
        mlflow.log_metric("backwards", 1.0, step=-7)
        mlflow.log_text("hello", "notes/ä b.txt")
        mlflow.log_dict({"a": [1, 2]}, "config.json")
        mlflow.log_input(mlflow.data.from_pandas(pd.DataFrame({"a": [1.0]}), name="rows"), context="training")
        with mlflow.start_run(run_name="child", nested=True):
            mlflow.log_metric("loss", 2.0)
        made = mlflow.pyfunc.log_model(
            name="echo", python_model=Echo(), registered_model_name=f"{experiment} echo", pip_requirements=[]
        )
        mlflow.log_metric("score", 0.5, step=3, model_id=made.model_id)
    client = MlflowClient()
    client.set_registered_model_alias(f"{experiment} echo", "champion", "1")
    client.set_registered_model_tag(f"{experiment} echo", "task", "echo")
    client.set_model_version_tag(f"{experiment} echo", "1", "checked", "yes")
    client.update_model_version(f"{experiment} echo", "1", "the first")
    try:
        with mlflow.start_run(run_name="failed"):
            mlflow.log_param("lr", 9)
            raise RuntimeError("diverged")
    except RuntimeError:
        pass
    running = client.create_run(client.get_experiment_by_name(experiment).experiment_id, run_name="never ended")
    client.log_metric(running.info.run_id, "loss", 3.0)
    gone = client.create_run(client.get_experiment_by_name(experiment).experiment_id, run_name="deleted")
    client.delete_run(gone.info.run_id)
    with mlflow.start_span(name="ask") as span:
        span.set_inputs({"question": 1})
        span.set_outputs("answer")
        time.sleep(0.01)  # of a trace of no whole millisecond, servers tell the duration one way or the other
    mlflow.flush_trace_async_logging()


def go_on(experiment: str) -> None:
    """The run that never ended goes on and ends; the parent gets a param, a tag, a file; there is another run."""
    client = MlflowClient()
    place = client.get_experiment_by_name(experiment).experiment_id
    runs = {run.info.run_name: run.info.run_id for run in client.search_runs([place])}
    for step in range(1, 4):
        client.log_metric(runs["never ended"], "loss", 3.0 - step, step=step)
    client.set_terminated(runs["never ended"], "FINISHED")
    client.set_tag(runs["parent"], "stage", "final")
    client.log_param(runs["parent"], "late", "1")
    client.log_text(runs["parent"], "hello again", "notes/ä b.txt")
    client.log_text(runs["parent"], "new", "notes/new.txt")
    with mlflow.start_run(experiment_id=place, run_name="another"):
        mlflow.log_metric("loss", 1.0)
    client.create_model_version(f"{experiment} echo", client.get_model_version(f"{experiment} echo", "1").source)
    client.set_registered_model_alias(f"{experiment} echo", "champion", "2")


if __name__ == "__main__":
    mlflow.set_tracking_uri(sys.argv[1])
    (go_on if sys.argv[3:] == ["more"] else begin)(sys.argv[2])
