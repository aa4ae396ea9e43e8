"""MLflow's search for Spark is made once a second where there is none, and is MLflow's own where there is one."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking._model_registry import utils

from mlferry.plugin import spark

PYSPARK = """
class SparkSession:
    @classmethod
    def getActiveSession(cls):
        return cls()

    class conf:
        @staticmethod
        def get(name, default):
            return "http://registry.example.org"
"""


class Clock:
    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(spark, "time", clock)
    return clock


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[list[float]]:
    """When MLflow's own search was made. Afterwards MLflow is as it was."""
    times: list[float] = []
    own = utils._get_active_spark_session
    own = getattr(own, "_look", own)

    def look() -> Any:
        times.append(clock.now_s)
        return own()

    monkeypatch.setattr(utils, "_get_active_spark_session", look)
    spark.search_once_a_second()
    yield times
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyspark"]:
        del sys.modules[name]


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is not None, reason="PySpark is installed")
def test_that_there_is_no_spark_holds_for_a_second(searched: list[float], clock: Clock) -> None:
    for now_s in (1000.0, 1000.5, 1000.999, 1001.0, 1001.5):
        clock.now_s = now_s
        assert mlflow.get_registry_uri() == mlflow.get_tracking_uri()
    assert searched == [1000.0, 1001.0]


def test_a_spark_that_is_installed_meanwhile_is_found_and_asked_each_time(
    searched: list[float], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.get_registry_uri()
    (tmp_path / "pyspark" / "sql").mkdir(parents=True)
    (tmp_path / "pyspark" / "__init__.py").touch()
    (tmp_path / "pyspark" / "sql" / "__init__.py").write_text(PYSPARK)
    (tmp_path / "pyspark" / "sql" / "utils.py").write_text("class AnalysisException(Exception): pass")
    monkeypatch.syspath_prepend(tmp_path)
    clock.now_s += 1
    assert [mlflow.get_registry_uri() for _ in range(3)] == ["http://registry.example.org"] * 3
    assert searched == [1000.0, 1001.0, 1001.0, 1001.0]


def test_a_spark_that_the_program_has_imported_is_asked_at_once(
    searched: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.get_registry_uri()
    monkeypatch.setitem(sys.modules, "pyspark", types.ModuleType("pyspark"))
    mlflow.get_registry_uri()
    assert len(searched) == 2


def test_it_is_made_rarer_once(searched: list[float]) -> None:
    made = utils._get_active_spark_session
    spark.search_once_a_second()
    assert utils._get_active_spark_session is made


def test_an_mlflow_that_does_not_search_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(utils, "_get_active_spark_session")
    spark.search_once_a_second()
    assert not hasattr(utils, "_get_active_spark_session")


def test_logging_to_a_spool_makes_it_rarer(tmp_path: Path, searched: list[float]) -> None:
    from mlferry.plugin.tracking import SpoolTrackingStore

    assert isinstance(utils._get_active_spark_session, spark._Session)
    SpoolTrackingStore(f"spool://{tmp_path}")
    client = mlflow.MlflowClient(f"spool://{tmp_path}")
    run = client.create_run(client.create_experiment("e"))
    for step in range(50):
        mlflow.MlflowClient(f"spool://{tmp_path}").log_metric(run.info.run_id, "m", 1.0, step=step)
    assert len(searched) <= 1
