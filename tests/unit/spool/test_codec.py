"""Payload bytes and records: there and back, forward and backward compatible, and closed to anything else."""

from __future__ import annotations

import math
import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compat.golden import NARROW, RECORDS

from mlferry_spool.codec import KIND_OF, as_fields, decode, pack
from mlferry_spool.errors import CorruptRecord, Unencodable
from mlferry_spool.gaps import Gap, merged
from mlferry_spool.limits import MAX_DEPTH, MAX_VALUES
from mlferry_spool.records import Dropped, Kind, Metrics, NarrowSeries, Params, Record, Series, TagsDeleted

int64 = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize("record", [*RECORDS, *NARROW[1:-1]], ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert decode(KIND_OF[type(record)], pack(record)) == record


@pytest.mark.parametrize("record", [*RECORDS, *NARROW[1:-1]], ids=lambda record: type(record).__name__)
def test_what_a_newer_writer_adds_to_a_record_is_ignored(record: Record) -> None:
    fields = as_fields(record)
    if isinstance(fields, dict):
        fields["of tomorrow"] = [1, {"a": None}]
    else:
        declared = len(record.__dataclass_fields__)
        fields = [*fields, *[None] * (declared - len(fields)), {"of": "tomorrow"}]
    assert decode(KIND_OF[type(record)], msgpack.packb(fields)) == record


@pytest.mark.parametrize("record", [*RECORDS, *NARROW[1:-1]], ids=lambda record: type(record).__name__)
def test_every_cut_or_mistyped_field_is_refused_by_name(record: Record) -> None:
    kind, fields = KIND_OF[type(record)], as_fields(record)
    with pytest.raises(CorruptRecord):
        decode(kind, msgpack.packb([] if isinstance(fields, dict) else {}))
    for place in fields if isinstance(fields, dict) else range(len(fields)):
        wrong = dict(fields) if isinstance(fields, dict) else list(fields)
        wrong[place] = msgpack.ExtType(5, b"never")  # type: ignore[index]
        with pytest.raises(CorruptRecord):
            decode(kind, msgpack.packb(wrong))
        wrong[place] = [[{"a": []}]]  # type: ignore[index]
        with pytest.raises(CorruptRecord):
            decode(kind, msgpack.packb(wrong))


anything = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(), st.binary()
)


@given(st.lists(st.one_of(anything, st.dictionaries(st.one_of(st.text(), st.binary()), anything)), max_size=4))
def test_the_short_way_to_plain_metrics_agrees_with_the_long_one(values: list[object]) -> None:
    """A fourth field that is absent does not change the record, and takes the long way."""
    taken = []
    for fields in (values, [*values, None]):
        try:
            taken.append(decode(Kind.METRICS, msgpack.packb(fields)))
        except CorruptRecord:
            taken.append(None)
    assert taken[0] == taken[1] or len(values) != 3


@given(st.binary(min_size=8, max_size=8))
def test_floats_keep_every_bit(raw: bytes) -> None:
    (value,) = struct.unpack("<d", raw)
    metrics = decode(Kind.METRICS, pack(Metrics(0, 0, {"m": value})))
    assert isinstance(metrics, Metrics)
    if math.isnan(value):
        assert math.isnan(metrics.values["m"])
    else:
        assert struct.pack("<d", metrics.values["m"]) == raw
    series = decode(Kind.SERIES, pack(Series("m", raw, (0, 1), (0, 1))))
    assert isinstance(series, Series)
    assert series.values == raw


@given(int64, int64, st.integers(0, 50))
def test_a_regular_column_never_leaves_64_bits(first: int, stride: int, count: int) -> None:
    fits = count == 0 or -(2**63) <= first + stride * (count - 1) < 2**63
    try:
        series = Series("m", bytes(8 * count), (first, stride), (0, 1))
    except ValueError:
        assert not fits
    else:
        assert fits
        assert [step for _, step, _ in series.points()] == [first + stride * n for n in range(count)]


def test_columns_of_several_lengths_are_refused() -> None:
    for steps, times in ((bytes(8), (0, 1)), ((0, 1), bytes(24)), (bytes(15), bytes(16))):
        with pytest.raises(CorruptRecord):
            decode(Kind.SERIES, msgpack.packb(["m", bytes(16), steps, times]))


@given(int64, int64, st.integers(1, 50), st.sampled_from([1, 2, 4]), st.data())
def test_a_narrow_column_is_what_lies_above_its_line_and_never_leaves_64_bits(
    first: int, stride: int, count: int, width: int, data: st.DataObject
) -> None:
    above = [data.draw(st.integers(0, 256**width - 1)) for _ in range(count)]
    raw = b"".join(number.to_bytes(width, "little") for number in above)
    ends = (first, first + stride * (count - 1))
    fits = min(ends) >= -(2**63) and max(ends) + 256**width <= 2**63
    payload = msgpack.packb(["m", bytes(8 * count), [first, stride, raw], [0, 1]])
    if not fits:
        with pytest.raises(CorruptRecord):
            decode(Kind.SERIES_NARROW, payload)
        return
    series = decode(Kind.SERIES_NARROW, payload)
    assert isinstance(series, NarrowSeries)
    steps = [first + stride * at + number for at, number in enumerate(above)]
    assert [step for _, step, _ in series.points()] == steps
    assert [step for part in series.parts(7) for _, step, _ in part.points()] == steps


