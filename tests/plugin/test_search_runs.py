"""search_runs: each comparator, orders, views, pages, and what is wrong with a query."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag, ViewType
from tests.plugin.differential import T0, Scenario, Stage

Both = Callable[[Scenario], Any]


def some_runs(stage: Stage) -> str:
    """Six runs that differ in everything that can be searched for; returns their experiment."""
    experiment, client = stage.experiment(), stage.client
    for number, name in enumerate(["alpha", "beta", "Gamma", "delta", "alp%ha", "ünï"]):
        run = stage.run(experiment, name, start_time=T0 + number * 10, tags={"even": str(number % 2 == 0)})
        values = [Metric("m", number - 2.5, T0, 0), Metric("m", float(number), T0, 1)]
        values += [Metric("only even", 1.0, T0, 0)] if number % 2 == 0 else []
        values += [Metric("odd values", (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300)[number], T0, 0)]
        params = [Param("p", str(number)), Param("word", name), Param("with space", "x")]
        client.log_batch(run, values, params, [RunTag("t", f"t{number % 3}"), RunTag("a.b/c", name)])
        if number < 4:
            dataset = Dataset(f"d{number % 2}", f"digest{number}", "local", "source")
            client.log_inputs(
                run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train" if number else "test")])]
            )
        if number in (1, 2):
            client.set_terminated(run, ["FINISHED", "FAILED"][number - 1], T0 + 1000 - number)
        if number == 3:
            client.delete_run(run)
    return experiment


def names(answer: Any) -> Any:
    return [run.info.run_name for run in answer] if isinstance(answer, list) else answer


FILTERS = [
    "",
    None,
    "metrics.m = 3",
    "metrics.m != 3",
    "metrics.m > 1",
    "metrics.m >= 1",
    "metrics.m < 2.5",
    "metrics.m <= 2",
    "metric.m > 1 and metrics.m < 5",
    "metrics.`only even` = 1",
    'metrics."only even" > 0',
    "metrics.`odd values` > 1e308",
    "metrics.`odd values` < 0",
    "metrics.`odd values` = 0",
    "metrics.none > 0",
    "metrics.m = -1",
    "metrics.m = '1'",
    "metrics.m LIKE '1'",
    "metrics.m IN (1, 2)",
    "params.p = '1'",
    "params.p != '1'",
    "params.p = 1",
    "params.p > '1'",
    "params.p IN ('1', '2')",
    "params.word LIKE 'al%'",
    "params.word LIKE 'AL%'",
    "params.word ILIKE 'AL%'",
    "params.word LIKE '%_a'",
    "params.word LIKE 'alp%ha'",
    "params.`with space` = 'x'",
    "parameter.p = '2'",
    "param.none = 'x'",
    "param.none != 'x'",
    "params.p = '1' and tags.t = 't1'",
    "tags.t = 't1'",
    "tags.t != 't1'",
    "tags.t LIKE 't%'",
    "tags.t ILIKE 'T1'",
    "tag.`a.b/c` = 'beta'",
    "tags.t IS NULL",
    "tags.none IS NULL",
    "tags.t IS NOT NULL",
    "params.none IS NULL",
    "params.p IS NOT NULL",
    "tags.mlflow.runName = 'beta'",
    "tags.`mlflow.runName` LIKE '%a'",
    "attributes.status = 'RUNNING'",
    "attribute.status != 'RUNNING'",
    "status = 'FINISHED'",
    "status LIKE 'FIN%'",
    "status ILIKE 'fin%'",
    "status = 'finished'",
    "run_name = 'beta'",
    "attributes.run_name LIKE '%a'",
    "attributes.`run name` ILIKE 'GAMMA'",
    "attributes.\"Run name\" = 'beta'",
    "run_name != 'beta'",
    f"start_time > {T0 + 20}",
    f"attributes.start_time <= {T0 + 10}",
    f"created = {T0 + 10}",
    f"attributes.Created > {T0 + 10}",
    f"end_time < {T0 + 999}",
    "end_time > 0",
    "start_time = 'x'",
    "user_id = 'unknown'",
    "attributes.user_id != 'unknown'",
    "artifact_uri LIKE '%artifacts'",
    "attributes.run_id = 'x'",
    "run_id IN ('x', 'y')",
    "run_id NOT IN ('x')",
    "attributes.lifecycle_stage = 'active'",
    "attributes.no_such = 'x'",
    "dataset.name = 'd1'",
    "datasets.name != 'd1'",
    "dataset.digest = 'digest2'",
    "dataset.name LIKE 'd%'",
    "dataset.name ILIKE 'D0'",
    "dataset.name IN ('d0', 'd1')",
    "dataset.context = 'train'",
    "dataset.name = 'd0' and dataset.context = 'test'",
    "dataset.no_such = 'x'",
    "rubbish",
    "metrics.m >",
    "metrics.m = 1 or metrics.m = 2",
    "metrics.m = 1; params.p = '1'",
    "m = 1",
    "nothing.m = 1",
    "params.p = 'unclosed",
    "metrics.m = nan",
    "'a' = 'a'",
    "params.p == '1'",
    'tags.t = "t1"',
    "tags.even = 'True' and metrics.m > 1 and params.p != '2'",
]


@pytest.mark.parametrize("filter_string", FILTERS)
def test_filters(both: Both, filter_string: str | None) -> None:
    def scenario(stage: Stage) -> Any:
        experiment = some_runs(stage)
        return names(stage.attempt(stage.client.search_runs, [experiment], filter_string))

    both(scenario)


def test_ids_in_filters(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        one, two, three = (stage.run(name=str(number), start_time=T0 + number) for number in range(3))
        return [
            names(stage.attempt(stage.client.search_runs, ["0"], query))
            for query in (
                f"run_id = '{one}'",
                f"attributes.run_id != '{two}'",
                f"run_id IN ('{one}', '{three}')",
                f"run_id NOT IN ('{one}', '{three}')",
                f"run_id LIKE '{two[:20]}%'",
                f"tags.mlflow.parentRunId = '{one}'",
            )
        ]

    both(scenario)


ORDERS = [
    None,
    [],
    ["metrics.m"],
    ["metrics.m DESC"],
    ["metrics.m ASC", "params.p"],
    ["metrics.`only even` DESC", "start_time"],
    ["metrics.`odd values`"],
    ["metrics.`odd values` DESC"],
    ["metrics.none", "start_time"],
    ["params.p DESC"],
    ["params.word"],
    ["params.none", "start_time ASC"],
    ["tags.t", "start_time"],
    ["tags.t DESC", "metrics.m DESC"],
    ["tags.none"],
    ["attributes.start_time"],
    ["start_time DESC"],
    ["attributes.end_time", "start_time"],
    ["end_time DESC", "start_time"],
    ["attribute.status", "start_time"],
    ["status DESC", "start_time"],
    ["run_name"],
    ["attributes.`Run Name` DESC"],
    ["Created"],
    ["user_id", "start_time"],
    ["metrics.m", "metrics.m DESC"],
    ["no_such"],
    ["metrics.m SIDEWAYS"],
    [""],
    ["dataset.name", "start_time"],
    ["metric.m; DROP"],
]


@pytest.mark.parametrize("order_by", ORDERS)
@pytest.mark.parametrize("view", [ViewType.ACTIVE_ONLY, ViewType.ALL])
def test_orders(both: Both, order_by: list[str] | None, view: int) -> None:
    def scenario(stage: Stage) -> Any:
        experiment = some_runs(stage)
        return names(stage.attempt(stage.client.search_runs, [experiment], "", view, order_by=order_by))

    both(scenario)


def test_ties_are_ordered_by_start_time_and_then_by_id(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        runs = [stage.run(name=str(number), start_time=T0 + number // 4) for number in range(8)]
        found = [run.info.run_id for run in stage.client.search_runs(["0"])]
        by_name = [run.info.run_id for run in stage.client.search_runs(["0"], order_by=["metrics.none"])]
        expected = sorted(runs[4:]) + sorted(runs[:4])
        return found == expected, by_name == expected

    assert both(scenario) == [True, True]


def test_pages(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        experiment = some_runs(stage)
        pages, token = [], None
        while True:
            page = stage.client.search_runs([experiment], max_results=2, page_token=token, order_by=["metrics.m"])
            pages.append(names(page))
            token = page.token
            if not token:
                break
        exact = stage.client.search_runs([experiment], max_results=5)
        odd = [stage.attempt(stage.client.search_runs, [experiment], max_results=most) for most in (0, -1, 50_001)]
        return pages, exact.token, odd, stage.attempt(stage.client.search_runs, [experiment], page_token="rubbish")

    assert [len(page) for page in both(scenario)[0]] == [2, 2, 1]


def test_several_experiments_and_none(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        experiment = some_runs(stage)
        stage.run(name="in default", start_time=T0 + 35)
        client = stage.client
        return (
            names(client.search_runs([experiment, "0"])),
            names(client.search_runs(["0"])),
            names(stage.attempt(client.search_runs, [])),
            names(stage.attempt(client.search_runs, ["123456789123456789"])),
            names(stage.attempt(client.search_runs, ["not a number"])),
            names(stage.attempt(client.search_runs, [experiment, experiment])),
            stage.attempt(client.search_runs, experiment),
        )

    both(scenario)


def test_what_is_found_is_what_get_run_shows(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        experiment = some_runs(stage)
        found = stage.client.search_runs([experiment], run_view_type=ViewType.ALL, order_by=["start_time"])
        return found, [stage.client.get_run(run.info.run_id) for run in found]

    found, read = both(scenario)
    assert found["items"] == read
