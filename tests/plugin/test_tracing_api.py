"""Traces as scripts make, mark and look for them: the functions of ``mlflow`` and of its client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import mlflow
import pytest
from mlflow.entities import AssessmentSource, Expectation, Feedback, SpanEvent, SpanType
from tests.plugin.differential import T0, Scenario, Stage

from mlferry.plugin import versions

pytestmark = [
    pytest.mark.skipif(not versions.SQL_TRACES, reason="this MLflow keeps traces otherwise"),
    pytest.mark.filterwarnings("ignore"),  # what MLflow says of its own models, once
]

Both = Callable[[Scenario], Any]

HUMAN = AssessmentSource("HUMAN", "someone")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spans are sent where they end: on SQLite, MLflow's threads lose a trace now and then."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.tracing.reset()
    yield
    mlflow.tracing.reset()


def told(trace: Any) -> Any:
    """A trace without what depends on the clock and the machine."""
    if type(trace).__name__ != "Trace":
        return trace
    info = trace.info
    kept = {key: value for key, value in info.trace_metadata.items() if "source.git" not in key and "size" not in key}
    spans = [
        (span.name, span.span_type, span.inputs, span.outputs, str(span.status), sorted(span.attributes))
        for span in trace.data.spans
    ]
    return info.state, info.request_preview, info.response_preview, info.client_request_id, info.tags, kept, spans


def assessed(assessment: Any) -> Any:
    """An assessment without its times and the id of its span."""
    if not hasattr(assessment, "to_dictionary"):
        return assessment
    found = assessment.to_dictionary()
    return {**found, **{key: bool(found.get(key)) for key in ("create_time", "last_update_time", "span_id")}}


def test_spans_that_are_begun_and_ended_by_hand(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client, experiment = stage.client, stage.experiment()
        root = client.start_trace(
            "root", SpanType.CHAIN, {"q": "ü"}, {"a": 1}, {"t": "1"}, experiment, start_time_ns=T0 * 1_000_000
        )
        child = client.start_span("child", root.trace_id, root.span_id, SpanType.LLM, {"x": [1]}, {"b": None})
        child.add_event(SpanEvent("event", attributes={"k": "v"}))
        client.end_span(root.trace_id, child.span_id, {"y": 2.5}, {"c": True}, "ERROR")
        twice = stage.attempt(client.end_span, root.trace_id, child.span_id)
        client.end_trace(root.trace_id, "done", {"d": "x" * 5000}, "OK", end_time_ns=(T0 + 7) * 1_000_000)
        mlflow.flush_trace_async_logging()
        trace = client.get_trace(root.trace_id)
        return [
            told(trace),
            (trace.info.request_time, trace.info.execution_duration, trace.info.experiment_id),
            twice,
            stage.attempt(client.end_trace, root.trace_id),
            stage.attempt(client.end_trace, "tr-absent"),
            stage.attempt(client.start_span, "late", root.trace_id, "absent"),
            stage.attempt(client.start_span, "orphan", "tr-absent", "absent"),
        ]

    both(scenario)


def test_spans_within_functions_and_without_a_context(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        seen: list[Any] = [mlflow.get_last_active_trace_id(thread_local=True) is None, mlflow.get_active_trace_id()]
        with mlflow.start_span("outer", SpanType.AGENT, {"a": "1"}) as outer:
            outer.set_inputs({"deep": {"er": [1, None, "ü"]}})
            seen.append(mlflow.get_active_trace_id() == outer.trace_id)
            seen.append(mlflow.get_current_active_span().span_id == outer.span_id)
            loose = mlflow.start_span_no_context("loose", inputs=1, parent_span=outer, tags={"ignored": "1"})
            loose.end(outputs=[1, 2])
            mlflow.update_current_trace(
                {"tag": "1"}, {"mlflow.trace.session": "s"}, "mine", "asked", "answered", state="ERROR"
            )
        own = mlflow.start_span_no_context("own", tags={"t": "2"}, metadata={"m": "3"})
        own.end(status="ERROR")
        mlflow.flush_trace_async_logging()
        seen += [told(mlflow.get_trace(span.trace_id)) for span in (outer, own)]
        seen.append(mlflow.get_last_active_trace_id() == own.trace_id)
        return seen

    both(scenario)


def test_traces_that_were_made_elsewhere(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        mlflow.log_trace(
            "logged", "asked", {"y": 1}, {"step": 2}, None, {"t": "1"}, start_time_ms=T0, execution_time_ms=9
        )
        with mlflow.start_span("remote") as remote:
            remote.set_outputs(7)
        mlflow.flush_trace_async_logging()
        time.sleep(0.002)  # so that their order is by time
        with mlflow.start_span("local"):
            mlflow.add_trace(mlflow.get_trace(remote.trace_id))
            refused = stage.attempt(mlflow.add_trace, {"info": {}, "data": {}})
        mlflow.flush_trace_async_logging()
        found = mlflow.search_traces(return_type="list", order_by=["timestamp_ms"])
        return [told(trace) for trace in found], refused, [trace.info.execution_duration for trace in found[:1]]

    both(scenario)


def test_assessments_by_the_functions_of_mlflow(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with mlflow.start_span("asked") as span:
            mlflow.log_feedback(trace_id=span.trace_id, name="within", value=2**53 + 1)
            mlflow.log_expectation(trace_id=span.trace_id, name="also within", value=[2**70, "ü"])
        mlflow.flush_trace_async_logging()
        one, ids, seen = span.trace_id, {}, []

        def made(name: str, assessment: Any) -> Any:
            ids[name] = assessment.assessment_id
            return assessment

        for act in (
            lambda: made("f", mlflow.log_feedback(trace_id=one, name="f", value=1, source=HUMAN, rationale="why")),
            lambda: made("e", mlflow.log_expectation(trace_id=one, name="e", value={"a": [1, "ü"]}, source=HUMAN)),
            lambda: made("a", mlflow.log_assessment(one, Feedback("a", {"x": "y"}, metadata={"k": "v"}))),
            lambda: made("raised", mlflow.log_feedback(trace_id=one, name="r", error=ValueError("no"))),
            lambda: made("on a span", mlflow.log_feedback(trace_id=one, name="s", value="x", span_id=span.span_id)),
            lambda: mlflow.log_feedback(trace_id=one, name="neither"),
            lambda: mlflow.log_expectation(trace_id=one, name="neither", value=None),
            lambda: mlflow.log_feedback(trace_id="tr-absent", name="f", value=1),
            lambda: mlflow.log_issue(trace_id=one, issue_id="iss-absent"),
            lambda: made("o", mlflow.override_feedback(trace_id=one, assessment_id=ids["f"], value=2, source=HUMAN)),
            lambda: mlflow.override_feedback(trace_id=one, assessment_id=ids["f"], value=3),
            lambda: mlflow.override_feedback(trace_id=one, assessment_id="a-absent", value=3),
            lambda: mlflow.update_assessment(one, ids["o"], Feedback("f", 4, rationale="changed", metadata={"z": "1"})),
            lambda: mlflow.update_assessment(one, ids["e"], Expectation("renamed", "other")),
            lambda: mlflow.update_assessment(one, ids["e"], Feedback("f", 4)),
            lambda: mlflow.update_assessment(one, "a-absent", Feedback("f", 4)),
            lambda: mlflow.get_assessment(one, ids["f"]),
            lambda: mlflow.get_assessment(one, "a-absent"),
            lambda: mlflow.delete_assessment(one, ids["o"]),
            lambda: mlflow.get_assessment(one, ids["f"]),
            lambda: mlflow.delete_assessment(one, "a-absent"),
        ):
            answer = stage.attempt(act)
            seen.append(assessed(answer))
        seen.append([assessed(found) for found in mlflow.get_trace(one).search_assessments(all=True)])
        seen.append(
            [
                len(mlflow.search_traces(filter_string=text))
                for text in ("feedback.f = '1'", "feedback.s = 'x'", "feedback.within = '9007199254740993'")
            ]
        )
        return seen

    both(scenario)


def test_sessions_and_runs_of_traces(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client, ids = stage.client, []
        with mlflow.start_run() as run:
            for number in range(4):
                with mlflow.start_span(f"turn {number}") as span:
                    mlflow.update_current_trace(metadata={"mlflow.trace.session": f"s{number % 2}"})
                ids.append(span.trace_id)
                time.sleep(0.002)  # so that their order is by time
        mlflow.flush_trace_async_logging()
        other = stage.run(name="other")
        sessions = mlflow.search_sessions(locations=["0"])
        return [
            [(session.id, [trace.data.spans[0].name for trace in session.traces]) for session in sessions],
            len(mlflow.search_sessions(max_results=1, locations=["0"], include_spans=False)),
            stage.attempt(client.link_traces_to_run, ids[:2], other),
            [len(mlflow.search_traces(run_id=run_id)) for run_id in (run.info.run_id, other)],
            stage.attempt(mlflow.search_traces, run_id="absent"),
            stage.attempt(mlflow.search_traces, return_type="bad"),
            stage.attempt(mlflow.search_traces, max_results=0),
            stage.attempt(client.delete_traces, "0", trace_ids=[*ids[:1], "tr-absent"]),
            stage.attempt(client.delete_trace_tag, ids[1], "absent"),
            len(mlflow.search_traces()),
        ]

    both(scenario)


def test_traces_of_functions(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        @mlflow.trace(name="outer", attributes={"a": 1})
        def outer(x: int) -> int:
            mlflow.update_current_trace(tags={"t": "1"}, metadata={"mlflow.trace.session": "s"})
            return inner(x) + 1

        @mlflow.trace(span_type="TOOL")
        def inner(x: int) -> int:
            if x > 1:
                raise ValueError("too much")
            return x

        with mlflow.start_run():
            outer(1)
        stage.attempt(outer, 2)
        mlflow.flush_trace_async_logging()
        traces = mlflow.search_traces(return_type="list", order_by=["timestamp"])
        first = mlflow.get_trace(traces[0].info.trace_id)
        mlflow.log_feedback(trace_id=first.info.trace_id, name="good", value=True)
        mlflow.set_trace_tag(first.info.trace_id, "after", "1")
        return [
            [(trace.info.tags, trace.info.state, trace.info.request_preview) for trace in traces],
            [sorted(trace.info.trace_metadata) for trace in traces],
            [[(one.name, one.span_type, one.inputs, one.outputs, one.status) for one in t.data.spans] for t in traces],
            mlflow.search_traces(filter_string="feedback.good = 'true'", return_type="list")[0].info.tags["after"],
            list(mlflow.search_traces(max_results=1).columns),
            stage.attempt(mlflow.get_trace, "tr-" + "0" * 32),
        ]

    both(scenario)
