"""A writer begins after those whose place it takes, whatever the clock has done in between."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from mlferry_agent.closing import Verdict, WriterFacts, verdict
from mlferry_spool import introductions, log, succession
from mlferry_spool.codec import decode
from mlferry_spool.layout import writer_name
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Heartbeat, Kind, Open, Params, RunEnd
from mlferry_spool.succession import begins_at
from mlferry_spool.tailer import Entry
from mlferry_spool.writer import Writer

HOUR_MS = 3_600_000


class Clock:
    """The clock of the machine, as far as writers and their files go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.offset_ms = 0
        for module in (introductions, log, succession):
            patch.setattr(module, "now_ms", self.now_ms)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.offset_ms

    def stamp(self, writer: Path) -> None:
        for path in writer.glob("*.seg"):
            os.utime(path, ns=(self.now_ms() * 10**6,) * 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def began(directory: Path, clock: Clock, *, rank: int | None = None, attempt: str = "0.0") -> Writer:
    name = writer_name(clock.now_ms(), rank, os.urandom(8).hex())
    writer = Writer(directory, Open(name, run_id="r", rank=rank, attempt=attempt))
    writer.put(Params(clock.now_ms(), {"a": "1"}))
    writer.put(Heartbeat(clock.now_ms()))
    clock.stamp(writer.directory)
    return writer


def opening_of(writer: Writer) -> Open:
    entry = next(event for event in LogReader(writer.directory).read() if isinstance(event, Entry))
    opening = decode(Kind.OPEN, entry.payload)
    assert isinstance(opening, Open)
    return opening


@pytest.mark.parametrize("attempts", [("0.0", "0.0"), ("0.0", "1.0")])
@pytest.mark.parametrize("back_ms", [0, 1, HOUR_MS, 7 * 24 * HOUR_MS])
def test_a_job_that_is_started_again_ends_as_its_last_attempt_did(
    tmp_path: Path, clock: Clock, attempts: tuple[str, str], back_ms: int
) -> None:
    first = began(tmp_path, clock, rank=0, attempt=attempts[0])
    last_sign = clock.now_ms()
    clock.offset_ms -= back_ms
    second = began(tmp_path, clock, rank=0, attempt=attempts[1])
    end = RunEnd(clock.now_ms(), "FINISHED")
    facts = [
        WriterFacts(opening_of(first), None, True, last_sign, False),
        WriterFacts(opening_of(second), end, True, end.end_time, False),
    ]
    assert verdict(facts) == Verdict("FINISHED", end.end_time)


def test_other_ranks_are_not_looked_at(tmp_path: Path, clock: Clock) -> None:
    began(tmp_path, clock, rank=1)
    clock.offset_ms -= HOUR_MS
    opening = opening_of(began(tmp_path, clock, rank=0))
    assert abs(opening.opened - clock.now_ms()) < 60_000


def test_a_clock_that_goes_right_is_believed(tmp_path: Path, clock: Clock) -> None:
    began(tmp_path, clock)
    clock.offset_ms += HOUR_MS
    assert abs(opening_of(began(tmp_path, clock)).opened - clock.now_ms()) < 60_000


def test_a_time_that_cannot_be_is_not_believed(tmp_path: Path, clock: Clock) -> None:
    began(tmp_path, clock)
    clock.offset_ms -= 31 * 24 * HOUR_MS
    assert abs(opening_of(began(tmp_path, clock)).opened - clock.now_ms()) < 60_000


def test_of_very_many_logs_the_last_are_looked_at(tmp_path: Path, clock: Clock) -> None:
    for number in range(100):
        writer = tmp_path / writer_name(clock.now_ms() - number * 1000, None, "0" * 16)
        writer.mkdir()
        (writer / f"{0:020d}.seg").touch()
        os.utime(writer / f"{0:020d}.seg", ns=((clock.now_ms() + number * 60_000) * 10**6,) * 2)
    found = begins_at(tmp_path, Open("w", run_id="r"))
    assert abs(found - clock.now_ms() - 63 * 60_000) < 30_000


def test_what_belongs_to_no_run_has_no_attempts(tmp_path: Path, clock: Clock) -> None:
    began(tmp_path, clock)
    clock.offset_ms -= HOUR_MS
    assert begins_at(tmp_path, Open("w")) == pytest.approx(clock.now_ms(), abs=1000)
