"""What the status page counts: the same as ``mlferry status``, and no more of the spool than what has news."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.workbench import Workbench
from tests.spooling import SpooledRun, a_bit_of_everything

from mlferry_agent import status as standing
from mlferry_agent.carrier import Work
from mlferry_agent.discovery import RunLog, discover
from mlferry_agent.ledger import Quarantined, RunRow
from mlferry_agent.status import LogCount
from mlferry_agent.web import surveys as module
from mlferry_agent.web.state import counts
from mlferry_agent.web.surveyor import Surveyor
from mlferry_agent.web.surveys import Survey, Surveys


class Clock:
    """Each reading is ``step`` seconds later than the one before."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The logs that were read, in order."""
    found: list[Path] = []
    real = module.count_log

    def noting(directory: Path, row: object, most_bytes: int) -> LogCount:
        found.append(directory)
        return real(directory, row, most_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "count_log", noting)
    yield found


def surveys(bench: Workbench, **options: object) -> Surveys:
    return Surveys(bench.spool, bench.ledger_path, **options)  # type: ignore[arg-type]


def all_of(bench: Workbench) -> Work:
    return Work(discover(bench.spool))


def open_runs(bench: Workbench, count: int) -> list[SpooledRun]:
    runs = [SpooledRun(bench.spool, "e") for _ in range(count)]
    for number, run in enumerate(runs):
        for step in range(number + 1):
            run.metrics(step, {"m": 1.0})
    return runs


async def test_a_survey_says_what_the_command_says(bench: Workbench) -> None:
    a_bit_of_everything(bench.spool, "e")
    await bench.deliver()
    open_runs(bench, 3)
    with bench.ledger() as ledger:
        said = standing.survey(bench.spool, ledger)
    found = surveys(bench).take(all_of(bench))
    assert counts(found).pending == sum(status.pending for status in said) == 6
    assert found.tally.acknowledged == sum(status.acknowledged for status in said) > 300
    assert (counts(found).live, counts(found).delivered, found.uncounted, found.trouble) == (3, 1, 0, None)


async def test_delivered_runs_are_known_from_the_ledger_alone(bench: Workbench, read: list[Path]) -> None:
    for _ in range(30):
        a_bit_of_everything(bench.spool, "e", points=1, files=0)
    with bench.carrier() as carrier:
        await carrier.deliver(discover(bench.spool))
        assert list(carrier.work().runs) == []
        found = surveys(bench).take(carrier.work())
    assert (found.tally.delivered, len(found.tally.latest), found.statuses, read) == (30, 10, [], [])


async def test_what_the_carrier_has_in_hand_is_what_is_not_delivered(bench: Workbench) -> None:
    a_bit_of_everything(bench.spool, "e", points=1, files=0)
    [living] = open_runs(bench, 1)
    with bench.carrier() as carrier:
        await carrier.look(everywhere=True)
        assert living.run_id in carrier.work().active
        await asyncio.wait(carrier._active.values())
        assert [run.run_id for run in carrier.work().runs] == [living.run_id]
        assert not carrier.work().active


def test_a_log_that_did_not_change_is_not_read_again(bench: Workbench, read: list[Path]) -> None:
    still, growing = open_runs(bench, 2)
    taking = surveys(bench)
    assert counts(taking.take(all_of(bench))).pending == 3
    read.clear()
    assert counts(taking.take(all_of(bench))).pending == 3
    assert read == []
    growing.metrics(9, {"m": 1.0})
    assert counts(taking.take(all_of(bench))).pending == 4
    assert [path.parent for path in read] == [growing.directory] != [still.directory]


async def test_what_was_acknowledged_is_counted_anew(bench: Workbench) -> None:
    open_runs(bench, 2)
    taking = surveys(bench)
    assert counts(taking.take(all_of(bench))).pending == 3
    await bench.deliver()
    assert counts(taking.take(all_of(bench))).pending == 0


def test_a_survey_ends_in_time_and_the_next_goes_on_from_there(bench: Workbench) -> None:
    open_runs(bench, 10)
    taking = surveys(bench, budget_s=10.0, clock=Clock(1.0))
    first = taking.take(all_of(bench))
    assert 0 < len(first.statuses) < 10
    assert first.uncounted == 10 - len(first.statuses)
    assert counts(first).approximate
    found = first
    for _ in range(3):
        found = taking.take(all_of(bench))
    assert (found.uncounted, counts(found).pending, counts(found).waiting) == (0, 55, 0)


