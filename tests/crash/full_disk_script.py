"""A script that never heard of mlferry, on a disk that is full from its first metric on: every kind of logging call.

It prints one line for each call: what was called, and how it went. Arguments: the disk, and a folder that has room.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param, RunTag

disk, own = Path(sys.argv[1]), Path(sys.argv[2])
mlflow.set_tracking_uri(f"spool://{disk}/spool")
client = mlflow.MlflowClient()
run_id = mlflow.start_run().info.run_id
mlflow.log_metric("before", 1)
filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
size = 1 << 20
while size:
    try:
        os.write(filler, b"x" * size)
    except OSError:
        size //= 2
for step in range(3000):  # the rest of the segment's last block
    mlflow.log_metric("fill", step, step=step)
file = own / "file.txt"
file.write_text("x" * 100_000)


class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        return model_input


@mlflow.trace
def traced(x: int) -> int:
    return x


def a_run() -> None:
    with mlflow.start_run(nested=True, run_name="nested") as run:
        mlflow.log_metric("m", 1)
        mlflow.log_param("p", 1)
        mlflow.log_text("x", "t.txt")
    assert client.get_run(run.info.run_id).data.params == {"p": "1"}
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def a_trace() -> None:
    traced(1)
    mlflow.flush_trace_async_logging()


def an_experiment() -> None:
    mlflow.set_experiment("another")
    mlflow.set_experiment_tag("a", "1")
    client.create_run(mlflow.get_experiment_by_name("another").experiment_id)


def a_model() -> None:
    made = mlflow.pyfunc.log_model(name="model", python_model=Model(), registered_model_name="registered")
    mlflow.log_metric("of model", 1, model_id=made.model_id)
    client.set_registered_model_alias("registered", "champion", made.registered_model_version)


image, table = np.zeros((9, 9, 3), dtype=np.uint8), pd.DataFrame({"a": [1]})
CALLS: dict[str, Callable[[], Any]] = {
    "metric": lambda: mlflow.log_metric("m", 1),
    "metrics": lambda: mlflow.log_metrics({"a": 1, "b": 2}),
    "param": lambda: mlflow.log_param("p", 1),
    "tags": lambda: mlflow.set_tags({"t": "1", "u": "2"}),
    "no tag": lambda: mlflow.delete_tag("t"),
    "batch": lambda: client.log_batch(run_id, [Metric("x", 1, 1, 1)], [Param("y", "1")], [RunTag("z", "1")]),
    "asynchronous": lambda: mlflow.log_metric("as", 1, synchronous=False).wait(),
    "artifact": lambda: mlflow.log_artifact(str(file)),
    "artifacts": lambda: mlflow.log_artifacts(str(own), "folder"),
    "text": lambda: mlflow.log_text("x" * 100_000, "text.txt"),
    "dictionary": lambda: mlflow.log_dict({"a": 1}, "dict.json"),
    "figure": lambda: mlflow.log_figure(Figure(), "figure.png"),
    "image": lambda: mlflow.log_image(image, "image.png"),
    "image of a step": lambda: mlflow.log_image(image, key="k", step=1),
    "table": lambda: mlflow.log_table(table, "table.json"),
    "more of the table": lambda: mlflow.log_table(table, "table.json"),
    "dataset": lambda: mlflow.log_input(mlflow.data.from_numpy(image), "train"),
    "trace": a_trace,
    "run": a_run,
    "experiment": an_experiment,
    "model": a_model,
    "model elsewhere": lambda: mlflow.create_external_model(name="elsewhere"),
    "registered model": lambda: client.create_registered_model("empty"),
    "name": lambda: client.update_run(run_id, name="renamed"),
    "end": lambda: mlflow.end_run(),
}

for name, call in CALLS.items():
    try:
        call()
        print(f"{name}: fine")
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
os.close(filler)
(disk / "filler").unlink()
