"""The carrier: who is delivered when, and that one run's trouble is only its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from tests.fakes.registry import FakeServer
from tests.fakes.tracking import Fault
from tests.fakes.workbench import Workbench, apart
from tests.spooling import SpooledRun

from mlferry_agent.answers import Answer
from mlferry_agent.carrier import Carrier
from mlferry_agent.discovery import STORE, discover
from mlferry_agent.errors import GaveUp
from mlferry_agent.requests import Request
from mlferry_agent.terms import Terms
from mlferry_spool.layout import find_run, store_directory
from mlferry_spool.liveness import Machine
from mlferry_spool.reader import LogReader
from mlferry_spool.records import ExperimentOperation, Open, RegistryOperation
from mlferry_spool.writer import Writer

ELSEWHERE = Machine("another", "id", "boot")


async def idle(carrier: Carrier) -> None:
    while carrier.is_busy:
        await asyncio.wait(carrier._active.values())


async def look(carrier: Carrier, *, everywhere: bool = False) -> None:
    """One look, and the deliveries that it began."""
    await carrier.look(everywhere=everywhere)
    await idle(carrier)


@contextmanager
def scanning(carrier: Carrier) -> Iterator[None]:
    """The next look is one at everything, whenever the last one was."""
    carrier._scanned_at = -1e9
    yield


def closed_runs(bench: Workbench, count: int) -> list[SpooledRun]:
    runs = [SpooledRun(bench.spool, "e") for _ in range(count)]
    for run in runs:
        run.metrics(1, {"m": 1.0})
        run.end()
    return runs


async def test_a_spool_of_many_runs_is_delivered_a_few_at_a_time(bench: Workbench) -> None:
    runs = closed_runs(bench, 100)
    most = 0

    def watch(run_id: str, records: int) -> None:
        nonlocal most
        most = max(most, sum(task.get_name().startswith("deliver ") for task in asyncio.all_tasks()))

    with bench.carrier(watch) as carrier:
        await carrier.deliver(discover(bench.spool))
    assert 0 < most <= 32
    assert all(apart(bench.server, run.logged) == [] for run in runs)


async def test_small_runs_do_not_wait_for_a_large_one(bench: Workbench) -> None:
    large = SpooledRun(bench.spool, "e")
    for step in range(20_000):
        large.metrics(step, {"m": 1.0})
    large.end()
    small = closed_runs(bench, 40)
    await bench.deliver()
    heard = [str(body.get("run_id")) for endpoint, body in bench.server.heard if endpoint == "runs/update"]
    assert len(heard) == 41
    assert heard[-1] == bench.server.run_of(large.run_id).run_id
    assert all(apart(bench.server, run.logged) == [] for run in small)


async def test_one_run_whose_files_cannot_be_read_is_delayed_alone(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    bad, *good = closed_runs(bench, 3)
    directory = find_run(bench.spool, bad.run_id)
    assert directory is not None
    writer = directory / bad.writer.writer_id
    aside = writer.rename(writer.with_name("aside"))
    writer.mkdir()
    loop = writer / f"{0:020d}.seg"
    loop.symlink_to(loop)
    with caplog.at_level(logging.WARNING), bench.carrier() as carrier:
        await carrier.deliver(discover(bench.spool))
    assert all(apart(bench.server, run.logged) == [] for run in good)
    loop.unlink()
    writer.rmdir()
    aside.rename(writer)
    await bench.deliver()
    assert apart(bench.server, bad.logged) == []


class _Defective:
    """A sender that fails about one run as only a defect of ours makes it fail."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.mended = False

    def __call__(self, request: Request) -> Answer | Fault | None:
        if not self.mended and request.path.endswith("runs/search") and self.run_id.encode() in (request.body or b""):
            raise KeyError("info")
        return None


