"""Identity: one run on the server for each run in the spool, whatever was lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tests.fakes.tracking import FakeRun, Fault, refusal
from tests.fakes.workbench import Workbench, apart
from tests.spooling import T0, Logged, SpooledRun

from mlferry_agent.answers import Answer
from mlferry_agent.requests import Request
from mlferry_spool.layout import find_run
from mlferry_spool.records import Tags

Reply = Fault | Answer | None


def first(endpoint: str, *faults: Reply) -> Callable[[Request], Reply]:
    """These faults for the first requests to an endpoint, none after them."""
    left = list(faults)
    return lambda request: left.pop(0) if left and request.path.endswith(endpoint) else None


def parked(bench: Workbench, run: SpooledRun) -> str:
    with bench.ledger() as ledger:
        row = ledger.run(run.run_id)
    assert row is not None
    return row.parked or ""


async def test_a_create_whose_answer_was_lost_is_found_again(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.end()
    bench.server.fault = first("runs/create", Fault.AFTER)
    await bench.deliver()
    assert len(bench.server.runs) == 1
    assert apart(bench.server, run.logged) == []


async def test_a_create_that_was_carried_out_late_leaves_one_run_at_the_end(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    run.end()
    bench.server.fault = first("runs/create", Fault.LATE)
    await bench.deliver()
    assert len(bench.server.runs) == 2
    assert apart(bench.server, run.logged) == []


async def test_a_copy_that_somebody_made_of_the_run_is_not_deleted(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    bench.server.fault = first("runs/create", Fault.AFTER)
    await bench.deliver()
    original = bench.server.run_of(run.run_id)
    copy = FakeRun("f" * 32, original.experiment_id, T0 + 10, "copy", params={"p": "1"}, tags=dict(original.tags))
    bench.server.runs[copy.run_id] = copy
    run.end()
    await bench.deliver()
    assert not copy.deleted
    assert original.status == "FINISHED"


async def test_an_agent_without_its_ledger_finds_the_run_that_it_made(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    await bench.deliver()
    bench.ledger_path.unlink()
    run.end()
    await bench.deliver()
    assert len(bench.server.runs) == 1
    assert apart(bench.server, run.logged) == []


async def test_a_create_that_is_said_to_be_done_and_shows_no_run_is_not_repeated_at_once(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.end()
    bench.server.fault = first("runs/create", *[Answer(200, body=b"{}")] * 1000)
    await bench.deliver()
    assert sum(endpoint == "runs/search" for endpoint, _ in bench.server.heard) == 2
    assert parked(bench, run) == ""


async def test_a_parent_is_made_before_its_child_and_named_by_its_id_on_the_server(bench: Workbench) -> None:
    parent = SpooledRun(bench.spool, "e")
    child = SpooledRun(bench.spool, "e", parent_run_id=parent.run_id)
    child.writer.put(Tags(T0, {"mlflow.parentRunId": parent.run_id}))
    for run in (child, parent):
        run.end()
    await bench.deliver()
    made = bench.server.run_of(parent.run_id)
    assert bench.server.run_of(child.run_id).tags["mlflow.parentRunId"] == made.run_id
    assert next(iter(bench.server.runs)) == made.run_id


async def test_parents_in_a_circle_are_delivered_all_the_same(bench: Workbench) -> None:
    one, two = "a" * 32, "b" * 32
    runs = [
        SpooledRun(bench.spool, "e", logged=Logged(run_id), parent_run_id=parent)
        for run_id, parent in ((one, two), (two, one))
    ]
    for run in runs:
        run.end()
    await bench.deliver()
    assert [apart(bench.server, run.logged) for run in runs] == [[], []]
    assert len(bench.server.runs) == 2


async def test_a_run_that_was_reserved_on_the_server_is_used_as_it_is(bench: Workbench) -> None:
    reserved = FakeRun("c" * 32, "0", T0, "reserved")
    bench.server.runs[reserved.run_id] = reserved
    run = SpooledRun(bench.spool, "Default", logged=Logged(reserved.run_id), resumed=True)
    run.metrics(1, {"m": 1.0})
    run.end()
    await bench.deliver()
    assert list(bench.server.runs) == [reserved.run_id]
    assert (reserved.status, len(reserved.points)) == ("FINISHED", 1)


async def test_a_new_run_never_adopts_a_run_of_the_server_by_its_mere_id(bench: Workbench) -> None:
    other = FakeRun("d" * 32, "0", T0, "somebody else's")
    bench.server.runs[other.run_id] = other
    run = SpooledRun(bench.spool, "Default", logged=Logged(other.run_id))
    run.end()
    await bench.deliver()
    assert (other.status, len(bench.server.runs)) == ("RUNNING", 2)


async def test_a_deleted_experiment_parks_its_runs_and_no_others(bench: Workbench) -> None:
    bench.server.experiments["gone"] = "7"
    bench.server.deleted_experiments.add("7")
    lost, fine = SpooledRun(bench.spool, "gone"), SpooledRun(bench.spool, "here")
    for run in (lost, fine):
        run.end()
    await bench.deliver()
    assert "is deleted on the server" in parked(bench, lost)
    assert apart(bench.server, fine.logged) == []


async def test_a_run_that_was_deleted_on_the_server_is_parked_until_it_is_restored(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    await bench.deliver()
    stored = bench.server.run_of(run.run_id)
    stored.deleted = True
    run.metrics(1, {"m": 1.0})
    run.end()
    await bench.deliver()
    assert "deleted on the server" in parked(bench, run)
    assert len(bench.server.runs) == 1
    stored.deleted = False
    with bench.ledger() as ledger:
        assert ledger.retry(run.run_id) == 1
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


async def test_eight_runs_that_begin_at_once_make_one_experiment(bench: Workbench) -> None:
    runs = [SpooledRun(bench.spool, "new") for _ in range(8)]
    for run in runs:
        run.end()
    bench.server.fault = first("experiments/create", Fault.AFTER)
    await bench.deliver()
    assert [endpoint for endpoint, _ in bench.server.heard].count("experiments/create") == 1
    assert all(apart(bench.server, run.logged) == [] for run in runs)


async def test_a_directory_that_says_another_run_than_its_records_is_parked(bench: Workbench) -> None:
    victim = SpooledRun(bench.spool, "e")
    await bench.deliver()
    forged = SpooledRun(bench.spool, "e")
    forged.metrics(1, {"m": 1.0})
    directory = find_run(bench.spool, forged.run_id)
    assert directory is not None
    forged.end()
    other = "e" * 32
    directory.rename(directory.with_name(directory.name.replace(forged.run_id, other)))
    await bench.deliver()
    assert bench.server.run_of(victim.run_id).points == set()
    with bench.ledger() as ledger:
        row = ledger.run(other)
        assert row is not None
        assert forged.run_id in (row.parked or "")


@pytest.mark.parametrize("endpoint", ["runs/create", "runs/search", "experiments/get-by-name", "experiments/create"])
async def test_a_server_that_is_ill_for_a_while_parks_nothing(bench: Workbench, endpoint: str) -> None:
    run = SpooledRun(bench.spool, "e")
    run.end()
    bench.server.fault = first(endpoint, *[refusal(500, "INTERNAL_ERROR", "disk full")] * 8)
    await bench.deliver()
    with bench.ledger() as ledger:
        row = ledger.run(run.run_id)
        assert row is None or row.parked is None
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


@pytest.mark.parametrize("has_room", [True, False])
async def test_a_name_that_the_server_has_no_room_for_is_cut(bench: Workbench, has_room: bool) -> None:
    def narrow(request: Request) -> Answer | None:
        told = json.loads(request.body or b"{}")
        if has_room or len(told.get("run_name", "")) <= 250:
            return None
        return refusal(400, "BAD_REQUEST", "value too long for type character varying(250)")

    bench.server.fault = narrow
    run = SpooledRun(bench.spool, "e", run_name="x" * 300)
    run.end()
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    assert bench.server.run_of(run.run_id).name == "x" * (300 if has_room else 250)


async def test_what_no_server_can_be_told_of_a_run_parks_that_run_alone(bench: Workbench) -> None:
    odd, fine = SpooledRun(bench.spool, "e", workspace="no/such\nthing"), SpooledRun(bench.spool, "e")
    for run in (odd, fine):
        run.end()
    await bench.deliver()
    assert parked(bench, odd)
    assert apart(bench.server, fine.logged) == []


async def test_a_create_that_is_carried_out_after_the_run_has_ended_is_found_at_a_later_look(bench: Workbench) -> None:
    hung: list[Request] = []

    def hang(request: Request) -> Reply:
        if not request.path.endswith("runs/create") or hung:
            return None
        hung.append(request)
        return Fault.BEFORE

    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    run.end()
    bench.server.fault = hang
    await bench.deliver()
    bench.server._answer(hung[0])
    assert len(bench.server.runs_of(run.run_id)) == 2
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


async def test_without_its_ledger_an_agent_takes_the_run_that_holds_data_and_deletes_the_one_that_came_late(
    bench: Workbench,
) -> None:
    run = SpooledRun(bench.spool, "e")
    run.metrics(1, {"m": 1.0})
    await bench.deliver()
    known = bench.server.run_of(run.run_id)
    bare = FakeRun("0" * 32, known.experiment_id, known.start_time, known.name, tags=dict(known.tags))
    bench.server.runs[bare.run_id] = bare
    bench.ledger_path.unlink()
    run.end()
    await bench.deliver()
    assert bare.deleted
    assert bench.server.run_of(run.run_id) is known
    assert apart(bench.server, run.logged) == []


async def test_an_experiment_of_another_that_was_given_its_id_on_a_server_that_forgot_is_left_alone(
    bench: Workbench,
) -> None:
    before = SpooledRun(bench.spool, "ours")
    before.end()
    await bench.deliver()
    given = bench.server.experiments.pop("ours")
    bench.server.runs.clear()
    bench.server.experiments["somebody else's"] = given
    later = SpooledRun(bench.spool, "ours")
    later.end()
    await bench.deliver()
    assert bench.server.run_of(later.run_id).experiment_id == bench.server.experiments["ours"] != given


async def test_an_experiment_that_was_renamed_on_the_server_takes_further_runs(bench: Workbench) -> None:
    before = SpooledRun(bench.spool, "ours")
    before.end()
    await bench.deliver()
    bench.server.experiments["a better name"] = bench.server.experiments.pop("ours")
    later = SpooledRun(bench.spool, "ours")
    later.end()
    await bench.deliver()
    assert bench.server.run_of(later.run_id).experiment_id == bench.server.experiments["a better name"]
    assert "ours" not in bench.server.experiments
