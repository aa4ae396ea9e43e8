"""Feeds: a log is read from where it was left, everything once, in bounded memory, whatever stands in it."""

from __future__ import annotations

import os
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.examples import examples

from mlferry_agent.feeds import Feed
from mlferry_agent.lanes import Lane, LaneQueue, Piece
from mlferry_agent.ledger import WriterRow
from mlferry_spool import records
from mlferry_spool.blobs import Blobs
from mlferry_spool.codec import pack
from mlferry_spool.frames import encode, preamble
from mlferry_spool.layout import segment_name
from mlferry_spool.records import Kind, Record

SALT = 0xABCDEF
T0 = 1_700_000_000_000

Queues = dict[Lane, LaneQueue]


class Log:
    """A writer's log, frame by frame."""

    def __init__(self, run: Path) -> None:
        self.directory = run / "w"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / segment_name(0)
        self.path.write_bytes(preamble(SALT))
        self.written = 0
        self.put(records.Open("w", run_id="run", opened=T0))

    def put(self, record: Record) -> int:
        kind = next(kind for kind, made in records.RECORDS.items() if made is type(record))
        return self.raw(kind, pack(record))

    def raw(self, kind: int, payload: bytes) -> int:
        with self.path.open("ab") as file:
            file.write(encode(kind, self.written, payload, SALT))
        self.written += 1
        return self.written - 1


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "run")


def queues() -> Queues:
    return {lane: LaneQueue(lane) for lane in Lane if lane is not Lane.OTHER}


def read(log: Log, row: WriterRow | None = None) -> tuple[Feed, Queues]:
    feed, lanes = Feed(log.directory, row or WriterRow("run", "w")), queues()
    feed.fill(lanes, 0.0)
    return feed, lanes


def taken(lanes: Queues) -> list[Piece]:
    return [piece for queue in lanes.values() for piece in queue.ready]


def point(step: int, timestamp: int = T0) -> records.Metrics:
    return records.Metrics(timestamp, step, {"m": float(step)})


# -- restarts ------------------------------------------------------------------------------------------------------------

_RECORDS = st.sampled_from(
    [
        point(1),
        records.Params(T0, {"p": "1"}),
        records.Tags(T0, {"t": "1", "u": "2"}),
        records.Artifact(T0, "a", b"\0" * 32, 5),
        records.Dropped(T0, T0, 3, "disk full"),
        records.Heartbeat(T0),
        records.Spans(T0, "trace", b""),
    ]
)


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_RECORDS, max_size=40), st.data())
def test_whatever_is_settled_in_whatever_order_between_restarts_each_record_is_queued_until_it_is_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, logged: list[Record], data: st.DataObject
) -> None:
    log = Log(tmp_path_factory.mktemp("log") / "run")
    lane_of = {log.put(record): type(record) for record in logged}
    counted = (records.Dropped, records.Heartbeat, records.Spans)
    wanted = {offset for offset, kind in lane_of.items() if kind not in counted}
    row, settled = WriterRow("run", "w"), set()
    for _ in range(data.draw(st.integers(1, 4))):
        feed, lanes = read(log, row)
        ready = taken(lanes)
        offered = {piece.item.offset for piece in ready}
        assert wanted - offered <= settled  # nothing that is not acknowledged is forgotten
        for piece in data.draw(st.permutations(ready))[: data.draw(st.integers(0, len(ready)))]:
            acknowledged = next(q for q in lanes.values() if piece in q.ready).settle(piece, delivered=True)
            feed.acknowledge(acknowledged)
            if piece.item.left == 0:
                settled.add(piece.item.offset)
        row = feed.snapshot(lanes)
    feed, lanes = read(log, row)
    for lane, queue in lanes.items():
        for piece in list(queue.ready):
            assert piece.item.offset >= row.lanes[lane.value]  # nothing that is acknowledged is queued again
            feed.acknowledge(queue.settle(piece, delivered=True))
    row = feed.snapshot(lanes)
    assert row.acknowledged == len(wanted)
    assert row.dropped == 3 * sum(kind is records.Dropped for kind in lane_of.values())
    assert (row.cursor.byte, row.cursor.offset) == (log.path.stat().st_size, log.written)


