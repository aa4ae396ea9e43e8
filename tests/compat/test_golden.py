"""A segment that was written by format 1.0 stays readable, record by record, whatever the code becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.compat.golden import SALT, SEGMENTS, make

from mlferry_spool import frames
from mlferry_spool.codec import decode
from mlferry_spool.records import RECORDS as KINDS
from mlferry_spool.tailer import Cursor, Entry, scan

each_segment = pytest.mark.parametrize("segment", SEGMENTS, ids=lambda segment: segment.parent.name)


@each_segment
def test_the_golden_segment_is_read_as_it_was_written(segment: Path) -> None:
    data = segment.read_bytes()
    preamble = frames.read_preamble(data)
    assert preamble == frames.Preamble(1, 0, SALT)
    events, cursor = scan(Cursor(0, frames.PREAMBLE_BYTES, 0), data[frames.PREAMBLE_BYTES :], SALT)
    assert cursor.byte == len(data)
    assert [decode(event.kind, event.payload) for event in events if isinstance(event, Entry)] == SEGMENTS[segment]


def test_the_golden_segments_have_every_kind_of_the_format() -> None:
    assert {type(record) for records in SEGMENTS.values() for record in records} == set(KINDS.values())


@each_segment
def test_the_code_still_writes_format_1_0(segment: Path) -> None:
    assert make(SEGMENTS[segment]) == segment.read_bytes()
