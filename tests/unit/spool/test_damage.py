"""A small log, cut at every byte and with every bit flipped: what a reader makes of it, while the writer lives and after."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlferry_spool.frames import OVERHEAD, PREAMBLE_BYTES, encode, preamble
from mlferry_spool.reader import WINDOW_BYTES, LogReader
from mlferry_spool.tailer import Cursor, Entry, Lost

SALT = 0x1234_5678
PAYLOADS = [b"open", b"", b"\xc9\x00\x00\x00\x0c\x04 looks like a header", b"\0" * 40, os.urandom(64), b"last"]


@dataclass(frozen=True, slots=True)
class Written:
    """One frame as it was written: where it starts and ends in the file."""

    kind: int
    payload: bytes
    start: int
    end: int


def small_log() -> tuple[bytes, list[Written]]:
    data, frames = preamble(SALT), []
    for sequence, payload in enumerate(PAYLOADS):
        frame = encode(4, sequence, payload, SALT)
        frames.append(Written(4, payload, len(data), len(data) + len(frame)))
        data += frame
    return data, frames


DATA, FRAMES = small_log()


class OneSegment:
    """A writer's directory with one segment, whose bytes a test sets; read anew each time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / f"{0:020d}.seg"

    def read(self, data: bytes, cursor: Cursor | None = None) -> tuple[list[Entry | Lost], LogReader]:
        self.path.write_bytes(data)
        reader = LogReader(self.directory, cursor)
        return list(drained(reader)), reader


def drained(reader: LogReader) -> Iterator[Entry | Lost]:
    while events := reader.read():
        yield from events


@pytest.fixture
def segment(tmp_path: Path) -> OneSegment:
    return OneSegment(tmp_path)


def payloads(events: list[Entry | Lost]) -> list[bytes]:
    return [event.payload for event in events if isinstance(event, Entry)]


def reports(events: list[Entry | Lost]) -> list[Lost]:
    return [event for event in events if isinstance(event, Lost)]


def whole_before(cut: int) -> list[Written]:
    return [frame for frame in FRAMES if frame.end <= cut]


@pytest.mark.parametrize("tail", [0, 1, 30, 3000])
def test_cut_anywhere_the_log_gives_what_is_whole_and_waits_for_the_rest(segment: OneSegment, tail: int) -> None:
    for cut in range(len(DATA) + 1):
        # Zeros that stand where bytes are to come are bytes of a frame that really holds zeros, too.
        data = DATA[:cut] + bytes(tail)
        known = cut + (len(data) - cut if DATA[cut : len(data)] == bytes(len(DATA[cut : len(data)])) else 0)
        same = next((at for at, byte in enumerate(data) if at >= len(DATA) or byte != DATA[at]), known)
        whole = whole_before(max(same, cut))
        events, reader = segment.read(data)
        assert payloads(events) == [frame.payload for frame in whole], cut
        assert not reports(events), "a torn tail is no damage while the writer may live"
        end = whole[-1].end if whole else reader.cursor.byte
        assert reader.cursor == Cursor(0, end, len(whole))
        torn = reader.finish()
        assert len(torn) == (1 if len(data) > end else 0)
        assert all(
            isinstance(lost, Lost) and (lost.start, lost.end, lost.frames) == (end, len(data), None) for lost in torn
        )


def test_from_any_cut_reading_goes_on_where_it_stopped_once_the_rest_is_there(segment: OneSegment) -> None:
    for cut in range(len(DATA) + 1):
        before, reader = segment.read(DATA[:cut])
        after, _ = segment.read(DATA, reader.cursor)
        assert payloads(before) + payloads(after) == PAYLOADS
        assert not reports(after)


