"""Deliveries: everything of a run arrives once, the bad piece alone is set aside, and the end is said last."""

from __future__ import annotations

import resource
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from tests.fakes.tracking import Fault, refusal
from tests.fakes.workbench import Workbench, apart
from tests.spooling import T0, SpooledRun

from mlferry_agent.answers import Answer
from mlferry_agent.discovery import discover
from mlferry_agent.errors import GaveUp, LedgerUnusable
from mlferry_agent.ledger import Ledger, Quarantined
from mlferry_agent.requests import Request
from mlferry_agent.terms import Terms
from mlferry_spool import records
from mlferry_spool.frames import PREAMBLE_BYTES
from mlferry_spool.layout import run_directories, store_directory
from mlferry_spool.liveness import Machine
from mlferry_spool.writer import Writer

Reply = Fault | Answer | None
ILL = refusal(500, "INTERNAL_ERROR", "database is full")


def set_aside(bench: Workbench) -> list[Quarantined]:
    with bench.ledger() as ledger:
        return ledger.quarantined()


def when(holds: Callable[[Request], bool], reply: Reply) -> Callable[[Request], Reply]:
    return lambda request: reply if holds(request) else None


# -- refusals ------------------------------------------------------------------------------------------------------------


async def test_one_poisoned_point_of_a_thousand_is_found_and_all_others_arrive(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    for step in range(1_000):
        run.metrics(step, {"m": float(step)})
    run.metrics(5, {"poison": 1.0})
    poison = {point for point in run.logged.points if point.key == "poison"}
    for point in poison:
        del run.logged.points[point]
    run.end()
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    [entry] = set_aside(bench)
    assert (entry.action, entry.name, "Invalid value for poison" in entry.reason) == ("metric", "poison", True)
    assert bench.server.run_of(run.run_id).tags["mlferry.quarantined"] == "1"
    assert len(bench.server.heard) < 60  # found by halves, not one by one


async def test_a_param_that_was_changed_keeps_its_first_value_and_the_change_is_set_aside(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.params({"lr": "1", "seed": "5"})
    run.writer.put(records.Params(T0, {"lr": "2", "depth": "3"}))
    run.logged.params["depth"] = "3"
    run.end()
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    assert [(entry.action, entry.name) for entry in set_aside(bench)] == [("param", "lr")]


async def test_a_blob_that_is_gone_or_rotten_is_set_aside_and_other_files_arrive(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.artifact("gone", b"1").unlink()
    run.artifact("rotten", b"22").write_bytes(b"23")
    run.artifact("fine", b"333")
    for name in ("gone", "rotten"):
        del run.logged.artifacts[name]
    run.end()
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    assert sorted(entry.name for entry in set_aside(bench)) == ["gone", "rotten"]


async def test_a_record_of_the_store_whose_details_are_nonsense_stops_no_run(bench: Workbench) -> None:
    store = Writer(store_directory(bench.spool), records.Open("w-store"))
    assert store.put(records.Trace(1, "tr-1", {"trace_metadata": True}))
    assert store.put(records.ExperimentOperation(2, "create", "another", {"tags": {"a": "b"}}))
    store.close()
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    run.end()
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    assert "another" in bench.server.experiments
    [entry] = [entry for entry in set_aside(bench) if entry.action == "trace"]
    assert (entry.name, "its details are not those" in entry.reason) == ("tr-1", True)


async def test_the_tag_by_which_a_run_is_found_is_not_the_users_to_set(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.writer.put(records.Tags(T0, {"mlferry.run_id": "another", "fine": "1"}))
    run.writer.put(records.TagsDeleted(T0, ("mlferry.run_id",)))
    run.logged.tags["fine"] = "1"
    run.end()
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    assert [(entry.action, entry.name) for entry in set_aside(bench)] == [
        ("tag", "mlferry.run_id"),
        ("delete tag", "mlferry.run_id"),
    ]


async def test_a_server_that_takes_nothing_is_not_the_records_fault(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    run.end()
    bench.server.fault = when(lambda request: "log-batch" in request.path or "set-tag" in request.path, ILL)
    await bench.deliver()
    assert set_aside(bench) == []
    bench.server.fault = when(lambda request: False, None)
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


async def test_what_only_one_record_provokes_is_that_records_fault(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"bad": 1.0, "good": 1.0})
    run.end()
    bench.server.fault = when(lambda request: b'"bad"' in (request.body or b""), ILL)
    await bench.deliver()
    assert [entry.name for entry in set_aside(bench)] == ["bad"]
    assert bench.server.run_of(run.run_id).status == "FINISHED"


async def test_an_ill_server_at_the_very_end_does_not_park_the_run(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.end()
    bench.server.fault = when(lambda request: request.path.endswith("runs/update"), ILL)
    await bench.deliver()
    bench.server.fault = when(lambda request: False, None)
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


# -- order and ends ------------------------------------------------------------------------------------------------------


async def test_a_run_that_says_by_itself_that_it_is_finished_is_not_believed_before_everything_arrived(
    bench: Workbench,
) -> None:
    run = SpooledRun(bench.spool, "e")
    run.writer.put(records.RunUpdate(T0, status="FINISHED", run_name="renamed"))
    run.metrics(1, {"m": 1.0})
    await bench.deliver()
    stored = bench.server.run_of(run.run_id)
    assert (stored.status, stored.name, len(stored.points)) == ("RUNNING", "renamed", 1)
    run.end()


async def test_a_folder_that_is_deleted_takes_what_was_in_it_and_nothing_that_came_later(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.artifact("folder/old", b"x" * 1000)
    run.artifact("folder/sub/old", b"x" * 2000)
    run.writer.put(records.ArtifactDeleted(T0, "folder"))
    run.logged.artifacts.clear()
    run.artifact("folder/new", b"")
    run.end()
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


class _Resuming:
    """Begins another writer of the run while the first one's data is delivered."""

    def __init__(self, run: SpooledRun) -> None:
        self.run, self.other = run, None

    def __call__(self, request: Request) -> Reply:
        if self.other is None and request.path.endswith("log-batch"):
            self.other = self.run.beside(resumed=True)  # type: ignore[assignment]
        return None


async def test_a_run_that_is_resumed_while_it_is_delivered_is_not_closed(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    run.end("FAILED", end_time=int(time.time() * 1000) - 1000)
    bench.server.fault = resuming = _Resuming(run)
    await bench.deliver()
    assert bench.server.run_of(run.run_id).status == "RUNNING"
    assert resuming.other is not None
    resuming.other.end(end_time=int(time.time() * 1000) + 1000)
    await bench.deliver()
    assert bench.server.run_of(run.run_id).status == "FINISHED"


async def test_a_writer_elsewhere_that_falls_silent_is_closed_in_the_end_and_reopened_when_it_speaks(
    bench: Workbench,
) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    bench.terms = Terms(stale_after_s=3600.0, local_disk=False, machine=Machine("another", "id", "boot"))
    await bench.deliver()
    assert bench.server.run_of(run.run_id).status == "RUNNING"
    bench.terms = Terms(stale_after_s=-1.0, local_disk=False, machine=Machine("another", "id", "boot"))
    await bench.deliver()
    assert bench.server.run_of(run.run_id).status == "KILLED"
    run.metrics(2, {"m": 1.0})
    bench.terms = Terms(stale_after_s=3600.0, local_disk=False, machine=Machine("another", "id", "boot"))
    await bench.deliver()
    assert bench.server.run_of(run.run_id).status == "RUNNING"
    run.end()
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


async def test_an_end_of_which_no_answer_came_is_taken_back_when_the_writer_speaks_again(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    bench.terms = Terms(stale_after_s=3600.0, local_disk=False, machine=Machine("another", "id", "boot"))
    await bench.deliver()
    acted = False

    def only_acts(request: Request) -> Fault | None:
        nonlocal acted
        first, acted = not acted, True
        return Fault.AFTER if first else Fault.BEFORE

    bench.terms = Terms(stale_after_s=-1.0, local_disk=False, machine=Machine("another", "id", "boot"))
    bench.server.fault = only_acts
    with pytest.raises(GaveUp):
        await bench.deliver(give_up_after_s=30.0)
    assert bench.server.run_of(run.run_id).status == "KILLED"
    bench.server.fault = lambda request: None
    bench.terms = Terms(stale_after_s=3600.0, local_disk=False, machine=Machine("another", "id", "boot"))
    run.metrics(2, {"m": 1.0})
    await bench.deliver()
    assert bench.server.run_of(run.run_id).status == "RUNNING"
    run.end()
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


async def test_no_power_cut_undoes_the_note_that_a_run_is_being_made_or_ended(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[list[str]] = []
    begin = Ledger.transaction

    def watched(ledger: Ledger, *, durable: bool = False) -> AbstractContextManager[None]:
        if durable:
            heard.append([endpoint for endpoint, _ in bench.server.heard])
        return begin(ledger, durable=durable)

    monkeypatch.setattr(Ledger, "transaction", watched)
    run = SpooledRun(bench.spool, "e")
    run.end()
    await bench.deliver()
    before_create, before_end = heard
    assert "runs/create" not in before_create
    assert "runs/create" in before_end and "runs/update" not in before_end
    assert apart(bench.server, run.logged) == []


async def test_a_log_that_cannot_be_read_keeps_its_run_open(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    other = run.beside()
    other.metrics(1, {"m": 1.0})
    for writer in (run, other):
        writer.end()
    [directory] = run_directories(bench.spool)
    segment = next((directory / other.writer.writer_id).glob("*.seg"))
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b"MLFERRY\x01", b"MLFERRY\x63"))
    _mend_check(segment)
    await bench.deliver()
    assert bench.server.run_of(run.run_id).status == "RUNNING"
    segment.write_bytes(data)
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


def _mend_check(segment: Path) -> None:
    data = segment.read_bytes()
    head = data[: PREAMBLE_BYTES - 4]
    segment.write_bytes(head + zlib.crc32(head).to_bytes(4, "big") + data[PREAMBLE_BYTES:])


async def test_a_retry_says_everything_again_and_the_end_after_it(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.writer.put(records.RunUpdate(T0, status="RUNNING"))
    run.metrics(1, {"poison": 1.0})
    run.metrics(2, {"m": 1.0})
    run.end()
    await bench.deliver()
    server_id = bench.server.run_of(run.run_id).run_id
    before = len(bench.server.endpoints(server_id))
    with bench.ledger() as ledger:
        assert ledger.retry(run.run_id) == 1
    await bench.deliver()
    stored = bench.server.run_of(run.run_id)
    assert (stored.status, bench.server.endpoints(server_id)[-1]) == ("FINISHED", "runs/update")
    assert len(bench.server.endpoints(server_id)) > before
    assert len(set_aside(bench)) == 1


async def test_what_is_no_longer_in_quarantine_is_no_longer_said_on_the_server(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    blob = run.artifact("file", b"1")
    data = blob.read_bytes()
    blob.unlink()
    run.end()
    await bench.deliver()
    assert bench.server.run_of(run.run_id).tags["mlferry.quarantined"] == "1"
    blob.write_bytes(data)
    with bench.ledger() as ledger:
        ledger.retry(run.run_id)
    await bench.deliver()
    assert bench.server.run_of(run.run_id).tags["mlferry.quarantined"] == "0"
    assert apart(bench.server, run.logged) == []


# -- the ledger's disk ---------------------------------------------------------------------------------------------------


async def test_a_full_disk_under_the_ledger_stops_delivery_and_doubles_nothing_when_there_is_room_again(
    bench: Workbench,
) -> None:
    run = SpooledRun(bench.spool, "e")
    for step in range(2_500):
        run.metrics(step, {"m": float(step)})
    run.end()
    with bench.ledger() as ledger:
        with _no_room(), pytest.raises(LedgerUnusable):
            await bench.carrier_of(ledger).deliver(discover(bench.spool))
        # The same connection goes on: no transaction was left open.
        await bench.carrier_of(ledger).deliver(discover(bench.spool))
    assert len(bench.server.runs) == 1
    assert apart(bench.server, run.logged) == []


@contextmanager
def _no_room() -> Iterator[None]:
    """Files may not grow, as on a full disk: the kernel refuses each write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_command_that_gave_up_has_kept_what_was_acknowledged(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    for step in range(2_500):
        run.metrics(step, {"m": float(step)})
    run.end()
    batches: list[Request] = []

    def down_after_one(request: Request) -> Reply:
        if request.path.endswith("log-batch"):
            batches.append(request)
        return Fault.BEFORE if len(batches) > 1 else None

    bench.server.fault = down_after_one
    with pytest.raises(GaveUp):
        await bench.deliver(give_up_after_s=60.0)
    with bench.ledger() as ledger:
        [writer] = ledger.writers(run.run_id).values()
    assert writer.acknowledged == 1_000


async def test_a_file_that_is_still_being_copied_into_the_spool_is_waited_for_while_its_writer_lives(
    bench: Workbench,
) -> None:
    run = SpooledRun(bench.spool, "e")
    coming = run.artifact("coming", b"1")
    run.artifact("fine", b"22")
    run.metrics(1, {"m": 1.0})
    coming.rename(coming.with_suffix(".on-its-way"))
    await bench.deliver()
    assert set_aside(bench) == []
    coming.with_suffix(".on-its-way").rename(coming)
    run.end()
    await bench.deliver()
    assert set_aside(bench) == []
    assert apart(bench.server, run.logged) == []


async def test_the_end_is_not_told_any_more_when_the_run_is_resumed_while_the_server_is_away(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.end("FAILED")
    resumed: list[SpooledRun] = []

    def away(request: Request) -> Fault | None:
        if not request.path.endswith("runs/update") or resumed:
            return None
        resumed.append(run.beside(resumed=True))
        return Fault.AFTER

    bench.server.fault = away
    await bench.deliver()
    told = [body for endpoint, body in bench.server.heard if endpoint == "runs/update"]
    assert [body["status"] for body in told] == ["FAILED"]  # the one whose answer was lost
    await bench.deliver()
    assert bench.server.run_of(run.run_id).status == "RUNNING"
    resumed[0].end("FINISHED", end_time=int(time.time() * 1000) + 1000)
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


async def test_a_run_lives_by_a_writer_whose_log_waits_behind_a_long_one(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e", writer_id="w-1")
    for step in range(5_000):
        run.metrics(step, {"m": 1.0})
    run.end("FAILED")
    later = run.beside(writer_id="w-2", resumed=True)
    await bench.deliver()
    told = [body.get("status") for endpoint, body in bench.server.heard if endpoint == "runs/update"]
    assert (told, bench.server.run_of(run.run_id).status) == ([], "RUNNING")
    later.end(end_time=int(time.time() * 1000) + 1000)
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


async def test_a_writer_that_has_not_yet_said_who_it_is_keeps_the_run_open(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.end()
    later = run.beside(resumed=True)
    [segment] = (run.directory / later.writer.writer_id).glob("*.seg")
    data = segment.read_bytes()
    segment.write_bytes(b"")
    await bench.deliver()
    assert bench.server.run_of(run.run_id).status == "RUNNING"
    segment.write_bytes(data)
    later.end(end_time=int(time.time() * 1000) + 1000)
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
