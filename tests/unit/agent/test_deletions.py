"""A run that somebody deletes on the server waits, is made again or is given up: as the operator chose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.registry import FakeServer
from tests.fakes.tracking import FakeRun, Fault
from tests.fakes.workbench import Workbench, apart
from tests.spooling import SpooledRun

from mlferry_agent import status as standing
from mlferry_agent.answers import Answer
from mlferry_agent.config import OnDeleted
from mlferry_agent.discovery import discover
from mlferry_agent.requests import Request
from mlferry_agent.status import RunStatus, exit_code, run_status
from mlferry_spool import records


def status_of(bench: Workbench, run: SpooledRun) -> RunStatus:
    [found] = [found for found in discover(bench.spool) if found.run_id == run.run_id]
    with bench.ledger() as ledger:
        return run_status(found, ledger)


def all_runs(bench: Workbench, run: SpooledRun) -> list[FakeRun]:
    return [found for found in bench.server.runs.values() if found.tags.get("mlferry.run_id") == run.run_id]


async def half_delivered(bench: Workbench, experiment: str = "e") -> SpooledRun:
    """A run of which the server has one point, a param and a file, and that goes on."""
    run = SpooledRun(bench.spool, experiment)
    run.params({"p": "1"})
    run.metrics(1, {"m": 1.0})
    run.artifact("file", b"1")
    await bench.deliver()
    run.metrics(2, {"m": 2.0})
    run.end()
    return run


def choose(bench: Workbench, policy: OnDeleted) -> None:
    bench.terms = replace(bench.terms, deleted=policy)


async def test_by_default_it_waits_for_a_person(bench: Workbench) -> None:
    run = await half_delivered(bench)
    bench.server.run_of(run.run_id).deleted = True
    await bench.deliver()
    found = status_of(bench, run)
    assert (found.parked, found.given_up, exit_code([found])) == (
        "the run was deleted on the server",
        0,
        standing.SET_ASIDE,
    )
    assert len(all_runs(bench, run)) == 1


async def test_recreated_it_is_another_run_that_holds_all_of_it(bench: Workbench) -> None:
    choose(bench, "recreate")
    run = await half_delivered(bench)
    bench.server.run_of(run.run_id).deleted = True
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    assert [found.deleted for found in all_runs(bench, run)] == [True, False]
    found = status_of(bench, run)
    assert (found.acknowledged, found.pending, exit_code([found])) == (4, 0, standing.ALL_ACKNOWLEDGED)
    assert found.server_run_id == bench.server.run_of(run.run_id).run_id


async def test_a_run_of_a_server_that_lost_everything_is_recreated_and_its_experiment_too(bench: Workbench) -> None:
    choose(bench, "recreate")
    run = await half_delivered(bench)
    bench.server.runs.clear()
    del bench.server.experiments["e"]
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    assert bench.server.run_of(run.run_id).experiment_id == bench.server.experiments["e"]


async def test_an_experiment_that_is_deleted_is_restored_and_its_run_goes_on_where_it_was(bench: Workbench) -> None:
    choose(bench, "recreate")
    run = await half_delivered(bench)
    bench.server.delete_experiment("e")
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    assert len(all_runs(bench, run)) == 1


async def test_a_new_run_of_an_experiment_that_is_deleted_restores_it(bench: Workbench) -> None:
    choose(bench, "recreate")
    await half_delivered(bench)
    bench.server.delete_experiment("e")
    other = SpooledRun(bench.spool, "e")
    other.end()
    await bench.deliver()
    assert apart(bench.server, other.logged) == []


async def test_a_run_that_cannot_be_made_while_another_one_restores_its_experiment_is_made_after_it(
    bench: Workbench,
) -> None:
    choose(bench, "recreate")
    await half_delivered(bench)
    bench.server.delete_experiment("e")
    other = SpooledRun(bench.spool, "e")
    other.end()
    make = bench.server._runs_create

    def restored_meanwhile(body: dict[str, Any]) -> Answer:
        answer = make(body)
        bench.server.deleted_experiments.clear()
        return answer

    bench.server._runs_create = restored_meanwhile  # type: ignore[method-assign]
    with bench.carrier() as carrier:
        await carrier.deliver([found for found in discover(bench.spool) if found.run_id == other.run_id])
    assert apart(bench.server, other.logged) == []


@pytest.mark.parametrize("steps", range(10, 200, 10))
async def test_wherever_recreating_is_cut_off_there_is_one_new_run_in_the_end(bench: Workbench, steps: int) -> None:
    choose(bench, "recreate")
    run = await half_delivered(bench)
    bench.server.run_of(run.run_id).deleted = True
    await bench.live_and_die(steps)
    await bench.deliver()
    assert apart(bench.server, run.logged) == []
    assert len(all_runs(bench, run)) == 2


async def test_when_the_answer_to_the_new_creation_is_lost_no_third_run_is_made(bench: Workbench) -> None:
    choose(bench, "recreate")
    run = await half_delivered(bench)
    bench.server.run_of(run.run_id).deleted = True
    lost: list[Request] = []

    def once(request: Request) -> Fault | None:
        if request.path.endswith("runs/create") and not lost:
            lost.append(request)
            return Fault.AFTER
        return None

    bench.server.fault = once
    await bench.deliver()
    assert lost
    assert apart(bench.server, run.logged) == []
    assert len(all_runs(bench, run)) == 2


async def test_a_run_that_is_deleted_as_often_as_it_is_made_is_left_alone_in_the_end(bench: Workbench) -> None:
    choose(bench, "recreate")
    run = await half_delivered(bench)

    def delete_all(request: Request) -> None:
        if request.path.endswith("log-batch"):
            for found in bench.server.runs.values():
                found.deleted = True

    bench.server.fault = delete_all
    await bench.deliver()
    assert len(all_runs(bench, run)) == 2
    assert status_of(bench, run).parked == "the run was deleted on the server"


async def test_dropped_the_rest_of_it_is_passed_over_and_counted_and_nothing_is_sent(bench: Workbench) -> None:
    choose(bench, "drop")
    run = await half_delivered(bench)
    stored = bench.server.run_of(run.run_id)
    stored.deleted = True
    points = set(stored.points)
    await bench.deliver()
    found = status_of(bench, run)
    assert (found.acknowledged, found.pending, found.given_up, found.given_up_why) == (
        3,
        0,
        1,
        "the run was deleted on the server",
    )
    assert exit_code([found]) == standing.ALL_ACKNOWLEDGED
    assert (stored.points, len(all_runs(bench, run))) == (points, 1)


async def test_what_a_dropped_run_logs_later_is_dropped_too_poison_included(bench: Workbench) -> None:
    choose(bench, "drop")
    run = await half_delivered(bench)
    bench.server.run_of(run.run_id).deleted = True
    await bench.deliver()
    again = run.beside(resumed=True)
    again.metrics(3, {"m": 3.0})
    again.metrics(3, {"not/../a key": 3.0})
    again.end()
    heard = len(bench.server.heard)
    choose(bench, "quarantine")
    await bench.deliver()
    found = status_of(bench, run)
    assert (found.given_up, found.quarantined, found.pending) == (3, [], 0)
    assert exit_code([found]) == standing.ALL_ACKNOWLEDGED
    assert len(bench.server.heard) == heard


async def test_a_run_that_the_server_does_not_know_at_all_is_not_dropped_by_itself(bench: Workbench) -> None:
    choose(bench, "drop")
    run = await half_delivered(bench)
    bench.server.runs.clear()
    await bench.deliver()
    found = status_of(bench, run)
    assert (found.parked, found.given_up_why) == ("the server does not know the run any more", None)


async def test_a_dropped_run_can_still_be_delivered_when_somebody_asks_for_it(bench: Workbench) -> None:
    choose(bench, "drop")
    run = await half_delivered(bench)
    bench.server.run_of(run.run_id).deleted = True
    await bench.deliver()
    next(iter(bench.server.runs.values())).deleted = False
    with bench.ledger() as ledger:
        assert ledger.retry(run.run_id) == 0
        assert ledger.retry(run.run_id, dropped=True) == 1
    await bench.deliver()
    assert apart(bench.server, run.logged) == []


@pytest.mark.parametrize("policy", ["recreate", "drop"])
async def test_a_run_that_was_delivered_whole_before_it_was_deleted_stays_deleted(
    bench: Workbench, policy: OnDeleted
) -> None:
    choose(bench, policy)
    run = await half_delivered(bench)
    await bench.deliver()
    bench.server.run_of(run.run_id).deleted = True
    heard = len(bench.server.heard)
    await bench.deliver()
    assert len(bench.server.heard) == heard
    assert status_of(bench, run).given_up_why is None


async def test_an_experiment_that_never_was_is_no_reason_to_drop_a_run(bench: Workbench) -> None:
    choose(bench, "drop")
    run = SpooledRun(bench.spool, "e", experiment_id="999")
    run.end()
    await bench.deliver()
    assert "refuses to create the run" in (status_of(bench, run).parked or "")


async def test_policies_do_not_touch_other_troubles(bench: Workbench) -> None:
    for policy in ("recreate", "drop"):
        choose(bench, policy)  # type: ignore[arg-type]
        run = SpooledRun(bench.spool, "x" * 501)
        run.end()
        await bench.deliver()
        assert "501 characters" in (status_of(bench, run).parked or "")


async def test_a_model_that_a_deleted_run_put_out_waits_with_its_run(bench: Workbench) -> None:
    bench.server = FakeServer()
    run = SpooledRun(bench.spool, "e")
    await bench.deliver()
    model_id = f"m-{'1' * 32}"
    run.writer.put(records.ModelStart(timestamp=1, model_id=model_id, name="model", source_run_id=run.run_id))
    run.writer.put(records.Outputs(1, (records.ModelOutput(model_id),)))
    bench.server.run_of(run.run_id).deleted = True
    await bench.deliver()
    found = status_of(bench, run)
    assert (found.parked, found.quarantined) == ("the run was deleted on the server", [])
    run.end()
