"""A metric record from a template is the record that msgpack would have packed."""

from __future__ import annotations

import math
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlferry_spool.codec import decode
from mlferry_spool.records import Kind, Metrics
from mlferry_spool.templates import START, STEP, template

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


@given(
    key=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300),
    timestamp=st.integers(0, (1 << 63) - 1),
    step=INT64,
    value=st.floats(),
)
def test_a_point_from_a_template_is_read_back_bit_for_bit(key: str, timestamp: int, step: int, value: float) -> None:
    pack, name = template(key)
    payload = pack(START, timestamp, STEP, step, name, value)
    found_timestamp, found_step, points = msgpack.unpackb(payload)
    assert (found_timestamp, found_step, list(points)) == (timestamp, step, [key])
    assert struct.pack(">d", points[key]) == struct.pack(">d", value)
    record = decode(Kind.METRICS, payload)
    assert isinstance(record, Metrics)
    assert (record.timestamp, record.step, list(record.values)) == (timestamp, step, [key])
    assert record.values[key] == value or math.isnan(value)


@pytest.mark.parametrize("step", [1 << 63, -(1 << 63) - 1, 1.5, "1", None])
def test_a_step_that_is_none_has_no_payload(step: int) -> None:
    pack, name = template("loss")
    with pytest.raises(struct.error):
        pack(START, 1, STEP, step, name, 0.5)
