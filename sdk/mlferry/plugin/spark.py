"""MLflow's search for Spark, made rarer.

Each ``MlflowClient`` that is made without a registry URI asks for an active Spark session, which may name one. The fluent
API makes two clients for each metric. Where PySpark is not installed, its import fails only after all of ``sys.path`` was
searched, and Python does not remember that: four fifths of what ``mlflow.log_metric`` takes on a store that costs nothing.

So in a process that logs to a spool, "PySpark is not here" holds for a second. One that is installed meanwhile is found
then; where there is one, nothing is different.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["search_once_a_second"]

_NAME = "_get_active_spark_session"
_HOLDS_S = 1.0


class _Session:
    """``mlflow.utils._spark_utils._get_active_spark_session``, which is told once a second that there is no PySpark."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self._look, self._again_at = look, 0.0

    def __call__(self) -> Any:
        if time.monotonic() < self._again_at and "pyspark" not in sys.modules:
            return None
        session = self._look()
        if session is None and "pyspark" not in sys.modules:
            self._again_at = time.monotonic() + _HOLDS_S
        return session


def search_once_a_second() -> None:
    """Have MLflow search for PySpark at most once a second, if it is as the versions we know."""
    from mlflow.tracking._model_registry import utils

    look = getattr(utils, _NAME, None)
    if callable(look) and not isinstance(look, _Session):
        setattr(utils, _NAME, _Session(look))
