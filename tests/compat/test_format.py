"""FORMAT.md is the specification: its worked example is what the code writes and reads, its tables are the code's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import msgpack

from mlferry_agent import registrations
from mlferry_spool import frames, limits
from mlferry_spool.codec import decode
from mlferry_spool.frames import SKIPPABLE_FROM
from mlferry_spool.records import RECORDS, Dataset, Kind, Metrics, Open, SegmentEnd
from mlferry_spool.tailer import Cursor, Entry, scan

FORMAT = Path(__file__).parents[2] / "spool" / "FORMAT.md"
SALT = 0x0A0B0C0D


def text() -> str:
    return FORMAT.read_text(encoding="utf-8")


def example() -> bytes:
    """The bytes of the block marked as hex."""
    block = text().split("```hex", 1)[1].split("```")[0]
    return bytes.fromhex("".join(block.split()))


def test_the_worked_example_is_what_the_writer_writes() -> None:
    payloads = [(Kind.OPEN, {"writer_id": "w"}), (Kind.METRICS, [1000, 1, {"loss": 0.5}]), (Kind.SEGMENT_END, [])]
    made = [frames.encode(kind, at, msgpack.packb(fields), SALT) for at, (kind, fields) in enumerate(payloads)]
    assert example() == frames.preamble(SALT) + b"".join(made)


def test_the_worked_example_is_read_as_it_says() -> None:
    data = example()
    assert frames.read_preamble(data) == frames.Preamble(1, 0, SALT)
    events, cursor = scan(Cursor(0, frames.PREAMBLE_BYTES, 0), data[frames.PREAMBLE_BYTES :], SALT)
    assert cursor.byte == len(data)
    records = [decode(event.kind, event.payload) for event in events if isinstance(event, Entry)]
    assert records == [Open(writer_id="w"), Metrics(1000, 1, {"loss": 0.5}), SegmentEnd(None)]


def test_a_plain_msgpack_reader_walks_a_segment() -> None:
    unpacker = msgpack.Unpacker(ext_hook=lambda kind, data: (kind, data))
    unpacker.feed(example())
    assert [kind for kind, _ in unpacker] == [ord("M"), Kind.OPEN, Kind.METRICS, Kind.SEGMENT_END]


def test_every_kind_has_its_row_in_the_specification() -> None:
    assert [kind.name for kind in RECORDS if not re.search(rf"\b{kind.name}\b", text())] == []


def kinds_in_the_table() -> Iterator[tuple[int, str, bool, list[tuple[str, object]]]]:
    """Number, name, whether the payload is a map, and the fields with their defaults, as the specification has them."""
    for number, name, form, told in re.findall(r"(?m)^\| (\d+) \| ([A-Z_]+) \| (array|map): (.+) \|$", text()):
        yield int(number), name, form == "map", fields_in(told)


def fields_in(told: str) -> list[tuple[str, object]]:
    """``name type``, ``name type?`` (may be absent) or ``name type=default``, with commas between; remarks in brackets."""
    plain = re.sub(r" \([^)]*\)|\[[^]]+\]", "", told)
    return [(field.split()[0], default_in(field)) for field in plain.split(", ")]


def default_in(field: str) -> object:
    kind, _, default = field.strip().partition("=")
    if not default:
        return None if kind.endswith("?") else MISSING
    known = {"{}": {}, "[]": (), "true": True, "false": False, "`primary`": "primary"}
    return known[default] if default in known else float(default) if " float" in kind else int(default)


def defaults_of(record: type) -> list[tuple[str, object]]:
    return [
        (item.name, item.default if item.default_factory is MISSING else item.default_factory())
        for item in fields(record)
    ]


def test_the_fields_of_each_kind_are_those_of_the_records() -> None:
    empty = [
        ("host", ""),
        ("machine_id", ""),
        ("boot_id", ""),
        ("program", ""),
    ]  # a text of which nothing was found out
    seen = 0
    for number, name, is_map, told in kinds_in_the_table():
        kind = Kind(number)
        record = RECORDS[kind]
        known = [(field, MISSING if (field, default) in empty else default) for field, default in defaults_of(record)]
        assert (name, is_map, told) == (kind.name, getattr(record, "AS_MAP", False), known)
        seen += 1
    assert seen == len(RECORDS)


def test_a_dataset_is_written_as_the_specification_says() -> None:
    [told] = re.findall(r"A \*dataset\* is an array: (.+?); \*long\*", text(), re.DOTALL)
    assert fields_in(" ".join(told.split())) == defaults_of(Dataset)


def test_the_limits_in_the_specification_are_those_of_the_code() -> None:
    told = text().split("## Limits")[1].split("##")[0]
    mebi = 1 << 20
    known = [
        limits.MAX_PAYLOAD_BYTES // mebi,
        limits.MAX_SEGMENT_BYTES // mebi,
        limits.SEGMENT_BYTES // mebi,
        int(limits.SEGMENT_AGE_S),
        limits.MAX_VALUES,
        limits.MAX_DEPTH,
        limits.MAX_SERIES_POINTS,
    ]
    assert [int(number) for number in re.findall(r"\d+", told)] == known
    assert f"An unknown kind from {SKIPPABLE_FROM} to 127 is skipped" in text()


def test_the_operations_in_the_specification_are_those_that_are_delivered() -> None:
    told = text().split("## Operations")[1].split("##")[0]
    registry = re.findall(r"`([a-z]+_(?:registered_model|model_version)\w*)`", told)
    assert set(registry) == {*registrations._SIMPLE, "create_registered_model", "create_model_version"}
    for name, (_, _, details, about_version) in registrations._SIMPLE.items():
        [listed] = re.findall(rf"`{name}`(?:\s\(([^)]*)\))?", told)
        assert set(re.findall(r"`(\w+)`", listed)) - {"uid", "version"} == set(details), name
        assert not about_version or "names it by the `uid`" in told
