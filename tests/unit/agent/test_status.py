"""The verdict: what is acknowledged, pending and set aside, exact, and the exit code that says the same."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.examples import examples
from tests.fakes.tracking import Fault
from tests.fakes.workbench import Workbench, run_alone
from tests.spooling import T0, SpooledRun

from mlferry_agent import status as standing
from mlferry_agent.discovery import discover
from mlferry_agent.errors import NoSuchRun
from mlferry_agent.ledger import RunRow
from mlferry_agent.status import RunStatus, exit_code, run_status, run_statuses, select, survey
from mlferry_agent.views.statuses import table_of_statuses, totals
from mlferry_spool import records
from mlferry_spool.layout import store_directory
from mlferry_spool.writer import Writer

RECORDS = 7


def logged(bench: Workbench) -> SpooledRun:
    run = SpooledRun(bench.spool, "e", run_name="name")
    run.params({"p": "1", "q": "2"})
    run.tags({"t": "1"})
    run.metrics(1, {"m": 1.0})
    run.metrics(2, {"m": 1.0})
    run.series(records.Series("s", b"\0" * 80, (0, 1), (T0, 1)))
    run.artifact("a", b"1")
    run.dataset(records.Dataset("rows", "d", "local", "{}"))
    return run


def status_of(bench: Workbench, run: SpooledRun) -> RunStatus:
    [found] = select(discover(bench.spool), [run.run_id])
    with bench.ledger() as ledger:
        return run_status(found, ledger)


def test_before_anything_was_delivered_each_record_is_pending(bench: Workbench) -> None:
    run = logged(bench)
    found = status_of(bench, run)
    assert (found.pending, found.acknowledged, found.live, found.run_name) == (RECORDS, 0, True, "name")
    assert found.lag_s is not None
    assert exit_code([found]) == standing.PENDING
    run.end()


async def test_when_everything_was_delivered_nothing_is_pending(bench: Workbench) -> None:
    run = logged(bench)
    run.end()
    await bench.deliver()
    found = status_of(bench, run)
    assert (found.pending, found.acknowledged, found.status, found.end_pending) == (0, RECORDS, "FINISHED", False)
    assert (exit_code([found]), found.lag_s) == (standing.ALL_ACKNOWLEDGED, None)


@pytest.mark.parametrize("timestamp", [1, 32_503_680_000_000], ids=["of 1970", "of the year 3000"])
def test_the_lag_is_how_long_a_record_waits_whatever_time_its_user_gave_it(bench: Workbench, timestamp: int) -> None:
    began = time.time()
    run = SpooledRun(bench.spool, "e", opened=int(began * 1000))
    run.metrics(0, {"m": 1.0}, timestamp=timestamp)
    time.sleep(0.06)
    found = status_of(bench, run)
    assert found.lag_s is not None
    assert 0.05 <= found.lag_s <= time.time() - began + 0.01
    run.end()


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 150))
def test_wherever_delivery_was_cut_off_what_is_acknowledged_and_what_is_pending_make_the_whole(
    tmp_path_factory: pytest.TempPathFactory, steps: int
) -> None:
    bench = Workbench(tmp_path_factory.mktemp("cut"))
    run = logged(bench)
    run.end()
    run_alone(bench.live_and_die(steps))
    found = status_of(bench, run)
    assert found.acknowledged + found.pending == RECORDS
    assert not found.approximate


async def test_an_end_that_the_server_was_not_told_is_pending_though_every_record_arrived(bench: Workbench) -> None:
    run = logged(bench)
    run.end()
    bench.server.fault = lambda request: Fault.BEFORE if request.path.endswith("runs/update") else None
    with pytest.raises(Exception, match="refused"):
        await bench.deliver(give_up_after_s=5.0)
    found = status_of(bench, run)
    assert (found.pending, found.end_pending, exit_code([found])) == (0, True, standing.PENDING)


async def test_what_is_set_aside_is_neither_acknowledged_nor_pending_and_needs_a_person(bench: Workbench) -> None:
    run = logged(bench)
    run.metrics(3, {"poison": 1.0})
    run.end()
    await bench.deliver()
    found = status_of(bench, run)
    assert (found.pending, found.acknowledged, len(found.quarantined)) == (0, RECORDS, 1)
    assert exit_code([found]) == standing.SET_ASIDE
    assert json.loads(json.dumps(found.as_json()))["quarantined"][0]["name"] == "poison"


def test_a_run_that_is_parked_needs_a_person(bench: Workbench) -> None:
    run = logged(bench)
    with bench.ledger() as ledger, ledger.transaction():
        ledger.put_run(RunRow(run.run_id, parked="deleted there"))
    assert exit_code([status_of(bench, run)]) == standing.SET_ASIDE
    run.end()


def test_a_count_of_very_much_is_an_estimate_and_says_so(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = SpooledRun(bench.spool, "e")
    for number in range(400):
        run.params({f"p{number}": "x" * 30_000})
    run.end()
    monkeypatch.setattr(standing, "_COUNT_BYTES", 1 << 20)
    found = status_of(bench, run)
    assert found.approximate
    assert 300 < found.pending < 500


async def test_what_a_newer_release_noted_of_a_writer_does_not_confuse_this_one(bench: Workbench) -> None:
    run = logged(bench)
    run.end()
    await bench.deliver()
    with bench.ledger() as ledger, ledger.transaction():
        [row] = ledger.writers(run.run_id).values()
        ledger.put_writer(replace(row, opening={**(row.opening or {}), "of_the_future": 1}))
    assert status_of(bench, run).run_name == "name"


def test_a_run_whose_files_cannot_be_seen_is_trouble_not_success(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.end()
    [found] = discover(bench.spool)
    run.directory.rename(run.directory.with_name("aside"))
    run.directory.symlink_to(run.directory)
    status = run_status(found, None)
    assert exit_code([status]) == standing.SET_ASIDE


def test_a_run_is_named_by_its_id_its_beginning_or_its_directory(bench: Workbench) -> None:
    runs = [SpooledRun(bench.spool, "e") for _ in range(2)]
    for run in runs:
        run.end()
    found = discover(bench.spool)
    run = runs[0]
    for name in (run.run_id, run.run_id[:20], run.directory.name, str(run.directory)):
        assert [item.run_id for item in select(found, [name])] == [run.run_id]
    with pytest.raises(NoSuchRun, match="2 runs"):
        select(found, [""])
    with pytest.raises(NoSuchRun, match="no run"):
        select(found, ["nothing"])


async def test_a_run_that_its_last_program_left_running_has_no_end_that_is_pending(bench: Workbench) -> None:
    run = logged(bench)
    run.end()
    later = run.beside(resumed=True, rank=1)
    later.metrics(9, {"loss": 1.0})
    assert later.writer.close()
    await bench.deliver()
    found = status_of(bench, run)
    assert (found.status, found.end_pending, exit_code([found])) == ("RUNNING", False, standing.ALL_ACKNOWLEDGED)


async def test_what_the_ledger_answers_for_many_is_what_is_read_of_each(bench: Workbench) -> None:
    ended, killed, resumed, lives = (SpooledRun(bench.spool, "e", run_name=name) for name in "abcd")
    for run in (ended, killed, resumed, lives):
        run.metrics(1, {"m": 1.0})
    ended.end()
    resumed.end()
    killed.writer.close()
    await bench.deliver()
    resumed.beside(resumed=True).metrics(2, {"m": 1.0})
    SpooledRun(bench.spool, "e").end()
    with bench.ledger() as ledger:
        runs = discover(bench.spool)
        one_by_one = [replace(run_status(run, ledger), lag_s=None) for run in runs]
        at_once = [replace(status, lag_s=None) for status in run_statuses(runs, ledger)]
    assert at_once == one_by_one
    assert [status.pending for status in at_once].count(0) == 4


async def test_a_run_that_is_delivered_is_not_read_to_tell_how_it_stands(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SpooledRun(bench.spool, "e")
    run.end()
    await bench.deliver()
    monkeypatch.setattr(standing, "count_log", None)
    with bench.ledger() as ledger:
        assert [found.status for found in survey(bench.spool, ledger)] == ["FINISHED"]


def test_what_belongs_to_no_run_is_a_row_and_not_a_run(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.end()
    store = Writer(store_directory(bench.spool), records.Open("w"))
    store.put(records.ExperimentOperation(T0, "create", "e"))
    store.close()
    found = survey(bench.spool, None)
    assert len(found) == 2
    assert totals(found, None) == "1 run: 0 records acknowledged, 1 pending, 0 quarantined"
    [named, other] = [str(cell) for cell in table_of_statuses(found, wide=True).columns[1].cells]
    assert named.startswith("e/")
    assert other == "experiments, registry, traces"
