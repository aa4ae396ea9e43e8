"""`mlferry` alone: what is going on in a few lines, and the one command that is next."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.spooling import SpooledRun

from mlferry_agent.discovery import STORE
from mlferry_agent.errors import LedgerBusy
from mlferry_agent.holding import hold, is_held
from mlferry_agent.ledger import Ledger, Quarantined, WriterRow, ledger_path
from mlferry_agent.status import RunStatus
from mlferry_agent.summary import next_step, summary

Mlferry = Callable[..., tuple[int, str, str]]
URL = "http://there:1"

AT_REST = RunStatus("a", "name", "e", "s", "FINISHED", False, 7, 0, False, [], 0, 0, None, None)
LIVE = replace(AT_REST, run_id="b", live=True, pending=3, lag_s=4.0)
WAITING = replace(AT_REST, run_id="c", pending=5, lag_s=90.0)
PARKED = replace(AT_REST, run_id="d", parked="deleted")


@pytest.mark.parametrize(
    ("statuses", "named", "delivering", "command"),
    [
        ([], False, False, "MLFLOW_TRACKING_URI=spool: python train.py"),
        ([WAITING], True, False, "mlferry sync"),
        ([WAITING], False, False, f"mlferry sync --to {URL}"),
        ([WAITING, AT_REST], True, True, "mlferry watch"),
        ([replace(LIVE, pending=0)], True, False, "mlferry agent"),
        ([LIVE], True, False, "mlferry sync"),
        ([LIVE], True, True, "mlferry watch"),
        ([PARKED, WAITING, LIVE], True, True, "mlferry status"),
        ([replace(AT_REST, run_id=STORE, pending=2)], True, False, "mlferry sync"),
    ],
)
def test_the_next_command_is_the_one_that_helps(
    statuses: list[RunStatus], named: bool, delivering: bool, command: str
) -> None:
    found = summary(Path("/spool"), statuses, URL, is_named=named, is_delivering=delivering)
    assert next_step(found).command == command


def test_nobody_said_which_server() -> None:
    found = summary(Path("/spool"), [WAITING], None, is_named=False, is_delivering=False)
    assert next_step(found).command == "mlferry sync --to http://your-mlflow-server:5000"


def test_each_run_is_counted_once() -> None:
    store = replace(AT_REST, run_id=STORE, pending=2)
    found = summary(Path("/spool"), [AT_REST, LIVE, WAITING, PARKED, store], URL, is_named=True, is_delivering=False)
    assert (found.runs, found.set_aside, found.live, found.waiting, found.delivered) == (4, 1, 1, 1, 1)
    assert (found.records, found.lag_s) == (10, 90.0)


def test_the_command_alone_looks_and_ends_with_the_verdict(spool: Path, mlferry: Mlferry) -> None:
    code, out, _ = mlferry()
    assert code == 0
    assert "0 runs" in out and "not named yet" in out and "MLFLOW_TRACKING_URI=spool:" in out
    run = SpooledRun(spool, "e")
    run.params({"p": "1"})
    run.end()
    code, out, _ = mlferry()
    assert code == 4
    assert (
        "1 waiting\n" in out
        and "waiting  1 record, the oldest for" in out
        and "Next: mlferry sync --to http://your-mlflow-server:5000" in out
    )
    ledger = Ledger.open(ledger_path(spool.parent / "state", URL), URL)
    with ledger.transaction():
        ledger.quarantine(Quarantined(run.run_id, "w", 1, "param", "p", "refused"))
    assert f"{URL}, delivering" in mlferry()[1]
    ledger.close()
    code, out, _ = mlferry()
    assert code == 3
    assert "nothing is delivering now" in out and "1 needs you" in out and f"Next: mlferry status --to {URL}" in out


def test_whether_somebody_delivers_is_asked_without_getting_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "state" / "ledger.sqlite"
    assert not is_held(path)
    fd = hold(path)
    assert is_held(path)
    with pytest.raises(LedgerBusy):
        hold(path)
    os.close(fd)
    assert not is_held(path)
    os.close(hold(path))


def test_each_of_several_servers_is_spoken_of(spool: Path, mlferry: Mlferry) -> None:
    SpooledRun(spool, "e").end()
    for url in (URL, "http://other:1"):
        ledger = Ledger.open(ledger_path(spool.parent / "state", url), url)
        with ledger.transaction():
            ledger.put_writer(WriterRow("r", "w"))
        ledger.close()
    code, out, _ = mlferry()
    assert code == 4
    for url in (URL, "http://other:1"):
        assert f"server   {url}, nothing is delivering now" in out and f"Next: mlferry sync --to {url}" in out
