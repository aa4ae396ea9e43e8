"""Sync beside an agent: it watches the agent deliver, and comes back when what was there has been delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.workbench import Workbench
from tests.spooling import SpooledRun

from mlferry_agent import syncing
from mlferry_agent.config import Config
from mlferry_agent.destinations import known_url, statuses
from mlferry_agent.discovery import discover
from mlferry_agent.errors import GaveUp, NoDestination, NoSuchRun
from mlferry_agent.ledger import Ledger, WriterRow, ledger_path
from mlferry_agent.syncing import sync

URL = "http://server:5000"


@pytest.fixture
def config(tmp_path: Path, bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(syncing, "_WATCH_S", 0.01)
    bench.ledger_path = ledger_path(tmp_path / "state", URL)
    return Config(to=URL, dir=bench.spool, state_dir=tmp_path / "state", give_up_after_s=30.0)


class Watcher:
    """What a person would see."""

    def __init__(self) -> None:
        self.beside = asyncio.Event()
        self.records = 0

    def progress(self, run_id: str, records: int) -> None:
        self.records += records

    def say(self) -> None:
        self.beside.set()


@contextmanager
def run_of(bench: Workbench, points: int) -> Iterator[SpooledRun]:
    run = SpooledRun(bench.spool, "e")
    for step in range(points):
        run.metrics(step, {"m": 1.0})
    yield run
    run.end()


async def test_beside_an_agent_sync_waits_for_what_the_agent_delivers(bench: Workbench, config: Config) -> None:
    watcher = Watcher()
    with run_of(bench, 50) as run, bench.carrier() as agent:
        waiting = asyncio.create_task(sync(config, {}, [run.run_id], watcher.progress, watcher.say))
        await watcher.beside.wait()
        assert not waiting.done()
        await agent.deliver(discover(bench.spool))
        await waiting
    assert watcher.records == 50
    assert len(bench.server.runs) == 1


async def test_beside_an_agent_sync_waits_until_the_end_of_a_run_is_told(bench: Workbench, config: Config) -> None:
    with run_of(bench, 5) as run, bench.carrier() as agent:
        await agent.deliver(discover(bench.spool))
    assert [(found.pending, found.end_pending) for found in statuses(config, {})] == [(0, True)]
    watcher = Watcher()
    with bench.carrier() as agent:
        waiting = asyncio.create_task(sync(config, {}, [run.run_id], watcher.progress, watcher.say))
        await watcher.beside.wait()
        assert not (await asyncio.wait([waiting], timeout=0.1))[0]
        await agent.deliver(discover(bench.spool))
        await waiting
    assert [(found.pending, found.end_pending) for found in statuses(config, {})] == [(0, False)]


async def test_beside_an_agent_sync_comes_back_though_the_run_goes_on(bench: Workbench, config: Config) -> None:
    watcher = Watcher()
    with run_of(bench, 5) as run, bench.carrier() as agent:
        waiting = asyncio.create_task(sync(config, {}, [], watcher.progress, watcher.say))
        await watcher.beside.wait()
        await agent.deliver(discover(bench.spool))
        for step in range(100, 150):
            run.metrics(step, {"m": 1.0})
        await waiting
        assert statuses(config, {})[0].pending == 50


async def test_an_agent_that_delivers_nothing_is_not_waited_for_for_ever(bench: Workbench, config: Config) -> None:
    watcher = Watcher()
    with run_of(bench, 5), bench.ledger(), pytest.raises(GaveUp, match="delivers nothing"):
        await sync(replace(config, give_up_after_s=0.05), {}, [], watcher.progress, watcher.say)


async def test_a_run_that_is_not_there_is_named(bench: Workbench, config: Config) -> None:
    with pytest.raises(NoSuchRun):
        await sync(config, {}, ["nothing"], lambda run_id, records: None, lambda: None)


def test_without_a_ledger_everything_is_pending(bench: Workbench, config: Config) -> None:
    with run_of(bench, 5):
        assert [(found.pending, found.acknowledged) for found in statuses(config, {})] == [(5, 0)]


async def test_a_mistyped_address_does_not_hide_what_the_right_one_has(bench: Workbench, config: Config) -> None:
    with run_of(bench, 5) as run:
        pass
    await bench.deliver()
    nobody = "http://127.0.0.1:9"
    Ledger.open(ledger_path(config.state_dir, nobody), nobody).close()
    anywhere = replace(config, to=None)
    assert [(found.run_id, found.pending) for found in statuses(anywhere, {})] == [(run.run_id, 0)]
    assert known_url(anywhere, {}) == "http://server"  # as the workbench calls it


async def test_of_several_destinations_one_must_be_named(bench: Workbench, config: Config) -> None:
    with run_of(bench, 5):
        pass
    await bench.deliver()
    other = Ledger.open(ledger_path(config.state_dir, "http://other"), "http://other")
    with other.transaction():
        other.put_writer(WriterRow("run", "w"))
    other.close()
    with pytest.raises(NoDestination, match="http://other"):
        statuses(replace(config, to=None), {})
    assert [found.pending for found in statuses(config, {})] == [0]