def test_a_gap_is_counted_once_also_after_a_life_that_ended_before_it_read_so_far(log: Log) -> None:
    log.put(point(1))
    log.put(records.Dropped(T0, T0, 3, "disk full"))
    feed, lanes = read(log)
    row = feed.snapshot(lanes)  # the point is not acknowledged: the log will be read again from before it
    row = Feed(log.directory, row).snapshot(queues())
    feed, lanes = read(log, row)
    assert feed.snapshot(lanes).dropped == 3


def test_a_log_that_ended_stays_ended_after_a_restart(log: Log) -> None:
    log.put(records.RunEnd(T0, "FINISHED"))
    log.put(records.SegmentEnd(None))
    feed, lanes = read(log)
    assert feed.finished
    again, _ = read(log, feed.snapshot(lanes))
    assert again.finished
    assert again.ending == records.RunEnd(T0, "FINISHED")


def test_a_log_that_was_given_up_is_open_again_when_its_writer_speaks(log: Log) -> None:
    feed, lanes = read(log)
    feed.finish()
    row = feed.snapshot(lanes)
    assert read(log, row)[0].finished
    log.put(point(1))
    again, lanes = read(log, row)
    assert not again.finished
    assert len(taken(lanes)) == 1


# -- bounds --------------------------------------------------------------------------------------------------------------


def test_a_long_log_is_read_only_as_fast_as_it_is_delivered(log: Log) -> None:
    for step in range(10_000):
        log.put(point(step))
    _, lanes = read(log)
    assert len(taken(lanes)) < 4_000


def test_long_columns_are_read_a_few_at_a_time(log: Log) -> None:
    values = struct.pack("<8192d", *range(8192))
    for _ in range(20):
        log.put(records.Series("m", values, (0, 1), (T0, 1)))
    assert len(taken(read(log)[1])) < 4_000


@pytest.mark.parametrize("points", [1_000, 1_001, 5_500])
def test_a_long_column_comes_in_parts_and_counts_when_its_last_point_is_settled(log: Log, points: int) -> None:
    log.put(point(1))
    offset = log.put(records.Series("m", struct.pack(f"<{points}d", *range(points)), (7, 2), (T0, 1)))
    log.put(point(2))
    feed, lanes = read(log)
    queue, steps = lanes[Lane.METRICS], []
    while queue.ready:
        piece = queue.ready.popleft()
        steps.append(piece.entity["step"])
        feed.acknowledge(queue.settle(piece, delivered=True))
        if feed.snapshot(lanes).lanes["metrics"] <= offset:
            assert feed.row.acknowledged == min(1, len(steps))
        feed.fill(lanes, 0.0)
    assert steps == [1, *range(7, 7 + 2 * points, 2), 2]
    assert feed.row.acknowledged == 3


def test_what_is_written_later_is_left_for_later(log: Log) -> None:
    feed, lanes = read(log)
    feed.read_no_further()
    log.put(point(1))
    feed.fill(lanes, 0.0)
    assert taken(lanes) == []
    assert len(taken(read(log, feed.snapshot(lanes))[1])) == 1


# -- what may stand in a log ---------------------------------------------------------------------------------------------


def dataset(source: str | records.BlobRef) -> records.Inputs:
    return records.Inputs(T0, (records.Dataset("rows", "d", "local", source),))


def test_a_long_text_comes_from_the_blobs(log: Log) -> None:
    blob = Blobs(log.directory.parent, durable=False).put_bytes("lång text".encode())
    log.put(dataset(records.BlobRef(blob.sha256, blob.size)))
    [piece] = taken(read(log)[1])
    assert piece.entity["dataset"]["source"] == "lång text"


