"""mlferry: log like MLflow, to a local spool, without waiting for a network. What users import.

``import mlferry`` instead of ``import mlflow``, or ``MLFLOW_TRACKING_URI=spool:///path`` for programs that import mlflow.

Names are looked up when they are first used (PEP 562): a process that imports mlferry and logs nothing, such as each worker
that a data loader spawns, pays next to nothing for it. Nothing here ever imports numpy, torch, mlflow or a network library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

#: Where the names live that are not functions of ``mlferry.fluent``.
_ELSEWHERE = {"Dataset": "datasets", "Misuse": "errors", "MlferryError": "errors", "NotLogged": "errors", "Run": "runs"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'mlferry' has no attribute {name!r}")
    found: object = getattr(import_module(f"mlferry.{_ELSEWHERE.get(name, 'fluent')}"), name)
    globals()[name] = found  # the next look-up costs what any module's does
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