def test_one_flipped_bit_costs_at_most_its_frame_and_is_reported_once(segment: OneSegment) -> None:
    for bit in range(len(DATA) * 8):
        data = bytearray(DATA)
        data[bit // 8] ^= 1 << bit % 8
        hit = next((at for at, frame in enumerate(FRAMES) if frame.start <= bit // 8 < frame.end), None)
        events, reader = segment.read(bytes(data))
        last = hit == len(FRAMES) - 1
        expected = [payload for at, payload in enumerate(PAYLOADS) if at != hit]
        assert payloads(events) == expected, bit
        if last:
            assert not reports(events), "the last frame may still be in writing"
            assert reader.cursor == Cursor(0, FRAMES[-1].start, len(FRAMES) - 1)
            (lost,) = reader.finish()
            assert isinstance(lost, Lost)
            assert (lost.start, lost.end, lost.frames) == (FRAMES[-1].start, len(DATA), None)
            continue
        (lost,) = reports(events)
        if hit is None:
            assert (lost.start, lost.end, lost.frames) == (0, PREAMBLE_BYTES, 0)
        else:
            assert (lost.start, lost.end, lost.frames) == (FRAMES[hit].start, FRAMES[hit].end, 1)
        assert reader.cursor == Cursor(0, len(DATA), len(FRAMES))
        assert not reader.finish()


def test_one_flipped_bit_in_a_finished_log_is_reported_once_wherever_it_is(tmp_path: Path) -> None:
    first = DATA
    end = encode(20, len(FRAMES), b"\x91\x07", SALT)
    following = preamble(99) + encode(1, 0, b"next", 99)
    (tmp_path / f"{7:020d}.seg").write_bytes(following)
    whole = [*PAYLOADS, b"\x91\x07", b"next"]
    for bit in range(len(first + end) * 8):
        data = bytearray(first + end)
        data[bit // 8] ^= 1 << bit % 8
        (tmp_path / f"{0:020d}.seg").write_bytes(data)
        reader = LogReader(tmp_path)
        events = list(drained(reader))
        hit = next((at for at, frame in enumerate(FRAMES) if frame.start <= bit // 8 < frame.end), None)
        if bit // 8 >= len(first):
            hit = len(FRAMES)
        assert payloads(events) == [payload for at, payload in enumerate(whole) if at != hit], bit
        (lost,) = reports(events)
        assert lost.frames == (0 if hit in (None, len(FRAMES)) else 1), bit
        assert reader.cursor == Cursor(7, len(following), 1)
        assert not reader.finish()


def test_every_damaged_stretch_of_the_log_is_one_report_with_the_frames_it_held(segment: OneSegment) -> None:
    for first in range(len(FRAMES) - 1):
        for last in range(first, len(FRAMES) - 1):
            start, end = FRAMES[first].start, FRAMES[last].end
            for filling in (bytes(end - start), b"\xc9" * (end - start), os.urandom(end - start)):
                events, reader = segment.read(DATA[:start] + filling + DATA[end:])
                assert payloads(events) == [*PAYLOADS[:first], *PAYLOADS[last + 1 :]]
                assert [(lost.start, lost.end, lost.frames) for lost in reports(events)] == [
                    (start, end, last - first + 1)
                ]
                assert reader.cursor == Cursor(0, len(DATA), len(FRAMES))


def test_frames_of_another_segment_inside_a_damaged_payload_are_not_taken_for_its_own(segment: OneSegment) -> None:
    inner = preamble(77) + b"".join(encode(4, n, b"foreign", 77) for n in range(9))
    data = preamble(SALT) + encode(1, 0, b"open", SALT) + encode(4, 1, inner, SALT) + encode(4, 2, b"after", SALT)
    start = PREAMBLE_BYTES + OVERHEAD + 4
    for at in range(start, start + OVERHEAD):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        events, _ = segment.read(bytes(damaged))
        assert payloads(events) == [b"open", b"after"]
        assert [lost.frames for lost in reports(events)] == [1]


def test_frames_that_vanished_without_a_trace_are_counted(segment: OneSegment) -> None:
    events, reader = segment.read(DATA[: FRAMES[2].start] + DATA[FRAMES[4].start :])
    assert payloads(events) == PAYLOADS[:2] + PAYLOADS[4:]
    assert [lost.frames for lost in reports(events)] == [2]
    assert reader.cursor.sequence == len(FRAMES)


def test_a_frame_that_stands_there_twice_is_delivered_once(segment: OneSegment) -> None:
    again = DATA[FRAMES[1].start : FRAMES[3].end]
    events, reader = segment.read(DATA[: FRAMES[3].end] + again + DATA[FRAMES[3].end :])
    assert payloads(events) == PAYLOADS
    assert sum(lost.frames or 0 for lost in reports(events)) == 0
    assert reader.cursor.sequence == len(FRAMES)


def test_damage_larger_than_any_window_is_found_the_end_of(segment: OneSegment) -> None:
    hole = 9 << 20
    events, reader = segment.read(DATA[: FRAMES[1].end] + bytes(hole) + DATA[FRAMES[3].start :])
    assert payloads(events) == PAYLOADS[:2] + PAYLOADS[3:]
    (lost,) = reports(events)
    assert (lost.end - lost.start, lost.frames) == (hole, 1)
    assert reader.cursor.sequence == len(FRAMES)


@pytest.mark.parametrize("shift", range(-OVERHEAD - 1, OVERHEAD + 2))
def test_a_good_header_on_the_border_of_two_windows_is_found(segment: OneSegment, shift: int) -> None:
    before = DATA[: FRAMES[1].end]
    hole = WINDOW_BYTES + 1 + shift  # the search starts one byte behind the cursor
    events, _ = segment.read(before + bytes(hole) + DATA[FRAMES[2].start :])
    assert payloads(events) == PAYLOADS
    assert [(lost.end - lost.start, lost.frames) for lost in reports(events)] == [(hole, 0)]
