"""Traces: starting, spans, tags, searches, deletions, assessments and links."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from mlflow.entities import AssessmentSource, Expectation, Feedback, Span, TraceInfo, TraceLocation, TraceState
from mlflow.entities.assessment import Assessment, AssessmentError, ExpectationValue, FeedbackValue
from mlflow.entities.model_registry import PromptVersion
from mlflow.entities.trace_metrics import AggregationType, MetricAggregation, MetricViewType
from tests.plugin.differential import T0, Clock, Scenario, Stage

from mlferry.plugin import versions
from mlferry_spool.records import Spans

pytestmark = pytest.mark.skipif(not versions.SQL_TRACES, reason="this MLflow keeps traces otherwise")

Both = Callable[[Scenario], Any]

HUMAN = AssessmentSource("HUMAN", "someone")


def trace_id(number: int) -> str:
    return f"tr-{number:032x}"


def encoded(number: int, size: int) -> str:
    return base64.b64encode(number.to_bytes(size, "big")).decode()


def span(number: int, name: str = "root", span_id: int = 1, parent: int | None = None, **attributes: Any) -> Span:
    """A span of trace ``number`` that began at T0 + 1 s for each trace."""
    begun = (T0 + number * 1000 + span_id) * 1_000_000
    told = {"mlflow.traceRequestId": trace_id(number), "mlflow.spanType": "LLM", **attributes}
    return Span.from_dict(
        {
            "trace_id": encoded(number, 16),
            "span_id": encoded(span_id, 8),
            "parent_span_id": None if parent is None else encoded(parent, 8),
            "name": name,
            "start_time_unix_nano": begun,
            "end_time_unix_nano": begun + 5_600_000,
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in told.items()},
            "events": [],
        }
    )


def begin(stage: Stage, number: int, experiment: str = "0", **named: Any) -> TraceInfo:
    """Start a trace at T0 + 1 s for each."""
    named.setdefault("state", TraceState.OK)
    named.setdefault("request_time", T0 + number * 1000)
    place = TraceLocation.from_experiment_id(experiment)
    info: TraceInfo = stage.store.start_trace(TraceInfo(trace_id=trace_id(number), trace_location=place, **named))
    return info


def shown(stage: Stage, number: int) -> Any:
    """All that is known of a trace but its spans."""
    return plainly(stage.attempt(stage.store.get_trace_info, trace_id(number)))


def plainly(found: Any) -> Any:
    """Traces and assessments with all their fields, of which they show some to those who ask in MLflow's old way."""
    return dataclasses.asdict(found) if isinstance(found, (TraceInfo, Assessment)) else found


def found(stage: Stage, *args: Any, **named: Any) -> Any:
    """Which traces a search finds, in order, and whether there are more."""
    answer = stage.attempt(stage.store.search_traces, *args, **named)
    return ([info.trace_id for info in answer[0]], bool(answer[1])) if isinstance(answer, tuple) else answer


