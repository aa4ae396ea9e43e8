"""What is dropped is never sent nor set aside again, is said on the server, and leaves a verdict that is true."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.tracking import Fault
from tests.fakes.workbench import Workbench, apart
from tests.servers import free_port
from tests.spooling import T0, SpooledRun

from mlferry_agent import status as standing
from mlferry_agent.discovery import discover
from mlferry_agent.drops import choose, drop
from mlferry_agent.errors import NoSuchRecord
from mlferry_agent.ledger import Ledger, Quarantined, RunRow, WriterRow, ledger_path
from mlferry_agent.status import RunStatus, exit_code, run_status
from mlferry_spool import records

Mlferry = Callable[..., tuple[int, str, str]]


def statuses(bench: Workbench) -> list[RunStatus]:
    with bench.ledger() as ledger:
        return [run_status(found, ledger) for found in discover(bench.spool)]


def drop_all(bench: Workbench, *ids: str) -> None:
    chosen = choose(statuses(bench), ids)
    with bench.ledger() as ledger:
        drop(ledger, chosen)


async def poisoned(bench: Workbench, keys: tuple[str, ...] = ("poison", "poison too")) -> SpooledRun:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    for key in keys:
        run.writer.put(records.Metrics(T0, 1, {key: 1.0}))
    run.end()
    await bench.deliver()
    return run


async def test_dropped_records_are_quarantined_no_more_and_the_server_is_told(bench: Workbench) -> None:
    run = await poisoned(bench)
    assert bench.server.run_of(run.run_id).tags["mlferry.quarantined"] == "2"
    drop_all(bench)
    [before] = statuses(bench)
    assert (before.quarantined, before.given_up, before.report_pending) == ([], 2, True)
    assert exit_code([before]) == standing.PENDING
    await bench.deliver()
    tags = bench.server.run_of(run.run_id).tags
    assert (tags["mlferry.quarantined"], tags["mlferry.dropped"]) == ("0", "2")
    [after] = statuses(bench)
    assert (after.report_pending, exit_code([after])) == (False, standing.ALL_ACKNOWLEDGED)
    assert apart(bench.server, run.logged) == []


async def test_one_record_is_dropped_by_its_id_and_the_other_stays(bench: Workbench) -> None:
    await poisoned(bench)
    [status] = statuses(bench)
    first, second = status.quarantined
    assert first.id != second.id
    drop_all(bench, first.id)
    await bench.deliver()
    [status] = statuses(bench)
    assert ([entry.name for entry in status.quarantined], status.given_up) == ([second.name], 1)
    assert exit_code([status]) == standing.SET_ASIDE


async def test_a_record_that_is_not_set_aside_cannot_be_dropped(bench: Workbench) -> None:
    await poisoned(bench)
    with pytest.raises(NoSuchRecord, match="0123456789"):
        choose(statuses(bench), ["0123456789"])


async def test_what_was_dropped_is_not_sent_again_when_the_rest_is_retried(bench: Workbench) -> None:
    run = await poisoned(bench)
    [status] = statuses(bench)
    drop_all(bench, status.quarantined[0].id)
    heard: list[bytes] = []
    bench.server.fault = lambda request: heard.append(request.body or b"")  # type: ignore[func-returns-value]
    with bench.ledger() as ledger:
        assert ledger.retry(run.run_id) == 1
    await bench.deliver()
    assert not [body for body in heard if b'"poison"' in body]
    assert [body for body in heard if b'"poison too"' in body]
    [status] = statuses(bench)
    assert ([entry.name for entry in status.quarantined], status.given_up) == (["poison too"], 1)


async def test_what_was_dropped_comes_back_when_somebody_asks_for_it(bench: Workbench) -> None:
    run = await poisoned(bench, ("poison",))
    drop_all(bench)
    await bench.deliver()
    with bench.ledger() as ledger:
        assert ledger.retry(run.run_id, dropped=True) == 1
    await bench.deliver()
    assert bench.server.run_of(run.run_id).tags["mlferry.dropped"] == "0"
    [status] = statuses(bench)
    assert (len(status.quarantined), status.given_up) == (1, 0)


async def test_a_long_series_of_a_dropped_run_is_given_up_as_one_record(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    await bench.deliver()
    run.series(records.Series("m", bytes(8 * 5_000), (0, 1), (T0, 1)))
    run.end()
    with bench.ledger() as ledger:
        ledger.give_up(run.run_id, "nobody wants it")
    await bench.deliver()
    [status] = statuses(bench)
    assert (status.given_up, status.pending) == (1, 0)


async def test_a_parked_run_that_is_dropped_is_given_up_whole(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "x" * 501)
    run.metrics(1, {"m": 1.0})
    run.artifact("file", b"1")
    run.end()
    await bench.deliver()
    drop_all(bench)
    await bench.deliver()
    [status] = statuses(bench)
    assert (status.parked, status.pending, status.given_up) == (None, 0, 2)
    assert "501 characters" in (status.given_up_why or "")
    assert exit_code([status]) == standing.ALL_ACKNOWLEDGED
    assert bench.server.runs == {}


async def test_a_server_that_is_away_leaves_the_statement_pending(bench: Workbench) -> None:
    run = await poisoned(bench)
    drop_all(bench)
    bench.server.fault = lambda request: Fault.BEFORE
    with pytest.raises(Exception, match="refused"):
        await bench.deliver(give_up_after_s=5.0)
    assert exit_code(statuses(bench)) == standing.PENDING
    bench.server.fault = lambda request: None
    await bench.deliver()
    assert bench.server.run_of(run.run_id).tags["mlferry.dropped"] == "2"


# -- the ledger ---------------------------------------------------


def older(path: Path) -> None:
    """A ledger as the release before left it: with a parked run and something in quarantine."""
    with sqlite3.connect(path) as database:
        for table, column in (("runs", "given_up"), ("writers", "given_up"), ("quarantine", "dropped")):
            database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    database.close()


def test_an_older_ledger_is_read_as_it_is_and_upgraded_by_who_delivers(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger.open(path, "http://there")
    entry = Quarantined("run", "w", 3, "metric", "loss", "why", 5)
    with ledger.transaction():
        ledger.put_run(RunRow("run", parked="why"))
        ledger.put_writer(WriterRow("run", "w", acknowledged=3))
        ledger.quarantine(entry)
    ledger.close()
    older(path)
    before = path.read_bytes()
    reader = Ledger.read(path)
    assert reader is not None
    assert (reader.quarantined(), reader.dropped("run")) == ([entry], [])
    assert (reader.run("run"), reader.writers("run")["w"].acknowledged) == (RunRow("run", parked="why"), 3)
    reader.close()
    assert path.read_bytes() == before
    ledger = Ledger.open(path, "http://there")
    with ledger.transaction():
        ledger.drop(ledger.quarantined())
        ledger.put_writer(WriterRow("run", "w", given_up=7))
    assert (ledger.quarantined(), ledger.dropped("run")) == ([], [entry])
    assert ledger.writers("run")["w"].given_up == 7
    ledger.close()


# -- the command ---------------------------------------------------


@pytest.fixture
def ledger_of(spool: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Ledger]:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFERRY_TO", url)
    monkeypatch.setenv("MLFERRY_GIVE_UP_AFTER_S", "0.1")
    return lambda: Ledger.open(ledger_path(spool.parent / "state", url), url)


@pytest.fixture
def set_aside(spool: Path, ledger_of: Callable[[], Ledger]) -> SpooledRun:
    """A run with one record in quarantine, of a server that is away."""
    run = SpooledRun(spool, "e")
    run.end()
    ledger = ledger_of()
    with ledger.transaction():
        ledger.put_run(RunRow(run.run_id, server_run_id="s", end_time=1, reported={"mlferry.quarantined": "1"}))
        ledger.quarantine(Quarantined(run.run_id, run.writer.writer_id, 3, "metric", "loss", "why"))
    ledger.close()
    return run


def test_without_a_name_or_all_nothing_is_dropped(mlferry: Mlferry, set_aside: SpooledRun) -> None:
    code, _, err = mlferry("drop", "--yes")
    assert (code, "--all" in err) == (2, True)
    assert mlferry("status")[0] == standing.SET_ASIDE


@pytest.mark.parametrize(("answer", "code"), [("", 1), ("n\n", 1), ("y\n", standing.PENDING)])
def test_somebody_is_asked_first_and_nobody_who_answers_means_no(
    mlferry: Mlferry, set_aside: SpooledRun, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    found, _, err = mlferry("drop", "--all")
    assert (found, "metric 'loss': why" in err, "Give this up?" in err) == (code, True, True)
    assert mlferry("status")[0] == (standing.PENDING if code == standing.PENDING else standing.SET_ASIDE)


def test_json_and_the_exit_code_say_what_status_says_afterwards(mlferry: Mlferry, set_aside: SpooledRun) -> None:
    [told] = json.loads(mlferry("status", "--json")[1])
    [entry] = told["quarantined"]
    code, out, err = mlferry("drop", "--record", entry["id"], "--yes", "--json")
    [dropped] = json.loads(out)
    assert (dropped["quarantined"], dropped["given_up"], dropped["report_pending"]) == ([], 1, True)
    assert "could not be reached" in " ".join(err.split())
    assert (code, mlferry("status", set_aside.run_id)[0]) == (standing.PENDING, standing.PENDING)
    assert json.loads(mlferry("status", "--json")[1]) == [dropped]


def test_what_is_not_there_to_be_dropped_is_said(mlferry: Mlferry, set_aside: SpooledRun) -> None:
    code, _, err = mlferry("drop", "--record", "0123456789", "--yes")
    assert (code, "Nothing in quarantine has this id" in " ".join(err.split())) == (1, True)
    other = SpooledRun(Path(set_aside.root), "e")
    other.end()
    code, _, err = mlferry("drop", other.run_id, "--yes")
    assert (code, "Nothing is set aside there" in err) == (standing.PENDING, True)


def test_a_policy_is_one_of_three_and_says_so(mlferry: Mlferry, set_aside: SpooledRun) -> None:
    code, _, err = mlferry("sync", "--deleted", "forget")
    assert (code, "--deleted: deleted is one of quarantine, recreate, drop" in " ".join(err.split())) == (1, True)
