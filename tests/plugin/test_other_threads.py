"""What is logged from other threads: system metrics, and calls that do not wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.entities import Metric, Param, RunTag
from PIL import Image
from tests.plugin.differential import T0, Scenario, Stage

Both = Callable[[Scenario], Any]


@pytest.fixture
def often() -> Iterator[None]:
    """System metrics of a node, five times a second."""
    mlflow.enable_system_metrics_logging()
    mlflow.set_system_metrics_sampling_interval(0.1)
    mlflow.set_system_metrics_samples_before_logging(2)
    mlflow.set_system_metrics_node_id("n1")
    yield
    mlflow.disable_system_metrics_logging()
    mlflow.set_system_metrics_sampling_interval(None)
    mlflow.set_system_metrics_samples_before_logging(None)
    mlflow.set_system_metrics_node_id(None)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_system_metrics_go_on_where_they_were_when_a_run_is_resumed(
    both: Both, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scenario(stage: Stage) -> Any:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")  # the fixtures before have cleared it
        client = stage.client

        def steps(run_id: str) -> list[int]:
            return [point.step for point in client.get_metric_history(run_id, "system/n1/cpu_utilization_percentage")]

        with mlflow.start_run() as run:
            run_id = run.info.run_id
            wait_for(lambda: len(steps(run_id)) >= 3)
        before = len(steps(run_id))
        with mlflow.start_run(run_id=run_id):
            wait_for(lambda: len(steps(run_id)) > before + 1)
        after = steps(run_id)
        assert after == list(range(len(after)))
        with mlflow.start_run(log_system_metrics=False) as other:
            time.sleep(0.3)
        names = {name for name in client.get_run(run_id).data.metrics if "network" not in name and "gpu" not in name}
        return names, client.get_run(other.info.run_id).data.metrics

    both(scenario)


def test_calls_that_do_not_wait_fail_where_they_are_waited_for(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        later: dict[str, Any] = {"synchronous": False}
        batch = [Metric("b", 1, T0, 0)], [Param("q", "1")], [RunTag("t", "1")]
        seen = []
        for begin in (
            lambda: client.log_metric(run, "m", 1, timestamp=T0, **later),
            lambda: client.log_param(run, "p", 1, **later),
            lambda: client.log_param(run, "p", 2, **later),
            lambda: client.log_metric(run, "bad@", 1, **later),
            lambda: client.log_metric(run, "bad", "x", timestamp=T0, **later),
            lambda: client.log_batch(run, *batch, **later),
            lambda: client.set_tag(run, "t", "2", **later),
            lambda: client.log_metric("absent", "m", 1, **later),
        ):
            operation = stage.attempt(begin)
            seen.append(stage.attempt(operation.wait) if hasattr(operation, "wait") else operation)
        return seen, client.get_run(run).data

    both(scenario)


def test_what_does_not_wait_is_there_when_it_is_flushed(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        image = Image.fromarray(np.zeros((4, 4), dtype=np.uint8))
        with mlflow.start_run() as run:
            mlflow.log_metrics({"x": 1, "y": 2}, step=3, timestamp=T0, synchronous=False)
            mlflow.log_params({"z": "1"}, synchronous=False)
            mlflow.set_tags({"t": "1"}, synchronous=False)
            mlflow.log_image(image, key="k", step=1, timestamp=T0, synchronous=False)
            mlflow.flush_async_logging()
            mlflow.flush_artifact_async_logging()
            mlflow.config.enable_async_logging(True)
            mlflow.log_metric("later", 1, timestamp=T0)
            mlflow.log_param("later", 1)
            mlflow.flush_async_logging()
            mlflow.config.enable_async_logging(False)
        data = stage.client.get_run(run.info.run_id).data
        return data.metrics, data.params, data.tags["t"], len(stage.client.list_artifacts(run.info.run_id, "images"))

    both(scenario)
