"""mlferry: log like MLflow, to a local spool, without waiting for a network. What users import.

``import mlferry`` instead of ``import mlflow``, or ``MLFLOW_TRACKING_URI=spool:///path`` for programs that import mlflow.
Importing this costs a few milliseconds: no numpy, torch, mlflow or network library.
"""

from __future__ import annotations

from mlferry.datasets import Dataset
from mlferry.errors import Misuse, MlferryError, NotLogged
from mlferry.fluent import (
    active_run,
    delete_tag,
    end_run,
    flush,
    last_active_run,
    log_artifact,
    log_artifacts,
    log_dict,
    log_figure,
    log_image,
    log_input,
    log_metric,
    log_metrics,
    log_param,
    log_params,
    log_series,
    log_table,
    log_text,
    open_run,
    set_experiment,
    set_tag,
    set_tags,
    start_run,
)
from mlferry.runs import Run

__version__ = "0.1.0"

__all__ = [
    "Dataset",
    "Misuse",
    "MlferryError",
    "NotLogged",
    "Run",
    "__version__",
    "active_run",
    "delete_tag",
    "end_run",
    "flush",
    "last_active_run",
    "log_artifact",
    "log_artifacts",
    "log_dict",
    "log_figure",
    "log_image",
    "log_input",
    "log_metric",
    "log_metrics",
    "log_param",
    "log_params",
    "log_series",
    "log_table",
    "log_text",
    "open_run",
    "set_experiment",
    "set_tag",
    "set_tags",
    "start_run",
]