def test_what_is_being_delivered_is_looked_at_first(bench: Workbench) -> None:
    runs = open_runs(bench, 6)
    work = Work(discover(bench.spool), frozenset({runs[4].run_id}))
    found = surveys(bench, budget_s=3.0, clock=Clock(1.0)).take(work)
    assert [status.run_id for status in found.statuses] == [runs[4].run_id]


def test_memory_is_bounded_however_many_runs_wait(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_RUNS", 5)
    open_runs(bench, 8)
    found = surveys(bench).take(all_of(bench))
    assert (len(found.statuses), found.uncounted, counts(found).waiting) == (5, 3, 3)


def test_what_is_set_aside_is_counted_by_runs_and_by_records(bench: Workbench) -> None:
    with bench.ledger() as ledger:
        ledger.put_run(RunRow("ended", end_time=1, run_name="one"))
        ledger.put_run(RunRow("parked", parked="deleted there", end_time=1))
        for offset in range(70):
            ledger.quarantine(Quarantined("ended", "w", offset, "param", "p", "no"))
        ledger.quarantine(Quarantined("parked", "w", 1, "param", "p", "no"))
        ledger.drop([Quarantined("ended", "w", 0, "param", "p", "no")])
    tally = surveys(bench).take(Work()).tally
    assert (tally.set_aside_runs, tally.quarantined, tally.parked, tally.delivered, tally.given_up) == (2, 70, 1, 0, 1)
    assert len(tally.records) == 50
    assert {refused.run_name for refused in tally.records} == {"one", None}


def test_a_ledger_that_is_none_is_said_and_the_page_goes_on(bench: Workbench) -> None:
    open_runs(bench, 1)
    bench.ledger_path.parent.mkdir()
    bench.ledger_path.write_bytes(b"no database " * 100)
    found = surveys(bench).take(all_of(bench))
    assert found.trouble is not None
    assert (found.statuses, found.uncounted) == ([], 1)


def test_a_survey_writes_nothing(bench: Workbench) -> None:
    open_runs(bench, 1)
    with bench.ledger():
        before = {path: path.stat().st_mtime_ns for path in bench.spool.rglob("*")}
        dump = list(sqlite3.connect(bench.ledger_path).iterdump())
        surveys(bench).take(all_of(bench))
        assert list(sqlite3.connect(bench.ledger_path).iterdump()) == dump
    assert {path: path.stat().st_mtime_ns for path in bench.spool.rglob("*")} == before


class Slow(Surveys):
    """A survey that lasts until it is let go."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench.spool, bench.ledger_path)
        self.go, self.taken = threading.Event(), 0

    def take(self, work: Work) -> Survey:
        self.taken += 1
        self.go.wait(30)
        return super().take(work)


async def test_all_who_ask_at_once_get_one_survey(bench: Workbench) -> None:
    slow = Slow(bench)
    surveyor = Surveyor(slow, lambda: Work([RunLog("r", ())]))
    assert await surveyor.look(0.01) is None
    waiting = [asyncio.create_task(surveyor.look(30)) for _ in range(20)]
    await asyncio.sleep(0.05)
    slow.go.set()
    found = await asyncio.gather(*waiting)
    assert slow.taken == 1
    assert len({id(survey) for survey in found}) == 1 and found[0] is not None
    surveyor.close()


async def test_surveys_take_a_twentieth_of_the_time_at_most(bench: Workbench) -> None:
    clock = Clock(0.0)
    slow = Slow(bench)
    slow.go.set()
    surveyor = Surveyor(slow, Work, clock)
    first = await surveyor.look(30)
    assert first is not None
    for later, taken in ((1.4, 1), (0.2, 2)):
        clock.now += later
        await surveyor.look(30)
        assert slow.taken == taken
    assert surveyor.newest is not None
    object.__setattr__(surveyor.newest, "took_s", 3.0)
    for later, taken in ((59.0, 2), (2.0, 3)):
        clock.now += later
        await surveyor.look(30)
        assert slow.taken == taken
    surveyor.close()
