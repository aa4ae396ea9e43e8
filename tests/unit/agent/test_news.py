"""Which runs have news, and that the others are left alone: by the ledger after a restart, by a glance after that."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.workbench import Workbench, apart
from tests.spooling import SpooledRun

from mlferry_agent import carrier as carrier_module
from mlferry_agent import glances, news
from mlferry_agent.carrier import Carrier
from mlferry_agent.deliveries import Delivery
from mlferry_agent.discovery import RunLog, Runs, discover
from mlferry_agent.glances import Glance, delivered
from mlferry_agent.ledger import Ledger, Quarantined
from mlferry_agent.terms import Terms
from mlferry_spool.records import Heartbeat


@pytest.fixture(autouse=True)
def clocks_tick_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in a directory now has stood there for long, and what is over is looked at every time."""
    monkeypatch.setattr(glances, "_TICK_NS", -1_000_000_000)
    monkeypatch.setattr(carrier_module, "_PAUSE_S_A_RUN", 0.0)


def ended(bench: Workbench, **more: str) -> SpooledRun:
    run = SpooledRun(bench.spool, "e", **more)
    run.metrics(1, {"m": 1.0})
    run.end()
    return run


async def deliveries(carrier: Carrier, *, everywhere: bool = True) -> list[str]:
    """The runs that a look delivers."""
    begun: list[str] = []
    begin = carrier._delivery
    carrier._delivery = lambda run, terms=None: (begun.append(run.run_id), begin(run, terms))[1]  # type: ignore[method-assign]
    carrier._scanned_at = -1e9 if everywhere else time.monotonic()
    await carrier.look(everywhere=False)
    while carrier.is_busy:
        await asyncio.wait(carrier._active.values())
    carrier._delivery = begin  # type: ignore[method-assign]
    return begun


# -- after a restart ----------------------------------------------------------------------------------------------------


async def test_after_a_restart_a_run_that_is_delivered_is_not_read_again(bench: Workbench) -> None:
    run = ended(bench)
    await bench.deliver()
    with bench.carrier() as carrier:
        assert await deliveries(carrier) == []
        later = run.beside(resumed=True)
        later.metrics(2, {"m": 2.0})
        assert await deliveries(carrier) == [run.run_id]
        later.end()
    assert len(bench.server.run_of(run.run_id).points) == 2


def grows(run: SpooledRun) -> None:
    run.beside(resumed=True).metrics(2, {"m": 2.0})


def is_longer(run: SpooledRun) -> None:
    [segment] = run.directory.glob("*/*.seg")
    with segment.open("ab") as file:
        file.write(b"torn")


def lacks_a_writer(run: SpooledRun) -> None:
    [writer] = [path.parent for path in run.directory.glob("*/*.seg")]
    shutil.move(writer, run.directory.parent.parent / "elsewhere")


@pytest.mark.parametrize("happens", [grows, is_longer, lacks_a_writer])
async def test_a_run_whose_files_are_not_those_that_were_delivered_is_looked_at(
    bench: Workbench, happens: Callable[[SpooledRun], None]
) -> None:
    run = ended(bench)
    await bench.deliver()
    happens(run)
    with bench.carrier() as carrier:
        assert await deliveries(carrier) == [run.run_id]


def is_quarantined(ledger: Ledger, run_id: str) -> None:
    ledger.quarantine(Quarantined(run_id, "w", 1, "metric", "m", "no"))


def is_in_doubt(ledger: Ledger, run_id: str) -> None:
    row = ledger.run(run_id)
    assert row is not None
    ledger.put_run(replace(row, in_doubt=1))


def is_to_be_told(ledger: Ledger, run_id: str) -> None:
    row = ledger.run(run_id)
    assert row is not None
    ledger.put_run(replace(row, reported={"mlferry.lost": "1"}))


def is_open(ledger: Ledger, run_id: str) -> None:
    row = ledger.run(run_id)
    assert row is not None
    ledger.put_run(replace(row, end_time=None))


def was_read_in_part(ledger: Ledger, run_id: str) -> None:
    [row] = ledger.writers(run_id).values()
    ledger.put_writer(replace(row, cursor=replace(row.cursor, byte=row.cursor.byte - 1)))


def has_lost(ledger: Ledger, run_id: str) -> None:
    [row] = ledger.writers(run_id).values()
    ledger.put_writer(replace(row, lost=1))


