"""Attributes of spans are changed within OTLP requests; all else stays, to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlferry_agent.otlp import change_attributes

proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

texts = st.text(st.characters(codec="utf-8"), max_size=200)
values = st.one_of(texts, st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.booleans(), st.binary(max_size=9))
attributes = st.dictionaries(st.one_of(st.just("changed"), texts), values, max_size=4)


def request(spans: list[dict[str, object]]) -> bytes:
    """Spans with these attributes, each in a scope of its own, and with a field of every wire type."""
    made = proto.ExportTraceServiceRequest()
    for number, told in enumerate(spans):
        resource = made.resource_spans.add(schema_url="schema")
        resource.resource.attributes.add(key="changed").value.string_value = "of the resource"
        span = resource.scope_spans.add().spans.add(name="changed", trace_id=b"t" * 16, flags=7, kind=3)
        span.start_time_unix_nano = number + 1
        span.status.message = "changed"
        span.events.add(name="event").attributes.add(key="changed").value.string_value = "of the event"
        for key, value in told.items():
            kind = {str: "string", bool: "bool", int: "int", float: "double", bytes: "bytes"}[type(value)]
            setattr(span.attributes.add(key=key).value, f"{kind}_value", value)
    whole: bytes = made.SerializeToString()
    return whole


@given(st.lists(attributes, max_size=3), texts)
def test_one_attribute_changes_and_nothing_else(spans: list[dict[str, object]], text: str) -> None:
    changed = [{k: text if k == "changed" and isinstance(v, str) else v for k, v in told.items()} for told in spans]
    found = change_attributes(request(spans), lambda name, _: text if name == "changed" else None)
    assert found == request(changed)


@given(st.lists(attributes, max_size=3))
def test_what_nobody_changes_is_the_same_to_the_byte(spans: list[dict[str, object]]) -> None:
    assert change_attributes(request(spans), lambda name, text: None) == request(spans)


def test_the_text_that_was_there_is_told() -> None:
    told: list[tuple[str, str]] = []

    def hear(name: str, text: str) -> str:
        told.append((name, text))
        return text

    given_spans: list[dict[str, object]] = [{"größe": "ü", "number": 1}, {"two": ""}]
    assert change_attributes(request(given_spans), hear) == request(given_spans)
    assert told == [("größe", "ü"), ("two", "")]


@given(st.binary(max_size=60))
def test_what_is_no_request_stays_or_is_one(content: bytes) -> None:
    """Random bytes may be a message; what could not be read as one stays as it is."""
    assert change_attributes(content, lambda name, text: None) == content


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_request_that_was_cut_stays_as_it_is(cut: int) -> None:
    whole = request([{"changed": "x" * 40}])
    part = whole[: len(whole) - cut]
    assert change_attributes(part, lambda name, text: "longer than it was") == part
