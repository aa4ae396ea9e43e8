"""The ledger: remembers across lives, belongs to one process, and says what is wrong with it."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.workbench import Workbench, apart
from tests.spooling import SpooledRun

from mlferry_agent.errors import LedgerBusy, LedgerUnusable
from mlferry_agent.ledger import Ledger, Quarantined, RunRow, WriterRow, ledger_path
from mlferry_spool.tailer import Cursor

URL = "https://mlflow.example.org/prefix"
RUN = RunRow(
    "run", "20260101T000000-run", "name", "experiment", "1", "server", "mlflow-artifacts:/1", reported={"a": "b"}
)
WRITER = WriterRow(
    "run", "w", Cursor(5, 600, 7), {"metrics": 9}, {"writer_id": "w"}, (10, "FINISHED"), True, 10, 3, 2, 1, "t"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return ledger_path(tmp_path / "state", URL)


def test_a_durable_transaction_waits_for_the_disk_and_no_other_does(path: Path) -> None:
    ledger = Ledger.open(path, URL)
    found = []
    for durable in (False, True, False):
        with ledger.transaction(durable=durable):
            found += ledger.rows("PRAGMA synchronous")
    assert found == [(1,), (2,), (1,)]
    ledger.close()


def test_what_was_written_is_there_in_the_next_life(path: Path) -> None:
    ledger = Ledger.open(path, URL)
    with ledger.transaction():
        ledger.put_run(RUN)
        ledger.put_writer(WRITER)
        ledger.put_experiment(None, "experiment", "1")
        ledger.quarantine(Quarantined("run", "w", 3, "metric", "loss", "why", 5))
    ledger.close()
    found = Ledger.read(path)
    assert found is not None
    assert (found.run("run"), found.writers("run"), found.url) == (RUN, {"w": WRITER}, URL)
    assert found.experiment_id(None, "experiment") == "1"
    assert found.quarantined() == [Quarantined("run", "w", 3, "metric", "loss", "why", 5)]
    found.close()


def test_whoever_may_only_read_sees_what_stands_in_a_ledger_that_nobody_has_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.open(path, URL)
    with ledger.transaction():
        ledger.put_run(RUN)
    ledger.close()
    before = set(path.parent.iterdir())
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere, so modes cannot show it
    found = Ledger.read(path)
    assert found is not None
    assert found.run("run") == RUN
    assert set(path.parent.iterdir()) == before, "a file was made beside it"
    found.close()


def test_a_transaction_that_fails_leaves_nothing(path: Path) -> None:
    ledger = Ledger.open(path, URL)
    with pytest.raises(ZeroDivisionError), ledger.transaction():
        ledger.put_run(RUN)
        raise ZeroDivisionError
    assert ledger.runs() == []
    ledger.close()


def test_a_second_process_is_told_that_the_ledger_is_held(path: Path) -> None:
    first = Ledger.open(path, URL)
    with pytest.raises(LedgerBusy):
        Ledger.open(path, URL)
    first.close()
    Ledger.open(path, URL).close()


def test_two_destinations_have_two_ledgers(tmp_path: Path) -> None:
    assert ledger_path(tmp_path, "http://a:1") != ledger_path(tmp_path, "http://a:2")


def test_a_ledger_of_a_newer_mlferry_is_not_touched(path: Path) -> None:
    Ledger.open(path, URL).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    database.close()
    with pytest.raises(LedgerUnusable, match="newer mlferry"):
        Ledger.open(path, URL)


def test_a_file_that_is_no_ledger_is_named(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 40)
    with pytest.raises(LedgerUnusable, match="sqlite"):
        Ledger.open(path, URL)


def test_retry_reads_the_run_anew_and_sets_free_what_was_set_aside(path: Path) -> None:
    ledger = Ledger.open(path, URL)
    with ledger.transaction():
        ledger.put_run(RunRow("run", parked="deleted on the server"))
        ledger.put_writer(WRITER)
        ledger.quarantine(Quarantined("run", "w", 3, "metric", "loss", "why"))
    assert ledger.retry("run") == 2
    row, writer = ledger.run("run"), ledger.writers("run")["w"]
    assert row is not None
    assert row.parked is None
    assert (writer.cursor, writer.lanes, writer.acknowledged) == (Cursor(), {}, 0)
    assert ledger.quarantined() == []
    ledger.close()


def test_a_ledger_that_could_not_be_opened_is_held_by_nobody(path: Path) -> None:
    Ledger.open(path, URL).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    for _ in range(2):
        with pytest.raises(LedgerUnusable, match="newer mlferry"):
            Ledger.open(path, URL)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    database.close()
    Ledger.open(path, URL).close()


def test_a_file_that_has_no_tables_yet_was_never_delivered_by(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    assert Ledger.read(path) is None


def test_a_state_directory_may_have_any_name(tmp_path: Path) -> None:
    path = ledger_path(tmp_path / "odd?mode=rw#%41 ö", URL)
    ledger = Ledger.open(path, URL)
    reader = Ledger.read(path)
    assert reader is not None
    assert reader.url == URL
    reader.close()
    ledger.close()


def test_what_sqlite_refuses_is_the_ledgers_trouble_and_leaves_no_transaction_open(path: Path) -> None:
    ledger = Ledger.open(path, URL)
    ledger._database.execute("PRAGMA query_only = 1")
    with pytest.raises(LedgerUnusable, match="readonly"), ledger.transaction():
        ledger.put_run(RUN)
    ledger._database.execute("PRAGMA query_only = 0")
    with ledger.transaction():
        ledger.put_run(RUN)
    assert ledger.run("run") == RUN
    ledger.close()


def test_a_retried_run_is_told_its_end_again(path: Path) -> None:
    ledger = Ledger.open(path, URL)
    with ledger.transaction():
        ledger.put_run(replace(RUN, status="FINISHED", end_time=10))
    ledger.retry("run")
    assert ledger.run("run") == RUN
    ledger.close()


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.7, 0.9999])
async def test_a_ledger_that_was_cut_off_is_refused_or_does_no_harm_and_without_it_nothing_is_doubled(
    bench: Workbench, kept: float
) -> None:
    runs = [SpooledRun(bench.spool, "e") for _ in range(40)]
    await bench.deliver()
    for run in runs:
        run.metrics(1, {"m": 1.0})
        run.end()
    os.truncate(bench.ledger_path, int(bench.ledger_path.stat().st_size * kept))
    try:
        await bench.deliver()
    except LedgerUnusable:
        bench.ledger_path.unlink()
        await bench.deliver()
    assert len(bench.server.runs) == 40
    assert [found for run in runs for found in apart(bench.server, run.logged)] == []
