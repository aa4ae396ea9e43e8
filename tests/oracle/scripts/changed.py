"""A script that logs something else each time it is told another word: the oracle must see each of them."""

import sys

import mlflow

word = sys.argv[1]
with mlflow.start_run(run_name="changed", tags={"word": "tag" if word == "tag" else "same"}):
    mlflow.log_param("word", "param" if word == "param" else "same")
    mlflow.log_metric("value", 1.0000000001 if word == "metric" else 1.0, step=1 if word == "step" else 0)
    mlflow.log_text("file" if word == "file" else "same", "word.txt")
    if word == "point":
        mlflow.log_metric("value", 2.0)
    if word == "nested":
        mlflow.start_run(nested=True, run_name="another")
        mlflow.end_run()
    mlflow.end_run("FAILED" if word == "status" else "FINISHED")
