"""Metrics: what is accepted, what is kept of it, which point is the latest, histories and their pages."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.entities import Metric, Param, RunTag
from tests.plugin.differential import T0, Scenario, Stage

Both = Callable[[Scenario], Any]

HUGE = 2**63


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1, True, math.nan, math.inf, -math.inf, 5e-324, 2**53 + 1, sys.float_info.max, 0.1 + 0.2, 10**30],
)
def test_values_come_back_as_from_sqlite(both: Both, value: float) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        stage.client.log_metric(run, "by call", value, T0, 1)
        stage.client.log_batch(run, [Metric("by batch", value, T0, 1)])
        latest = stage.client.get_run(run).data.metrics
        histories = [stage.client.get_metric_history(run, key) for key in ("by call", "by batch")]
        return latest, histories, {key: str(value) for key, value in latest.items()}

    both(scenario)


@pytest.mark.parametrize("value", [None, "1", "x", b"1", [1], {}, object])
def test_values_that_are_no_numbers_are_refused_alike(both: Both, value: Any) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.attempt(stage.client.log_metric, run, "m", value, T0, 1),
            stage.attempt(stage.store.log_metric, run, Metric("m", value, T0, 1)),
            stage.attempt(stage.store.log_batch, run, [Metric("n", value, T0, 1)], [], []),
            stage.client.get_run(run).data.metrics,
        )

    both(scenario)


@pytest.mark.parametrize("step", [0, -1, -(2**63), 2**63 - 1, None, 1.0, "1", "x", True])
def test_steps(both: Both, step: Any) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.attempt(stage.client.log_metric, run, "m", 1.0, T0, step),
            stage.attempt(stage.store.log_metric, run, Metric("n", 1.0, T0, step)),
            stage.attempt(stage.store.log_batch, run, [Metric("o", 1.0, T0, step)], [], []),
            [stage.client.get_metric_history(run, key) for key in ("m", "n", "o")],
        )

    both(scenario)


@pytest.mark.parametrize("timestamp", [0, 1, -1, 2**63 - 1, None, 1.0, "1", "x", True])
def test_timestamps(both: Both, timestamp: Any) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.attempt(stage.client.log_metric, run, "m", 1.0, timestamp, 1),
            stage.attempt(stage.store.log_metric, run, Metric("n", 1.0, timestamp, 1)),
            stage.attempt(stage.store.log_batch, run, [Metric("o", 1.0, timestamp, 1)], [], []),
            [stage.client.get_metric_history(run, key) for key in ("m", "n", "o")],
        )

    both(scenario)


@pytest.mark.parametrize(("timestamp", "step"), [(T0, HUGE), (T0, -HUGE - 1), (HUGE, 1)])
def test_numbers_beyond_64_bits_are_refused(both: Both, timestamp: int, step: int) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        answers = (
            stage.attempt(stage.client.log_metric, run, "m", 1.0, timestamp, step),
            stage.attempt(stage.store.log_batch, run, [Metric("o", 1.0, timestamp, step)], [], []),
        )
        return [(answer.kind, answer.code) for answer in answers], stage.client.get_run(run)

    both(scenario)


def test_numbers_of_other_types_are_taken_as_what_they_are(both: Both) -> None:
    """numpy's numbers and tensors, as training loops pass them."""

    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        client.log_metric(run, "numpy", np.float32(0.5), T0, 3)
        client.log_metric(run, "tensor", torch.tensor(0.25), T0, 1)
        client.log_metric(run, "whole tensor", torch.tensor(3), T0, 1)
        return (
            stage.attempt(client.log_metric, run, "many", np.array([0.75, 1.0]), T0, 1),
            stage.attempt(client.log_metric, run, "many", torch.tensor([0.75, 1.0]), T0, 1),
            client.get_run(run).data.metrics,
        )

    both(scenario)


def test_fractions_of_milliseconds_and_steps_are_cut(spool: Stage) -> None:
    run = spool.run()
    spool.client.log_metric(run, "m", 1.0, T0 + 0.75, 2.5)
    spool.client.log_batch(run, [Metric("n", 1.0, T0 + 0.75, np.int64(2))])
    points = [spool.client.get_metric_history(run, key)[0] for key in ("m", "n")]
    assert [(point.timestamp, point.step) for point in points] == [(T0, 2)] * 2


KEYS = [
    "a",
    "a/b.c-d_e f:g",
    "ünïcödé☃"[:7],
    "☃",
    "x" * 250,
    "x" * 251,
    "",
    None,
    ".",
    "..",
    "../a",
    "/a",
    "a//b",
    "a/",
    "a@b",
    "a(b)",
    "a%b",
    "tab\t",
    "new\n",
    "a/./b",
]


