"""Datasets, images with their steps, tables with appends, figures, system metrics, traces, registered models."""

import itertools
import os
import sys
import threading
import time

import matplotlib
import mlflow
import numpy as np
import pandas as pd
import psutil
from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image

# What the machine is doing is another thing in each execution; what is asked here is that it arrives.
# And it is asked three times, however long the script takes.
samples, measured = itertools.count(1), threading.Event()


def cpu_percent():
    if next(samples) > 3:
        measured.set()
        sys.exit()  # ends the monitor's thread
    return 12.5


psutil.cpu_percent = cpu_percent
psutil.virtual_memory = lambda: type("Memory", (), {"used": 2_000_000, "percent": 25.0, "total": 8_000_000})()
psutil.disk_usage = lambda path: type("Disk", (), {"used": 3_000_000, "percent": 50.0, "free": 3_000_000})()
psutil.net_io_counters = lambda: type("Network", (), {"bytes_sent": 1_000_000, "bytes_recv": 2_000_000})()

mlflow.set_system_metrics_sampling_interval(0.1)
mlflow.set_system_metrics_samples_before_logging(1)
matplotlib.rcParams["svg.hashsalt"] = "equal"


@mlflow.trace(span_type="CHAIN", attributes={"kind": "outer"})
def outer(number):
    time.sleep(0.002)
    mlflow.update_current_trace(tags={"asked": str(number)})
    with mlflow.start_span("inner", span_type="TOOL") as span:
        span.set_inputs({"number": number})
        span.set_outputs(number + 1)
        span.add_event(mlflow.entities.SpanEvent("event", attributes={"größe": "ü"}))
    return number + 1


@mlflow.trace
def failing():
    time.sleep(0.002)
    raise ValueError("asked too much")


def double(model_input: list[float]) -> list[float]:
    return [2 * number for number in model_input]


model_name = sys.argv[1] if len(sys.argv) > 1 else os.environ["MLFLOW_EXPERIMENT_NAME"]
frame = pd.DataFrame({"x": [1.0, 2.0, 3.0], "word": ["a", "ü", None]})
client = MlflowClient()
with mlflow.start_run(run_name="media") as run:
    for name in ("training", "validation"):
        mlflow.log_input(mlflow.data.from_pandas(frame, source="https://example.org/rows.csv", name=name), context=name)
    arrays = [mlflow.data.from_numpy(np.arange(4)), mlflow.data.from_numpy(np.ones(2))]
    mlflow.log_inputs(arrays, ["a", "b"], [{"half": "1"}, None])
    for step in range(3):
        image = np.full((4, 4, 3), 80 * step, dtype=np.uint8)
        mlflow.log_image(image, key="samples/dog", step=step, timestamp=1_700_000_000_000 + step)
        mlflow.log_table({"step": [step], "picture": [f"p{step}"]}, "tables/steps.json")
        mlflow.log_table(frame, "tables/frame.parquet")
        client.log_image(run.info.run_id, Image.fromarray(image), f"images/{step}.png")
    figure = Figure()
    figure.add_subplot().plot([1, 2, 3])
    mlflow.log_figure(figure, "figures/plot.svg", save_kwargs={"metadata": {"Date": None}})
    client.log_figure(run.info.run_id, figure, "figures/plot.png", save_kwargs={"metadata": {"Software": None}})
    print(outer(1))
    try:
        failing()
    except ValueError as error:
        print(error)
    for version in range(2):
        info = mlflow.pyfunc.log_model(
            name=f"double-{version}", python_model=double, registered_model_name=model_name, pip_requirements=[]
        )
    mlflow.log_metric("quality", 0.5, model_id=info.model_id, dataset=mlflow.data.from_pandas(frame, name="rows"))
client.set_registered_model_alias(model_name, "champion", 2)
client.set_registered_model_tag(model_name, "team", "oracle")
client.set_model_version_tag(model_name, "1", "checked", "yes")
client.update_model_version(model_name, "1", description="the first")
print(mlflow.pyfunc.load_model(f"models:/{model_name}@champion").predict([2.0]))
print(client.get_model_version_by_alias(model_name, "champion").version)
print(mlflow.load_table("tables/steps.json", run_ids=[run.info.run_id]).step.tolist())

with mlflow.start_run(run_name="measured", log_system_metrics=True):
    mlflow.log_metric("loss", 1.0)
    measured.wait(60)
