"""MLflow's fluent functions, on whatever the tracking URI of the environment says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMPORT = "import mlflow"
ENVIRONMENT = {
    **{"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"},
    **{"MLFERRY_QUIET": "true", "MLFLOW_ALLOW_FILE_STORE": "true"},
}
COUNTED = "`MlflowClient.get_metric_history`"


def start(directory: Path) -> Any:
    import mlflow

    (directory / "run_id").write_text(mlflow.start_run().info.run_id)
    return mlflow.log_metric, mlflow.log_metrics


def finish() -> None:
    import mlflow

    mlflow.end_run()
    mlflow.flush_async_logging()


def count(directory: Path) -> int:
    import mlflow

    return len(mlflow.MlflowClient().get_metric_history((directory / "run_id").read_text(), "loss"))
