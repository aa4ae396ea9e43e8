"""A broad script on the ``spool:`` plugin, for any MLflow from 3.0 on; it raises where something is not as it should be."""

import os
import sys
import tempfile

os.environ["MLFLOW_TRACKING_URI"] = f"spool://{sys.argv[1]}"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LinearRegression


def refused(call, *args):
    try:
        call(*args)
    except MlflowException as error:
        return error.error_code
    raise AssertionError("it was not refused")


client = mlflow.MlflowClient()
mlflow.set_experiment("matrix")
mlflow.set_experiment_tag("team", "a")
with mlflow.start_run(run_name="parent", tags={"stage": "first"}) as run:
    mlflow.log_params({"lr": 0.1, "layers": 3})
    for step in range(5):
        mlflow.log_metrics({"loss": 1 / (step + 1), "accuracy": step / 5}, step=step)
    mlflow.log_metric("nan", float("nan"))
    mlflow.set_tag("changed", "no")
    mlflow.set_tag("changed", "yes")
    mlflow.log_text("hello", "notes/hello.txt")
    mlflow.log_dict({"a": 1}, "told.json")
    mlflow.log_table({"q": ["one"]}, "table.json")
    mlflow.log_table({"q": ["two"]}, "table.json")
    mlflow.log_image(np.zeros((4, 4, 3), dtype=np.uint8), "image.png")
    mlflow.log_input(mlflow.data.from_pandas(pd.DataFrame({"x": [1.0]}), name="rows"), context="training")
    assert refused(mlflow.log_param, "lr", 0.2) == "INVALID_PARAMETER_VALUE"
    with mlflow.start_run(nested=True, run_name="child") as child:
        mlflow.log_metric("depth", 2.0)
run_id = run.info.run_id

read = client.get_run(run_id)
assert read.info.status == "FINISHED" and read.info.run_name == "parent"
assert read.data.params == {"lr": "0.1", "layers": "3"}
assert read.data.metrics["loss"] == 0.2 and np.isnan(read.data.metrics["nan"])
assert read.data.tags["changed"] == "yes" and read.inputs.dataset_inputs[0].dataset.name == "rows"
assert client.get_run(child.info.run_id).data.tags["mlflow.parentRunId"] == run_id
assert [point.value for point in client.get_metric_history(run_id, "accuracy")] == [0.0, 0.2, 0.4, 0.6, 0.8]
assert [found.info.run_id for found in mlflow.search_runs(filter_string="params.lr = '0.1'", output_format="list")] == [
    run_id
]
assert len(mlflow.search_runs(order_by=["metrics.loss DESC"])) == 2
assert [item.name for item in client.search_experiments(filter_string="tags.team = 'a'")] == ["matrix"]
assert [file.path for file in client.list_artifacts(run_id, "notes")] == ["notes/hello.txt"]
assert mlflow.artifacts.load_text(f"{read.info.artifact_uri}/notes/hello.txt") == "hello"
assert list(mlflow.load_table("table.json", run_ids=[run_id])["q"]) == ["one", "two"]
client.delete_run(child.info.run_id)
assert len(client.search_runs([read.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)) == 1
client.restore_run(child.info.run_id)
assert refused(client.get_run, "0" * 32) == "RESOURCE_DOES_NOT_EXIST"

model = LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0])
with mlflow.start_run() as run:
    info = mlflow.sklearn.log_model(
        model, name="model", input_example=np.zeros((1, 1)), registered_model_name="Line", pip_requirements=[]
    )
for uri in (f"runs:/{run.info.run_id}/model", info.model_uri, "models:/Line/1"):
    assert round(float(mlflow.pyfunc.load_model(uri).predict(np.ones((1, 1)))[0]), 6) == 2.0
client.set_registered_model_alias("Line", "best", 1)
client.set_model_version_tag("Line", "1", "checked", "yes")
assert mlflow.pyfunc.load_model("models:/Line@best") is not None
[version] = client.search_model_versions("name = 'Line'")
assert version.run_id == run.info.run_id and version.tags == {"checked": "yes"}
[logged] = mlflow.search_logged_models(output_format="list")
assert logged.name == "model" and logged.source_run_id == run.info.run_id
with tempfile.TemporaryDirectory() as folder:
    client.download_artifacts(run_id, "told.json", folder)
    assert os.listdir(folder) == ["told.json"]


@mlflow.trace
def traced(x: int) -> int:
    with mlflow.start_span("inner"):
        return x + 1


with mlflow.start_run(run_name="traced"):
    traced(1)
mlflow.flush_trace_async_logging()
[trace] = mlflow.search_traces(return_type="list")
client.set_trace_tag(trace.info.trace_id, "after", "1")
trace = client.get_trace(trace.info.trace_id)
assert sorted(span.name for span in trace.data.spans) == ["inner", "traced"]
assert (trace.info.tags["after"], trace.info.tags["mlflow.traceName"]) == ("1", "traced")
print("all as it should be, with MLflow", mlflow.__version__)