@pytest.mark.parametrize("above", [b"", b"1", b"123", bytes(6), bytes(16), bytes(17), 3, None, [1, 2]], ids=str)
def test_a_narrow_column_of_another_length_or_width_is_refused(above: object) -> None:
    for fields in ([[0, 1, above], [0, 1]], [[0, 1], [0, 1, above]]):
        with pytest.raises(CorruptRecord):
            decode(Kind.SERIES_NARROW, msgpack.packb(["m", bytes(16), *fields]))


def test_a_narrow_column_is_of_its_own_kind_of_series() -> None:
    payload = msgpack.packb(["m", bytes(16), [0, 1, b"12"], [0, 1]])
    assert decode(Kind.SERIES_NARROW, payload)
    with pytest.raises(CorruptRecord):
        decode(Kind.SERIES, payload)


def test_integers_beyond_64_bits_are_refused_both_ways() -> None:
    with pytest.raises(Unencodable):
        pack(Params(2**64, {}))
    with pytest.raises(CorruptRecord):
        decode(Kind.PARAMS, msgpack.packb([2**63, {}]))


@pytest.mark.parametrize("depth", [MAX_DEPTH - 2, MAX_DEPTH - 1])
@pytest.mark.parametrize("header", [b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"])
def test_nesting_has_a_limit(depth: int, header: bytes) -> None:
    payload = b"\x83\xa9timestamp\x01\xa8trace_id\xa1t\xa4info\x81\xa1k" + header * depth + b"\xc0"
    if depth + 2 <= MAX_DEPTH:  # two maps stand around the arrays
        assert decode(Kind.TRACE, payload)
    else:
        with pytest.raises(CorruptRecord, match="nested"):
            decode(Kind.TRACE, payload)


@pytest.mark.parametrize("length", [9, 120])
def test_the_number_of_values_has_a_limit_and_texts_only_that_of_bytes(length: int) -> None:
    keys = ("k" * length,) * (MAX_VALUES - 3)  # the record, its time and the list are values too
    assert decode(Kind.TAGS_DELETED, pack(TagsDeleted(1, keys))) == TagsDeleted(1, keys)
    with pytest.raises(CorruptRecord, match="too many values"):
        decode(Kind.TAGS_DELETED, pack(TagsDeleted(1, (*keys, "k"))))


def test_a_small_payload_that_claims_more_than_there_may_be_is_refused() -> None:
    for header in (b"\xdd\x00\x00\x20\x01", b"\xdf\x00\x00\x10\x01", b"\xdc\xff\xff"):
        with pytest.raises(CorruptRecord):
            decode(Kind.TAGS_DELETED, b"\x92\x01" + header + b"\xc0" * 100)


# -- what was dropped ---------------------------------------------------------------------------------------------------


def test_drops_without_end_are_one_record_and_take_no_room() -> None:
    gap = Gap()
    for n in range(10_000):
        gap.add(Kind.METRICS if n % 2 else 0, f"reason {n}", 2, 1000 + n)
        assert len(gap._drops) < 300
    assert gap.take() == Dropped(1000, 10_999, 20_000, "reason 9999", {"unknown": 10_000, "metrics": 10_000})
    assert not gap
    assert gap.take() is None


def test_a_gap_that_could_not_be_written_is_not_forgotten() -> None:
    gap = Gap()
    gap.add(Kind.PARAMS, "first", 1, 5)
    taken = gap.take()
    gap.add(Kind.TAGS, "second", 2, 9)
    gap.put_back(taken)
    assert gap.take() == Dropped(5, 9, 3, "second", {"params": 1, "tags": 2})


def test_reasons_are_text_that_a_frame_can_hold() -> None:
    reason = merged([Dropped(1, 1, 1, "\ud800" + "x" * 9999, {})]).reason
    assert len(reason.encode()) < 600


@given(st.integers(0, 40), st.integers(1, 20), st.booleans())
def test_the_parts_of_a_series_hold_its_points_in_order(count: int, length: int, regular: bool) -> None:
    numbers = struct.pack(f"<{count}q", *(n * n for n in range(count)))
    values = struct.pack(f"<{count}d", *range(count))
    series = Series("m", values, (5, -3) if regular else numbers, numbers if regular else (9, 2), "m-1")
    parts = list(series.parts(length))
    assert [point for part in parts for point in part.points()] == list(series.points())
    assert all(0 < len(part) <= length and part.model_id == "m-1" for part in parts)
