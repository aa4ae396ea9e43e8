"""FORMAT.md is the specification: its worked example is what the code writes and reads."""

from __future__ import annotations

import re
from pathlib import Path

import msgpack

from mlferry_spool import frames
from mlferry_spool.codec import decode
from mlferry_spool.records import RECORDS, Kind, Metrics, Open, SegmentEnd
from mlferry_spool.tailer import Cursor, Entry, scan

FORMAT = Path(__file__).parents[2] / "spool" / "FORMAT.md"
SALT = 0x0A0B0C0D


def example() -> bytes:
    """The bytes of the block marked as hex."""
    block = FORMAT.read_text(encoding="utf-8").split("```hex", 1)[1].split("```")[0]
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
    text = FORMAT.read_text(encoding="utf-8")
    assert [kind.name for kind in RECORDS if not re.search(rf"\b{kind.name}\b", text)] == []