@pytest.mark.parametrize("key", KEYS)
def test_names(both: Both, key: Any) -> None:
    def scenario(stage: Stage) -> Any:
        run, store = stage.run(), stage.store
        return (
            stage.attempt(stage.client.log_metric, run, key, 1.0, T0, 0),
            stage.attempt(stage.client.log_param, run, key, "v"),
            stage.attempt(stage.client.set_tag, run, key, "v"),
            stage.attempt(stage.client.set_experiment_tag, "0", key, "v"),
            stage.attempt(store.log_metric, run, Metric(key, 1.0, T0, 1)),
            stage.attempt(store.log_param, run, Param(key, "v")),
            stage.attempt(store.set_tag, run, RunTag(key, "w")),
            stage.attempt(store.log_batch, run, [Metric("ok", 1, T0, 0), Metric(key, 1.0, T0, 2)], [], []),
            stage.attempt(store.log_batch, run, [], [Param("ok", "1"), Param(key, "v")], []),
            stage.attempt(store.log_batch, run, [], [], [RunTag("ok", "1"), RunTag(key, "x")]),
            stage.client.get_run(run),
        )

    both(scenario)


def test_the_latest_point_is_by_step_then_time_then_value(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        points = [
            ("step", [(1.0, 5, 10), (2.0, 4, 11), (3.0, 9, 9)]),
            ("time", [(1.0, 5, 1), (2.0, 6, 1), (3.0, 4, 1)]),
            ("value", [(1.0, 5, 1), (3.0, 5, 1), (2.0, 5, 1)]),
            ("nan", [(math.nan, 5, 1), (-1.0, 5, 1)]),
            ("nan 2", [(1.0, 5, 1), (math.nan, 5, 1)]),
            ("nan 3", [(-1.0, 5, 1), (math.nan, 5, 1)]),
            ("nan 4", [(0.0, 5, 1), (math.nan, 5, 1)]),
            ("inf", [(math.inf, 5, 1), (1.0, 5, 1)]),
            ("negative", [(1.0, 5, -5), (2.0, 5, -6)]),
        ]
        for key, series in points:
            for value, timestamp, step in series:
                stage.client.log_metric(run, key, value, timestamp, step)
        together = stage.run()
        stage.client.log_batch(together, [Metric(key, *point) for key, series in points for point in series])
        return [
            (stage.client.get_run(one).data.metrics, [stage.client.get_metric_history(one, key) for key, _ in points])
            for one in (run, together)
        ]

    both(scenario)


def test_equal_points_are_one(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        for _ in range(3):
            stage.client.log_metric(run, "m", 1.0, T0, 1)
        stage.client.log_batch(run, [Metric("m", 1.0, T0, 1)] * 2 + [Metric("m", math.nan, T0, 1)] * 2)
        stage.client.log_batch(run, [Metric("m", 1.0, T0, 1), Metric("m", 1.0, T0, 2)])
        return stage.client.get_metric_history(run, "m")

    assert len(both(scenario)["items"]) == 3


def test_histories_come_in_pages(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, store = stage.run(), stage.store
        stage.client.log_batch(run, [Metric("m", float(i), T0 + i % 7, i) for i in range(25)])
        pages, token = [], None
        while True:
            page = store.get_metric_history(run, "m", max_results=10, page_token=token)
            pages.append(page)
            token = page.token
            if token is None:
                break
        return (
            pages,
            store.get_metric_history(run, "m"),
            store.get_metric_history(run, "none"),
            store.get_metric_history(run, "m", max_results=25),
            stage.attempt(store.get_metric_history, run, "m", max_results=1, page_token="rubbish"),
            stage.attempt(store.get_metric_history, run, "m", max_results=0),
            stage.attempt(store.get_metric_history, run, "m", page_token="x"),
        )

    assert [len(page["items"]) for page in both(scenario)[0]] == [10, 10, 5]


def test_histories_for_the_user_interface(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store = stage.store
        runs = [stage.run(name=str(number)) for number in range(3)]
        for number, run in enumerate(runs):
            points = [Metric("m", step * 1.5 + number, T0 + step, step) for step in range(0, 40, number + 1)]
            stage.client.log_batch(run, points)
        order = {run: number for number, run in enumerate(runs)}

        def plain(found: Any) -> Any:
            told = [(order[point.run_id], point.key, point.value, point.timestamp, point.step) for point in found]
            return sorted(told, key=lambda point: (point[0], point[4]))

        return (
            plain(store.get_metric_history_bulk(runs, "m", 1000)),
            len(store.get_metric_history_bulk(runs, "m", 5)),
            store.get_max_step_for_metric(runs[0], "m"),
            store.get_max_step_for_metric(runs[0], "none"),
            plain(store.get_metric_history_bulk_interval_from_steps(runs[1], "m", [0, 2, 3, 8], 100)),
            plain(store.get_metric_history_bulk_interval_from_steps(runs[1], "m", [0, 2, 3, 8], 2)),
            plain(store.get_metric_history_bulk_interval(runs, "m", 10, None, None)),
            plain(store.get_metric_history_bulk_interval(runs, "m", 5, 3, 21)),
            plain(store.get_metric_history_bulk_interval(runs, "m", 1000, 3, 21)),
        )

    both(scenario)


@pytest.mark.parametrize(
    ("metrics", "params", "tags"),
    [(1000, 0, 0), (1001, 0, 0), (0, 100, 0), (0, 101, 0), (0, 0, 100), (0, 0, 101), (900, 100, 1)],
)
def test_limits_of_a_batch(both: Both, metrics: int, params: int, tags: int) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        answer = stage.attempt(
            stage.store.log_batch,
            run,
            [Metric(f"m{number}", number, T0, 0) for number in range(metrics)],
            [Param(f"p{number}", "1") for number in range(params)],
            [RunTag(f"t{number}", "1") for number in range(tags)],
        )
        return answer, stage.client.get_run(run)

    both(scenario)


def test_a_thousand_and_one_known_names_are_one_too_many(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        stage.client.log_metric(run, "m", 0.0, T0, 0)
        stage.client.log_batch(run, [Metric("m", 1.0, T0, 0)])
        return stage.attempt(stage.store.log_batch, run, [Metric("m", 1.0, T0, step) for step in range(1001)], [], [])

    both(scenario)


def test_the_client_cuts_long_batches(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        answer = stage.attempt(
            stage.client.log_batch, run, [Metric("m", 1.0, T0, step) for step in range(1500)], [], []
        )
        return answer, len(stage.client.get_metric_history(run, "m"))

    both(scenario)


def test_one_bad_entry_spoils_its_whole_batch(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, store = stage.run(), stage.store
        good = ([Metric("m", 1, T0, 0)], [Param("p", "1")], [RunTag("t", "1")])
        bad = [
            ([Metric("m", "x", T0, 0)], [], []),
            ([Metric("m", 1, -5, 0)], [], []),
            ([], [Param("a@", "1")], []),
            ([], [Param("p", "1"), Param("p", "1")], []),
            ([], [Param("p", "1"), Param("p", "2")], []),
            ([], [], [RunTag("a@", "1")]),
        ]
        refusals = [
            stage.attempt(store.log_batch, run, *(one + other for one, other in zip(good, more, strict=True)))
            for more in bad
        ]
        return refusals, stage.client.get_run(run)

    both(scenario)


def test_a_batch_with_a_changed_param_keeps_what_sqlite_keeps(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, store = stage.run(), stage.store
        store.log_batch(run, [], [Param("p", "1")], [])
        answer = stage.attempt(
            store.log_batch, run, [Metric("m", 1, T0, 0)], [Param("new", "1"), Param("p", "2")], [RunTag("t", "1")]
        )
        return answer, stage.client.get_run(run)

    both(scenario)


def test_empty_batches_are_fine(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return stage.attempt(stage.store.log_batch, run, [], [], []), stage.attempt(stage.client.log_batch, run)

    assert both(scenario) == [None, None]


@pytest.mark.parametrize("what", ["metrics", "params", "tags"])
@pytest.mark.parametrize("value", [None, "text", 1, [None], [{"key": "a", "value": "1"}]])
def test_batches_of_the_wrong_types(both: Both, what: str, value: Any) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        arguments = {"metrics": [], "params": [], "tags": [], what: value}
        return (
            stage.attempt(stage.store.log_batch, run, **arguments),
            stage.attempt(stage.client.log_batch, run, **arguments),
            stage.client.get_run(run),
        )

    both(scenario)


def test_metrics_with_datasets_and_models(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        model = client.create_logged_model("0", "model", run)
        client.log_metric(run, "m", 1.0, T0, 1, dataset_name="d", dataset_digest="x", model_id=model.model_id)
        client.log_metric(run, "m", 2.0, T0, 2, model_id=model.model_id)
        client.log_metric(run, "n", 3.0, T0, 1)
        client.log_batch(run, [Metric("o", 4.0, T0, 1, model_id=model.model_id)])
        return (
            client.get_metric_history(run, "m"),
            client.get_run(run),
            client.get_logged_model(model.model_id).metrics,
        )

    both(scenario)
