"""The ledger: remembers across lives, belongs to one process, and says what is wrong with it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

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
