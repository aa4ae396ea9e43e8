"""What a plain script logs: params, metrics, tags, inputs, files of every kind, nested runs, an experiment's tags."""

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

mlflow.set_experiment_tags({"team": "oracle", "größe": "ü"})
with mlflow.start_run(run_name="parent", description="of two", tags={"stage": "first"}):
    mlflow.log_params({"lr": 0.1, "layers": [1, 2], "none": None, "long": "x" * 5000})
    for step in range(20):
        mlflow.log_metric("loss", 1 / (step + 1), step=step)
        mlflow.log_metrics({"nested/accuracy": step / 20, "constant": 3}, step=step)
    mlflow.log_metrics({"nan": float("nan"), "inf": float("inf"), "minus inf": float("-inf"), "minus zero": -0.0})
    mlflow.log_metric("given time", 1.5, step=-3, timestamp=1_700_000_000_123)
    mlflow.log_metric("later", 2.5, synchronous=False).wait()
    mlflow.set_tags({"number": 7, "changed": "no", "gone": "soon"})
    mlflow.set_tag("changed", "yes")
    mlflow.delete_tag("gone")
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [0, 1]})
    mlflow.log_input(mlflow.data.from_pandas(frame, name="rows", targets="y"), context="training", tags={"half": "1"})
    mlflow.log_input(mlflow.data.from_numpy(np.arange(6.0).reshape(2, 3), name="grid"))
    mlflow.log_text("hello\n", "notes/hello.txt")
    mlflow.log_dict({"b": [1, 2], "a": "ü"}, "notes/told.json")
    mlflow.log_dict({"b": [1, 2]}, "told.yaml")
    mlflow.log_table({"q": ["one"], "n": [1]}, "table.json")
    mlflow.log_table({"q": ["two"], "n": [2]}, "table.json")
    figure = Figure()
    figure.add_subplot().plot([1, 2, 3])
    mlflow.log_figure(figure, "figure.png", save_kwargs={"metadata": {"Software": None}})
    mlflow.log_image(np.full((8, 8, 3), 128, dtype=np.uint8), "image.png")
    with mlflow.start_run(nested=True, run_name="child"):
        mlflow.log_metric("depth", 2)
with mlflow.start_run(run_name="deleted") as run:
    mlflow.log_param("kept", "no")
mlflow.delete_run(run.info.run_id)
try:
    with mlflow.start_run(run_name="failing"):
        mlflow.log_metric("loss", 3.0)
        raise ValueError("diverged")
except ValueError as error:
    print(error)
found = mlflow.search_runs(order_by=["attributes.start_time ASC"], filter_string="metrics.loss < 2")
print(
    "found", list(found["tags.mlflow.runName"]), mlflow.artifacts.load_text(f"runs:/{found.run_id[0]}/notes/hello.txt")
)