async def test_a_defect_in_one_run_is_logged_once_and_the_others_go_on(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    bad, *good = closed_runs(bench, 3)
    bench.server.fault = defect = _Defective(bad.run_id)
    with caplog.at_level(logging.WARNING), bench.carrier() as carrier:
        for _ in range(3):
            with scanning(carrier):
                await look(carrier)
        assert all(apart(bench.server, run.logged) == [] for run in good)
        assert carrier.delayed == 1
        [said] = [entry for entry in caplog.records if bad.run_id in entry.getMessage()]
        assert said.exc_info
        defect.mended = True
        await look(carrier)  # not at once, and not twice a second
        assert bench.server.runs_of(bad.run_id) == []
        with scanning(carrier):
            await look(carrier)
        assert carrier.delayed == 0
    assert apart(bench.server, bad.logged) == []


@pytest.mark.parametrize("body", [b'{"runs": [{"data": {}}]}', b'{"runs": 7}', b'{"runs": [{"info": {"run_id": 7}}]}'])
async def test_nonsense_of_the_server_about_one_run_delays_that_run_alone(
    bench: Workbench, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    bad, *good = closed_runs(bench, 3)

    def fault(request: Request) -> Answer | Fault | None:
        is_about_it = request.path.endswith("runs/search") and bad.run_id.encode() in (request.body or b"")
        return Answer(200, body=body) if is_about_it else None

    bench.server.fault = fault
    with caplog.at_level(logging.WARNING), bench.carrier() as carrier:
        with scanning(carrier):
            await look(carrier)
        assert all(apart(bench.server, run.logged) == [] for run in good)
        assert carrier.delayed == 1
        assert "not what MLflow answers here" in caplog.text
        assert "a defect of mlferry" not in caplog.text
        bench.server.fault = lambda request: None
        with scanning(carrier):
            await look(carrier)
    assert apart(bench.server, bad.logged) == []


async def test_after_a_command_has_given_up_no_further_run_is_begun(bench: Workbench) -> None:
    closed_runs(bench, 100)
    bench.server.fault = lambda request: Fault.BEFORE
    seen: list[str] = []
    with bench.carrier(give_up_after_s=10.0) as carrier:
        begin = carrier._delivery
        carrier._delivery = lambda run: (seen.append(run.run_id), begin(run))[1]  # type: ignore[method-assign]
        with pytest.raises(GaveUp):
            await carrier.deliver(discover(bench.spool))
    assert len(seen) < 100


async def test_growth_is_news_and_nothing_else_is(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    with bench.carrier() as carrier:
        await look(carrier)
        await look(carrier)
        asked = len(bench.server.heard)
        for _ in range(5):
            await look(carrier)
        assert len(bench.server.heard) == asked
        run.metrics(1, {"m": 1.0})
        await look(carrier)
        assert len(bench.server.run_of(run.run_id).points) == 1
        run.end()
        await look(carrier)
        assert apart(bench.server, run.logged) == []


async def test_a_run_that_was_closed_is_looked_at_again_when_it_grows(bench: Workbench) -> None:
    [run] = closed_runs(bench, 1)
    with bench.carrier() as carrier:
        await look(carrier)
        again = run.beside(resumed=True)
        again.metrics(2, {"m": 1.0})
        with scanning(carrier):
            await look(carrier)
        assert bench.server.run_of(run.run_id).status == "RUNNING"
        again.end(end_time=int(time.time() * 1000) + 1000)
        await look(carrier)
        assert apart(bench.server, run.logged) == []


@pytest.mark.parametrize("is_lock_seen", [True, False])
async def test_a_writer_elsewhere_that_grows_stale_is_closed_though_nothing_changes(
    bench: Workbench, is_lock_seen: bool
) -> None:
    run = SpooledRun(bench.spool, "e")
    bench.terms = Terms(stale_after_s=3600.0, local_disk=False, machine=ELSEWHERE)
    with bench.carrier() as carrier:
        await look(carrier)
        assert bench.server.run_of(run.run_id).status == "RUNNING"
        carrier._terms = carrier._news.terms = Terms(stale_after_s=-1.0, local_disk=False, machine=ELSEWHERE)
        if not is_lock_seen:
            _release(run)
        with scanning(carrier):
            await look(carrier)
        assert bench.server.run_of(run.run_id).status == "KILLED"


def _release(run: SpooledRun) -> None:
    """As if its machine were another: no lock is held here."""
    lock = run.directory / run.writer.writer_id / "writer.lock"
    lock.rename(lock.with_suffix(".elsewhere"))


async def test_a_killed_writer_is_noticed_within_a_few_looks(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    with bench.carrier() as carrier:
        await look(carrier)
        await look(carrier)
        directory = run.directory / run.writer.writer_id
        lock = directory / "writer.lock"
        lock.unlink()
        lock.touch()  # nobody holds this one, as after a SIGKILL
        for _ in range(4):
            await look(carrier)
    assert bench.server.run_of(run.run_id).status == "KILLED"
    run.end()


async def test_looks_at_everything_are_rarer_the_longer_they_take(bench: Workbench) -> None:
    with bench.carrier() as carrier:
        await look(carrier)
        carrier._scan_took_s = 10.0
        closed_runs(bench, 1)
        await look(carrier, everywhere=True)
        assert bench.server.runs == {}
        carrier._scanned_at -= 201
        await look(carrier)  # it was asked for, and is not forgotten
        assert len(bench.server.runs) == 1


async def test_a_spool_that_cannot_be_listed_is_said_and_does_not_stop_the_agent(bench: Workbench) -> None:
    runs = bench.spool / "runs"
    bench.spool.mkdir()
    runs.symlink_to(runs)
    with bench.carrier() as carrier:
        await look(carrier)
        assert str(carrier.blind).startswith("the spool cannot be read")
        os.unlink(runs)
        closed_runs(bench, 1)
        with scanning(carrier):
            await look(carrier)
        assert carrier.blind is None
    assert len(bench.server.runs) == 1


async def test_a_thousand_children_of_an_unknown_parent_cost_one_walk(bench: Workbench, tmp_path: Path) -> None:
    for _ in range(30):
        SpooledRun(bench.spool, "e", parent_run_id="f" * 32).end()
    with bench.carrier() as carrier:
        walks: list[str] = []
        search = carrier._search
        carrier._search = lambda run_id: (walks.append(run_id), search(run_id))[1]  # type: ignore[method-assign]
        await carrier.deliver(discover(bench.spool))
        searched_at = carrier._searched_at
        assert len(walks) == 30
        carrier._search("f" * 32)
        assert carrier._searched_at == searched_at
    assert len(bench.server.runs) == 30


async def test_a_version_waits_for_its_own_run_and_for_no_other(bench: Workbench) -> None:
    bench.server = server = FakeServer()
    [run] = closed_runs(bench, 1)
    lives = SpooledRun(bench.spool, "e")
    store = Writer(store_directory(bench.spool), Open(writer_id="w-store", role="guest"))
    details = {"source": f"runs:/{run.run_id}/model", "run_id": run.run_id}
    assert store.put(RegistryOperation(1, "create_registered_model", "name"))
    assert store.put(RegistryOperation(2, "create_model_version", "name", "uid", details))
    with bench.carrier() as carrier:
        for step in range(3):
            lives.metrics(step, {"m": 1.0})  # so that at no look everything is at rest
            with scanning(carrier):
                await look(carrier)
    assert [version.run_id for version in server.registered["name"].values()] == [server.run_of(run.run_id).run_id]
    store.close()
    lives.end()


async def test_what_belongs_to_no_run_and_could_not_be_read_for_a_while_is_read_again_and_is_no_trouble_then(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Writer(store_directory(bench.spool), Open("s"))
    assert store.put(ExperimentOperation(1, "create", "placed", {}, offline_experiment_id="7"))
    assert store.close()
    reading = LogReader.read

    def fails(self: LogReader, now: float = 0.0) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with bench.ledger() as ledger:
        carrier = bench.carrier_of(ledger)
        monkeypatch.setattr(LogReader, "read", fails)
        await look(carrier, everywhere=True)
        assert [row.trouble for row in ledger.writers(STORE).values()] == [
            str(OSError(errno.EIO, os.strerror(errno.EIO)))
        ]
        monkeypatch.setattr(LogReader, "read", reading)
        await look(carrier)
        assert ledger.experiment_of("7") is None, "not at every look"
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 20)
        await look(carrier)
        assert ledger.experiment_of("7") is not None
        assert [row.trouble for row in ledger.writers(STORE).values()] == [None]


# -- many runs that are live ---------------------------------------------------------------------------------------------


async def test_what_is_logged_while_a_run_waits_for_its_turn_goes_with_it(bench: Workbench) -> None:
    runs = [SpooledRun(bench.spool, "e") for _ in range(20)]
    for run in runs:
        run.metrics(1, {"m": 1.0})
    last = sorted(runs, key=lambda run: run.directory.name)[-1]
    is_first = iter([True])

    def meanwhile(request: Request) -> None:
        if "log-batch" in request.path and next(is_first, False):
            last.metrics(2, {"m": 2.0})

    bench.server.fault = meanwhile
    with bench.carrier() as carrier:
        await look(carrier, everywhere=True)
    told = bench.server.run_of(last.run_id)
    assert len(told.points) == 2
    assert bench.server.endpoints(told.run_id).count("runs/log-batch") == 1


class _Hanging(FakeServer):
    """Takes everything but files, which never come to an end."""

    async def upload(self, request: Request, file: BinaryIO, size: int) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_run_whose_request_hangs_holds_up_nobody_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlferry_agent.carrier._LONGEST_BEGINNING_S", 0.01)
    bench = Workbench(tmp_path, _Hanging())
    for _ in range(10):
        run = SpooledRun(bench.spool, "e")
        run.artifact("large", b"x")
        run.end()
    runs = closed_runs(bench, 3)
    with bench.carrier() as carrier:
        await carrier.look(everywhere=True)
        while any(apart(bench.server, run.logged) for run in runs):  # noqa: ASYNC110 - the server sets no event
            await asyncio.sleep(0.01)
        await carrier.stop()


async def test_growing_runs_are_looked_at_more_often_but_not_all_the_time(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    with bench.carrier() as carrier:
        assert carrier.pause_s(0.5) == 0.5
        await look(carrier, everywhere=True)
        carrier._look_took_s = 0.0
        assert carrier.pause_s(0.5) == 0.1
        carrier._look_took_s = 0.02
        assert carrier.pause_s(0.5) == pytest.approx(0.2)
        carrier._look_took_s = 3.0
        assert carrier.pause_s(0.5) == 0.5
        for _ in range(3):  # that a writer lives is news, once
            await look(carrier)
        carrier._look_took_s = 0.0
        assert carrier.pause_s(0.5) == 0.5
        carrier._grew_at -= 31
        assert carrier.pause_s(0.5) == 1.0