def test_a_trace_from_its_start_to_its_deletion(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store = stage.store
        begin(
            stage,
            1,
            execution_duration=7,
            request_preview="asked",
            response_preview="answered",
            client_request_id="mine",
            trace_metadata={"mlflow.trace.session": "s", "k": "v", "mlflow.user": "me"},
            tags={"mlflow.traceName": "named", "a": "1", "ü": "\u2603"},
        )
        seen = [shown(stage, 1)]
        for act in (
            lambda: store.set_trace_tag(trace_id(1), "a", "2"),
            lambda: store.set_trace_tag(trace_id(1), "b", "x" * 9000),
            lambda: store.set_trace_tag(trace_id(1), "mlflow.traceName", "renamed"),
            lambda: store.delete_trace_tag(trace_id(1), "a"),
            lambda: store.delete_trace_tag(trace_id(1), "a"),
            lambda: store.delete_trace_tag(trace_id(1), "mlflow.traceName"),
            lambda: store.delete_trace_tag(trace_id(1), "mlflow.traceName"),
            lambda: store.delete_trace_tag(trace_id(9), "a"),
            lambda: store.set_trace_tag(trace_id(1), "bad\nkey" * 300, "x"),
            lambda: store.set_trace_tag(trace_id(1), None, "x"),
            lambda: store.set_trace_tag(trace_id(1), "n", None),
            lambda: store.set_trace_tag(trace_id(1), "n", 7),
            lambda: store.get_trace(trace_id(9)),
            lambda: store.get_trace_info(trace_id(9)),
            lambda: store.delete_traces("0", trace_ids=[trace_id(1)]),
            lambda: store.delete_traces("0", trace_ids=[trace_id(1)]),
        ):
            seen += [stage.attempt(act), shown(stage, 1)]
        return seen

    both(scenario)


def test_spans_before_and_after_the_start(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store, seen = stage.store, []
        usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        root = span(
            1, **{"mlflow.spanInputs": {"q": "why"}, "mlflow.spanOutputs": "so", "mlflow.chat.tokenUsage": usage}
        )
        for act in (
            lambda: store.log_spans("0", [span(1, "child", 2, 1)]),
            lambda: store.log_spans("0", [root]),
            lambda: begin(stage, 1, request_time=T0 + 5, execution_duration=9, tags={"t": "1"}),
            lambda: store.log_spans("0", [span(1, "late", 3, 1), span(2, "other")]),
            lambda: store.log_spans("0", []),
            lambda: store.log_spans("0", [span(1, "renamed", 3, 1)]),
            lambda: store.log_spans("77", [span(3)]),
            lambda: begin(stage, 4),
            lambda: store.log_spans("0", [span(4)]),
        ):
            told = stage.attempt(act)
            seen.append(None if isinstance(told, (list, TraceInfo)) else told)
            seen += [shown(stage, number) for number in (1, 2, 3, 4)]
        traces = store.batch_get_traces([trace_id(number) for number in (2, 9, 1, 2)])
        seen.append([[one.to_dict() for one in trace.data.spans] for trace in traces])
        seen.append([info.trace_id for info in store.batch_get_trace_infos([trace_id(2), trace_id(1)])])
        seen.append([one.to_dict() for one in store.get_trace(trace_id(1)).data.spans])
        return seen

    both(scenario)


def test_many_traces_that_are_first_asked_for_after_all_were_logged(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store, other = stage.store, stage.experiment("other")
        usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
        for number in range(1, 130):
            place = other if number % 3 == 0 else "0"
            told = {"mlflow.spanInputs": {"q": number}, "mlflow.chat.tokenUsage": usage, "mlflow.spanOutputs": "so"}
            store.log_spans(place, [span(number, f"child {number}", 2, 1)])
            store.log_spans(place, [span(number, **told)])
            if number % 4:
                begin(stage, number, place, request_time=T0 + number, execution_duration=number % 7)
                store.set_trace_tag(trace_id(number), "number", str(number))
        places = ["0", other]
        traces, _ = store.search_traces(places, max_results=500, order_by=["timestamp_ms", "attributes.request_id"])
        return [
            [plainly(info) for info in traces],
            [[one.to_dict() for one in store.get_trace(trace_id(number)).data.spans] for number in (3, 4, 100)],
            found(stage, places, "span.name = 'child 77'"),
            found(stage, places, "tags.number = '21'"),
        ]

    both(scenario)


def test_a_trace_that_sql_refuses_hides_no_other(spool: Stage) -> None:
    for number in range(1, 4):
        spool.store.log_spans("0", [span(number)])
        begin(spool, number)
    spool.store.journal.put(None, Spans(T0, trace_id(4), b"these are no spans"))
    assert found(spool, ["0"]) == ([trace_id(3), trace_id(2), trace_id(1)], False)
    assert found(spool, ["0"], "span.name = 'root'") == ([trace_id(3), trace_id(2), trace_id(1)], False)


def test_traces_of_experiments_that_are_deleted_or_absent(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        experiment = stage.experiment()
        begin(stage, 1, experiment)
        stage.client.delete_experiment(experiment)
        return [
            stage.attempt(begin, stage, 2, experiment),
            stage.attempt(begin, stage, 3, "123"),
            found(stage, [experiment]),
            found(stage, ["123"]),
            found(stage, []),
            shown(stage, 1),
        ]

    both(scenario)


def populated(stage: Stage) -> str:
    """Traces to search for; returns the run that two of them are linked to."""
    store, run = stage.store, stage.run()
    other = stage.experiment("other")
    for number in range(1, 7):
        if number != 4:
            attributes = {"model": f"m{number}", "mlflow.spanInputs": {"x": number}, "mlflow.spanOutputs": "ünder_%"}
            child = span(number, "child%" if number % 2 else "Child_", 2, 1, **attributes)
            store.log_spans("0", [span(number, f"root {number}", **attributes), child])
        begin(
            stage,
            number,
            other if number == 6 else "0",
            request_time=T0 + (number // 2) * 1000,
            execution_duration=number * 10 if number != 3 else None,
            state=(TraceState.OK, TraceState.ERROR, TraceState.IN_PROGRESS)[number % 3],
            tags={"mlflow.traceName": f"Name{number % 2}", "k": f"v{number}", **({"only": "x"} if number == 2 else {})},
            trace_metadata={"mlflow.sourceRun": run, "meta": "A"} if number == 1 else {"meta": f"b{number}"},
            client_request_id=f"c{number}",
        )
    store.link_traces_to_run([trace_id(2), trace_id(5)], run)
    store.create_assessment(Feedback("right", True, trace_id=trace_id(1), source=HUMAN))
    store.create_assessment(Feedback("right", False, trace_id=trace_id(2), source=HUMAN))
    store.create_assessment(Expectation("wanted", "yes", trace_id=trace_id(2), source=HUMAN))
    store.create_assessment(Feedback("score", 0.5, trace_id=trace_id(5), source=HUMAN))
    store.link_prompts_to_trace(trace_id(5), [PromptVersion("p", 1, "x"), PromptVersion("p", 2, "x")])
    return run


FILTERS = [
    *(
        None,
        "",
        "status = 'OK'",
        "status != 'OK'",
        "status IN ('OK', 'ERROR')",
        "attributes.status = 'ok'",
        "status > 'A'",
    ),
    *("trace.name = 'Name1'", "name = 'Name1'", "name LIKE 'name%'", "name ILIKE 'name%'", "name RLIKE '^N.*1$'"),
    *("timestamp = 1600000001000", "timestamp_ms >= 1600000001000", "timestamp < 1600000002000", "timestamp = 'x'"),
    *("timestamp != 1600000001000", "execution_time > 20", "execution_time_ms = 10", "end_time > 1600000001000"),
    *("tag.k = 'v1'", "tags.k != 'v1'", "tags.k LIKE 'v%'", "tags.k ILIKE 'V%'", "tags.only = 'x'", "tags.only != 'x'"),
    *("tag.only IS NULL", "tag.only IS NOT NULL", "tags.`k` = 'v2'", "tags.k RLIKE 'v[12]'", "tag.absent = 'x'"),
    *("metadata.meta = 'A'", "request_metadata.meta = 'A'", "metadata.meta LIKE 'b%'", "metadata.absent IS NULL"),
    *(
        "span.name = 'child%'",
        "span.name LIKE 'child%'",
        "span.name ILIKE 'child%'",
        "span.type = 'LLM'",
        "span.name != 'x'",
    ),
    *(
        "span.status = 'OK'",
        "span.attributes.model = 'm1'",
        "span.attributes.model LIKE '%m2%'",
        "span.content LIKE '%x%'",
    ),
    *(
        "span.name = 'root 1' AND span.attributes.model = 'm2'",
        "span.type IN ('LLM', 'TOOL')",
        "trace.text LIKE '%ünder%'",
    ),
    *("feedback.right = 'true'", "feedback.right = 'false'", "feedback.right != 'true'", "feedback.score > 0.4"),
    *(
        "feedback.absent IS NULL",
        "feedback.right IS NOT NULL",
        "expectation.wanted = 'yes'",
        "expectation.wanted = 'no'",
    ),
    *(
        "assessment.right = 'true'",
        "run_id = 'absent'",
        "prompt = 'p/1'",
        "prompt = 'p/9'",
        "prompt = 'p'",
        "prompt LIKE 'p%'",
    ),
    *("client_request_id = 'c1'", "client_request_id LIKE 'c%'", "trace.client_request_id = 'c2'", "request_id = 'x'"),
    *(
        "name = 'Name1' AND tag.k = 'v1' AND status = 'ERROR'",
        "name = 'a' OR name = 'b'",
        "bad = 'x'",
        "name",
        "name = x",
    ),
    *("trace.status = 'OK'", "request_time > 0", "experiment_id = '0'", "run_id != 'x'", "session = 'x'", "user = 'x'"),
]


def test_searching_traces(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = populated(stage)
        seen = {str(wanted): found(stage, ["0"], wanted) for wanted in FILTERS}
        seen["run"] = found(stage, ["0"], f"run_id = '{run}'")
        seen["source run"] = found(stage, ["0"], f"metadata.`mlflow.sourceRun` = '{run}'")
        seen["assessed"] = [shown(stage, number) for number in (1, 2, 5)]
        return seen

    both(scenario)


ORDERS = [
    *(
        None,
        [],
        ["timestamp"],
        ["timestamp DESC"],
        ["timestamp_ms ASC", "name"],
        ["name DESC", "timestamp"],
        ["status"],
    ),
    *(["execution_time"], ["execution_time DESC"], ["tag.only"], ["tag.only DESC"], ["tag.k DESC"], ["metadata.meta"]),
    *(["bad"], ["timestamp", "timestamp DESC"], ["trace.name"], ["end_time"], ["tag.k bad"], ["request_id"]),
    *(["client_request_id DESC"], ["span.name"], ["experiment_id", "timestamp"], ["run_id"]),
]


def test_ordering_and_paging_traces(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        populated(stage)
        store, seen = stage.store, {}
        everywhere = [experiment.experiment_id for experiment in stage.client.search_experiments()]
        for order in ORDERS:
            seen[str(order)] = found(stage, everywhere, order_by=order)
        for most in (1, 2, 3, 6, 7, 0, -1, None, "2", 501, 50_001):
            seen[f"most {most}"] = found(stage, everywhere, max_results=most)
        token = None
        for page in range(4):
            infos, token = store.search_traces(everywhere, max_results=3, page_token=token)
            seen[f"page {page}"] = [info.trace_id for info in infos], bool(token)
            if token is None:
                break
        seen["bad token"] = found(stage, everywhere, page_token="bad")
        seen["locations"] = found(stage, locations=everywhere)
        seen["both"] = found(stage, ["0"], locations=["0"])
        seen["neither"] = found(stage)
        seen["model"] = found(stage, ["0"], model_id="m-1")
        return seen

    both(scenario)


@pytest.mark.parametrize(
    "which",
    [
        {"trace_ids": []},
        {"trace_ids": [trace_id(1), trace_id(9)]},
        {"max_timestamp_millis": T0 + 1000},
        {"max_timestamp_millis": T0 + 1000, "max_traces": 1},
        {"max_timestamp_millis": T0 + 9000, "max_traces": 0},
        {"max_traces": 2},
        {"max_timestamp_millis": T0, "trace_ids": [trace_id(1)]},
        {},
    ],
    ids=str,
)
def test_deleting_traces(both: Both, which: dict[str, Any]) -> None:
    def scenario(stage: Stage) -> Any:
        for number in range(1, 5):
            begin(stage, number, request_time=T0 + (number // 2) * 1000)
        begin(stage, 5, stage.experiment("other"))
        told = stage.attempt(stage.store.delete_traces, "0", **which)
        again = stage.attempt(stage.client.delete_traces, "0", **which)
        left = [number for number in range(1, 6) if isinstance(shown(stage, number), dict)]
        return told, again, left, stage.attempt(begin, stage, 1).trace_id, found(stage, ["0"])

    both(scenario)


def test_assessments(both: Both, clock: Clock) -> None:
    def scenario(stage: Stage) -> Any:
        store, one, ids = stage.store, trace_id(1), {}
        clock.now = T0
        begin(stage, 1)
        begin(stage, 2)

        def create(name: str, assessment: Any) -> Any:
            clock.now += 1000
            made = store.create_assessment(assessment)
            ids[name] = made.assessment_id
            return made

        def update(name: str, **changes: Any) -> Any:
            clock.now += 1000
            return store.update_assessment(one, ids.get(name, name), **changes)

        feedback = Feedback("f", 0.5, trace_id=one, source=HUMAN, rationale="why", metadata={"a": "1"}, span_id="s")
        failed = Feedback("e", error=AssessmentError("CODE", "words", "trace"), trace_id=one, source=HUMAN)
        seen = []
        for act in (
            lambda: create("f", feedback),
            lambda: create("e", failed),
            lambda: create("x", Expectation("x", {"deep": [1, None]}, trace_id=one, source=HUMAN)),
            lambda: create("no trace", Feedback("f", 1, trace_id=trace_id(9), source=HUMAN)),
            lambda: create("bad", Feedback("f", 1, trace_id=one, source=HUMAN, overrides="a-absent")),
            lambda: create("o", Feedback("f", 0.7, trace_id=one, source=HUMAN, overrides=ids["f"])),
            lambda: update("f", name="g", rationale="because", metadata={"b": "2"}),
            lambda: update("f", feedback=FeedbackValue(0.9)),
            lambda: update("x", expectation=ExpectationValue("new")),
            lambda: update("x", feedback=FeedbackValue(1)),
            lambda: update("f", expectation=ExpectationValue(1)),
            lambda: update("f", expectation=ExpectationValue(1), feedback=FeedbackValue(1)),
            lambda: update("f"),
            lambda: update("a-absent", name="n"),
            lambda: store.update_assessment(trace_id(9), ids["f"], name="n"),
            lambda: store.update_assessment(trace_id(2), ids["f"], name="n"),
            lambda: store.get_assessment(one, ids["f"]),
            lambda: store.get_assessment(one, "a-absent"),
            lambda: store.get_assessment(trace_id(9), ids["f"]),
            lambda: store.delete_assessment(one, "a-absent"),
            lambda: store.delete_assessment(trace_id(9), ids["f"]),
            lambda: store.delete_assessment(trace_id(2), ids["f"]),
            lambda: store.delete_assessment(one, ids["o"]),
            lambda: store.delete_assessment(one, ids["o"]),
        ):
            told = stage.attempt(act)
            seen += [plainly(told), shown(stage, 1)]
        return seen

    both(scenario)


def test_links_of_traces(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store, run = stage.store, stage.run()
        begin(stage, 1)
        prompt = PromptVersion("p", 1, "x")
        return [
            stage.attempt(store.link_traces_to_run, [trace_id(1)], run),
            stage.attempt(store.link_traces_to_run, [trace_id(1)], run),
            stage.attempt(store.link_traces_to_run, [], run),
            stage.attempt(store.link_traces_to_run, [trace_id(n) for n in range(101)], run),
            stage.attempt(store.link_traces_to_run, [trace_id(9)], run),
            stage.attempt(store.link_traces_to_run, [trace_id(1)], "absent"),
            stage.attempt(store.link_prompts_to_trace, trace_id(1), [prompt]),
            stage.attempt(store.link_prompts_to_trace, trace_id(1), [prompt]),
            stage.attempt(store.link_prompts_to_trace, trace_id(1), []),
            stage.attempt(store.link_prompts_to_trace, trace_id(9), [prompt]),
            stage.attempt(store.link_prompts_to_trace, trace_id(9), []),
            found(stage, ["0"], f"run_id = '{run}'"),
            found(stage, ["0"], "run_id = 'absent'"),
            found(stage, ["0"], "prompt = 'p/1'"),
            shown(stage, 1),
        ]

    both(scenario)


def test_statistics_of_traces(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        populated(stage)
        store, seen = stage.store, []
        count, mean = MetricAggregation(AggregationType.COUNT), MetricAggregation(AggregationType.AVG)
        for view, metric, aggregation, dimensions in (
            (MetricViewType.TRACES, "trace_count", count, None),
            (MetricViewType.TRACES, "latency", mean, ["trace_name"]),
            (MetricViewType.SPANS, "span_count", count, ["span_name"]),
            (MetricViewType.ASSESSMENTS, "assessment_count", count, ["assessment_name"]),
            (MetricViewType.TRACES, "bad", count, None),
        ):
            told = stage.attempt(store.query_trace_metrics, ["0"], view, metric, [aggregation], dimensions)
            seen.append([vars(point) for point in told] if isinstance(told, list) else told)
        correlated = stage.attempt(store.calculate_trace_filter_correlation, ["0"], "name = 'Name1'", "status = 'OK'")
        seen += [vars(correlated), stage.attempt(store.find_completed_sessions, "0", 0, 2 * T0)]
        seen.append(stage.attempt(store.calculate_trace_filter_correlation, ["0"], "bad", "status = 'OK'"))
        return seen

    both(scenario)
