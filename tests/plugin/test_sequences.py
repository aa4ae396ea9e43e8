"""Any sequence of calls leaves a run on a spool as it leaves it on SQLite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.entities import Metric, Param, RunStatus, RunTag, ViewType
from tests.examples import examples
from tests.plugin.differential import T0, Scenario, Stage

Both = Callable[[Scenario], Any]

keys = st.sampled_from(["a", "b", "mlflow.runName", "bad@", ""])
texts = st.sampled_from(["", "x", "y", "ü", "x" * 7000])
values = st.sampled_from([0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-300])
times = st.integers(0, 3).map(lambda after: T0 + after)
metrics = st.builds(Metric, keys, values, times, st.integers(-2, 3))
params = st.builds(Param, keys, texts)
tags = st.builds(RunTag, keys, texts)
statuses = st.sampled_from([RunStatus.RUNNING, RunStatus.FINISHED, RunStatus.FAILED, RunStatus.SCHEDULED])
calls = st.one_of(
    st.tuples(st.just("log_metric"), metrics),
    st.tuples(st.just("log_param"), params),
    st.tuples(st.just("set_tag"), tags),
    st.tuples(st.just("delete_tag"), keys),
    st.tuples(
        st.just("log_batch"), st.lists(metrics, max_size=4), st.lists(params, max_size=2), st.lists(tags, max_size=3)
    ),
    st.tuples(st.just("update_run_info"), statuses, times, st.sampled_from([None, "", "renamed"])),
    st.tuples(st.just("delete_run")),
    st.tuples(st.just("restore_run")),
)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1), calls), max_size=12))
def test_any_sequence_of_calls(both: Both, sequence: list[tuple[int, tuple[Any, ...]]]) -> None:
    def scenario(stage: Stage) -> Any:
        runs = [stage.run(name="one", start_time=T0), stage.run(name="two", start_time=T0 + 1)]
        answers = []
        for number, (name, *arguments) in sequence:
            answer = stage.attempt(getattr(stage.store, name), runs[number], *arguments)
            answers.append(answer)
        histories = [stage.client.get_metric_history(run, key) for run in runs for key in ("a", "b")]
        found = stage.client.search_runs(["0"], run_view_type=ViewType.ALL, order_by=["start_time"])
        ours = [run for run in found if run.info.run_id in runs]
        return answers, [stage.client.get_run(run) for run in runs], histories, ours

    both(scenario)