@pytest.mark.parametrize("how", [is_quarantined, is_in_doubt, is_to_be_told, is_open, was_read_in_part, has_lost])
async def test_a_run_of_which_the_ledger_knows_anything_else_is_looked_at(
    bench: Workbench, how: Callable[[Ledger, str], None]
) -> None:
    run = ended(bench)
    await bench.deliver()
    with bench.ledger() as ledger:
        assert list(delivered(ledger)) == [run.run_id]
        with ledger.transaction():
            how(ledger, run.run_id)
    with bench.carrier() as carrier:
        assert await deliveries(carrier) == [run.run_id]


async def test_a_run_that_is_read_to_its_end_while_a_request_is_on_its_way_is_not_taken_for_delivered(
    bench: Workbench,
) -> None:
    run = ended(bench)
    await bench.deliver()
    later = run.beside(resumed=True)
    for step in range(50):
        later.metrics(step, {"m": 1.0})
    later.end()
    for steps in range(1, 60, 3):
        await bench.live_and_die(steps)
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


# -- by a glance --------------------------------------------------------------------------------------------------------


async def test_a_run_that_is_over_costs_no_look_at_its_logs(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    ended(bench)
    lives = SpooledRun(bench.spool, "e")
    with bench.carrier() as carrier:
        for _ in range(3):
            await deliveries(carrier)
        looked: list[RunLog] = []
        signature = news.signature
        monkeypatch.setattr(news, "signature", lambda run: (looked.append(run), signature(run))[1])
        for _ in range(3):
            assert await deliveries(carrier) == []
        assert looked == []
        lives.metrics(1, {"m": 1.0})
        assert await deliveries(carrier, everywhere=False) == [lives.run_id]
        assert {run.run_id for run in looked} == {lives.run_id}
    lives.end()


async def test_a_writer_that_only_says_that_it_lives_is_no_news_while_it_holds_its_lock(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    with bench.carrier() as carrier:
        for _ in range(2):
            await deliveries(carrier)
        for _ in range(3):
            run.writer.put(Heartbeat(int(time.time() * 1000)))
            assert await deliveries(carrier) == []
        run.writer.put(Heartbeat(int(time.time() * 1000)))
        run.metrics(1, {"m": 1.0})
        assert await deliveries(carrier, everywhere=False) == [run.run_id]
        assert len(bench.server.run_of(run.run_id).points) == 1
        run.writer.put(Heartbeat(int(time.time() * 1000)))
        carrier._news._foreign.add(run.run_id)
        assert await deliveries(carrier) == [run.run_id], "where no lock speaks, silence is measured from it"
    run.end()


async def test_runs_that_are_over_are_looked_at_more_rarely_the_more_there_are(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(bench)
    with bench.carrier() as carrier:
        await deliveries(carrier)
        run.beside(resumed=True).metrics(2, {"m": 1.0})
        monkeypatch.setattr(carrier_module, "_PAUSE_S_A_RUN", 1000.0)
        assert await deliveries(carrier) == []
        carrier._swept_at -= 1001
        assert await deliveries(carrier) == [run.run_id]


async def test_a_second_directory_of_a_run_is_news(bench: Workbench) -> None:
    run = ended(bench)
    with bench.carrier() as carrier:
        for _ in range(3):
            await deliveries(carrier)
        again = run.beside(resumed=True)
        again.metrics(2, {"m": 2.0})
        again.end()
        [writer] = [path.parent for path in run.directory.glob("*/*.seg") if path.parent.name == again.writer.writer_id]
        elsewhere = run.directory.with_name(f"20990101T000000-{run.run_id}")
        elsewhere.mkdir()
        writer.rename(elsewhere / writer.name)
        known = carrier._news._glances[run.run_id]
        changed = os.lstat(run.directory).st_ctime_ns
        # As if the directory that is known had never changed: the other machine has only its own.
        carrier._news._glances[run.run_id] = replace(known, directories=((str(run.directory), changed),))
        assert await deliveries(carrier) == [run.run_id]
    assert len(bench.server.run_of(run.run_id).points) == 2


async def test_a_directory_that_changed_a_moment_ago_is_not_believed_to_stay_so(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(bench)
    [found] = discover(bench.spool)
    assert Glance.of(found, (), local_disk=True) is not None
    assert Glance.of(found, (), local_disk=False) is None, "of another machine's clock nothing is known"
    monkeypatch.setattr(glances, "_TICK_NS", 3_600_000_000_000)
    assert Glance.of(found, (), local_disk=True) is None
    run.writer.close()


async def test_a_glance_holds_until_a_writer_a_segment_or_a_byte_comes(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    [found] = discover(bench.spool)

    def glance(*over: str) -> Glance:
        taken = Glance.of(found, over, local_disk=True)
        assert taken is not None and taken.holds()
        return taken

    before = glance()
    run.metrics(1, {"m": 1.0})
    assert not before.holds()
    before = glance()
    [segment] = run.directory.glob("*/*.seg")
    segment.with_name(f"{99:020d}.seg").touch()
    assert not before.holds()
    before = glance(segment.parent.name)
    segment.with_name(f"{199:020d}.seg").touch()
    assert before.holds(), "a log that is over is not looked at"
    (run.directory / "another").mkdir()
    assert not before.holds()
    shutil.rmtree(run.directory)
    assert Glance.of(found, (), local_disk=True) is None


# -- what time does -----------------------------------------------------------------------------------------------------


async def test_a_run_that_waits_for_nothing_is_not_looked_at_for_ever(bench: Workbench) -> None:
    """Its program closed its log and named no end, as MlflowClient's do: it stays open, and costs nothing."""
    run = SpooledRun(bench.spool, "e")
    run.writer.close()
    with bench.carrier() as carrier:
        assert await deliveries(carrier) == [run.run_id]
        assert await deliveries(carrier) == []
        assert run.run_id in carrier._news.open
    assert bench.server.run_of(run.run_id).status == "RUNNING"


async def test_a_run_whose_end_was_seen_only_after_it_was_found_alive_is_closed(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(bench)
    with monkeypatch.context() as late, bench.carrier() as carrier:
        late.setattr(Delivery, "_lives", lambda self, feed: True)
        await deliveries(carrier)
        assert bench.server.run_of(run.run_id).status == "RUNNING"
        late.undo()
        assert await deliveries(carrier) == [run.run_id]
    assert apart(bench.server, run.logged) == []


async def test_a_torn_tail_is_read_again_at_every_look_until_it_is_whole(bench: Workbench) -> None:
    """A page of a network file system may come late, under the size and time that the file has already."""
    bench.terms = Terms(stale_after_s=3600.0, local_disk=False, machine=replace(Terms().machine, boot_id="another"))
    run = SpooledRun(bench.spool, "e")
    [segment] = run.directory.glob("*/*.seg")
    with bench.carrier() as carrier:
        await deliveries(carrier)
        assert await deliveries(carrier) == []
        whole = segment.read_bytes()
        run.metrics(1, {"m": 1.0})
        late = segment.read_bytes()
        with segment.open("r+b") as file:
            file.seek(len(whole))
            file.write(bytes(len(late) - len(whole)))
        assert await deliveries(carrier) == [run.run_id]
        assert await deliveries(carrier) == [run.run_id]
        with segment.open("r+b") as file:
            file.write(late)
        assert await deliveries(carrier) == [run.run_id]
        assert len(bench.server.run_of(run.run_id).points) == 1
        assert await deliveries(carrier) == []
    run.end()


# -- which runs there are -----------------------------------------------------------------------------------------------


def test_the_runs_of_a_spool_are_what_discovery_finds_however_they_came(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    place = tmp_path / "runs"
    assert runs.look() == {}

    def agree() -> None:
        found = {run.run_id: run for run in discover(tmp_path)}
        assert runs.look() == found
        assert runs.look() is runs.look()

    place.mkdir()
    for name in ("20260101T000000-a", "20260102T000000-b", "no run"):
        (place / name).mkdir()
        agree()
    (place / "20250101T000000-b").mkdir()
    agree()
    (place / "20260103T000000-c").touch()
    agree()
    (place / "20260103T000000-c").unlink()
    (place / "20260103T000000-c").symlink_to(place / "20260101T000000-a")
    agree()
    (place / "20260102T000000-b").rmdir()
    agree()
    (place / "20250101T000000-b").rmdir()
    agree()
    shutil.rmtree(place)
    agree()