def test_a_long_text_that_is_not_in_the_blobs_is_set_aside_and_the_rest_goes_on(log: Log) -> None:
    log.put(dataset(records.BlobRef(b"\1" * 32, 5)))
    log.put(point(1))
    feed, lanes = Feed(log.directory, WriterRow("run", "w")), queues()
    [aside] = feed.fill(lanes, 0.0)
    assert (aside.offset, aside.action, "not in the run's blobs" in aside.reason) == (1, "dataset", True)
    assert len(taken(lanes)) == 1


def test_a_kind_that_must_not_be_skipped_stops_the_log_before_it(log: Log) -> None:
    log.put(point(1))
    log.raw(63, b"\x90")
    log.put(point(2))
    feed, lanes = read(log)
    assert (feed.stuck, len(taken(lanes))) == (True, 1)
    row = feed.snapshot(lanes)
    assert "upgrade mlferry" in (row.trouble or "")
    assert max(row.lanes.values()) == 2


def test_a_kind_that_may_be_skipped_is_skipped(log: Log) -> None:
    log.raw(100, b"\x90")
    log.put(point(1))
    feed, lanes = read(log)
    assert (feed.stuck, len(taken(lanes))) == (False, 1)


def test_a_record_that_is_none_is_set_aside_alone(log: Log) -> None:
    log.raw(Kind.METRICS, b"\x90")
    log.put(point(1))
    feed, lanes = Feed(log.directory, WriterRow("run", "w")), queues()
    [aside] = feed.fill(lanes, 0.0)
    assert (aside.offset, aside.action) == (1, "record")
    assert len(taken(lanes)) == 1


def test_a_segment_of_a_newer_format_waits_for_a_newer_agent(log: Log) -> None:
    import zlib

    head = bytearray(preamble(SALT))
    head[head.index(b"MLFERRY") + 7] = 9
    head[-4:] = zlib.crc32(bytes(head[:-4])).to_bytes(4, "big")
    log.path.write_bytes(bytes(head))
    feed, lanes = read(log)
    assert feed.stuck
    assert "newer mlferry" in (feed.snapshot(lanes).trouble or "")


def test_damage_costs_the_damaged_record_and_is_said(log: Log) -> None:
    log.put(point(1))
    at = log.path.stat().st_size
    log.put(point(2))
    log.put(point(3))
    data = bytearray(log.path.read_bytes())
    data[at + 20] ^= 0xFF
    log.path.write_bytes(bytes(data))
    feed, lanes = read(log)
    assert [piece.entity["step"] for piece in taken(lanes)] == [1, 3]
    row = feed.snapshot(lanes)
    assert (row.lost, "1 records lost to damage" in (row.trouble or "")) == (1, True)
    again, lanes = read(log, replace(row, cursor=WriterRow("", "").cursor))
    assert again.snapshot(lanes).lost == 1  # read again, counted once


def test_a_file_system_that_fails_holds_the_log_and_is_forgotten_when_it_works_again(log: Log) -> None:
    log.put(point(1))
    aside = log.path.with_suffix(".aside")
    log.path.rename(aside)
    log.path.symlink_to(aside)
    feed, lanes = read(log)
    row = feed.snapshot(lanes)
    assert row.trouble is not None
    log.path.unlink()
    aside.rename(log.path)
    feed, lanes = read(log, row)
    assert (feed.snapshot(lanes).trouble, len(taken(lanes))) == (None, 1)


def test_a_time_that_a_user_made_up_is_no_sign_of_life(log: Log) -> None:
    log.put(point(1, timestamp=T0 * 1000))
    feed, lanes = read(log)
    assert feed.snapshot(lanes).last_sign <= time.time_ns() // 1_000_000 + 60_000


def test_the_last_sign_of_life_is_not_younger_than_the_file(log: Log) -> None:
    log.put(records.Heartbeat(T0 + 10_000_000))
    os.utime(log.path, (T0 / 1000, T0 / 1000))
    feed, lanes = read(log)
    assert feed.snapshot(lanes).last_sign == T0 + 60_000
