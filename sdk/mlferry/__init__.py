"""mlferry: log like MLflow, to a local spool, without waiting for a network. What users import.

``import mlferry`` instead of ``import mlflow``. Importing this costs a few milliseconds: the names below are looked up in
their modules when they are first used (PEP 562), and no numpy, torch, mlflow or network library is imported by them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlferry.datasets import Dataset
    from mlferry.delivering import RunStanding, Verdict, status, status_async, sync, sync_async
    from mlferry.errors import Misuse, MlferryError, NotDelivered, NotLogged
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
        open_artifact,
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
    "NotDelivered",
    "NotLogged",
    "Run",
    "RunStanding",
    "Verdict",
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
    "open_artifact",
    "open_run",
    "set_experiment",
    "set_tag",
    "set_tags",
    "start_run",
    "status",
    "status_async",
    "sync",
    "sync_async",
]

#: The names that are not functions of ``mlferry.fluent``.
_ELSEWHERE = {
    "Dataset": "datasets",
    "Run": "runs",
    **dict.fromkeys(("Misuse", "MlferryError", "NotDelivered", "NotLogged"), "errors"),
    **dict.fromkeys(("RunStanding", "Verdict", "status", "status_async", "sync", "sync_async"), "delivering"),
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(importlib.import_module(f"{__name__}.{_ELSEWHERE.get(name, 'fluent')}"), name)
    globals()[name] = found  # from now on a plain attribute, at no cost
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
