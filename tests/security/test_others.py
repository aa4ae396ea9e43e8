"""Records that name what belongs to others on the server: the server's word decides, and only that run feels it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.tracking import FakeRun, refusal
from tests.fakes.workbench import Workbench, apart
from tests.spooling import T0, Logged, SpooledRun

from mlferry_agent.answers import Answer
from mlferry_agent.discovery import discover
from mlferry_agent.errors import Misconfigured
from mlferry_agent.requests import Request

THEIRS = "c" * 32
DENIED = refusal(403, "PERMISSION_DENIED", "Permission denied")

#: What a record names, and whether a request is about it.
NAMED: dict[str, tuple[dict[str, object], Callable[[Request], bool]]] = {
    "a run that we may not see": ({"resumed": True}, lambda request: THEIRS in dict(request.query).values()),
    "a run that we may not write": (
        {"resumed": True},
        lambda request: THEIRS.encode() in (request.body or b"") and not request.path.endswith("search"),
    ),
    "an experiment that we may not write": (
        {"experiment_id": "7"},
        lambda request: b'"7"' in (request.body or b"") and request.path.endswith("runs/create"),
    ),
    "an experiment that we may not see": (
        {"experiment_id": "7"},
        lambda request: b'"7"' in (request.body or b""),
    ),
    "a workspace that is not ours": ({"workspace": "theirs"}, lambda request: request.workspace == "theirs"),
}


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def a_run(bench: Workbench, logged: Logged | None = None, **opening: object) -> SpooledRun:
    run = SpooledRun(bench.spool, "e", logged=logged, **opening)
    run.params({"p": "1"})
    run.metrics(1, {"m": 1.0})
    run.end()
    return run


@pytest.mark.parametrize("what", NAMED)
async def test_what_the_server_denies_to_one_run_stops_no_other(bench: Workbench, what: str) -> None:
    opening, is_about_it = NAMED[what]
    theirs = bench.server.runs[THEIRS] = FakeRun(THEIRS, "0", T0, "theirs")
    bad = a_run(bench, Logged(THEIRS), **opening)
    good = [a_run(bench) for _ in range(40)]
    denials: list[str] = []

    def fault(request: Request) -> Answer | None:
        if not is_about_it(request):
            return None
        denials.append(request.path)
        return DENIED

    bench.server.fault = fault
    with bench.carrier() as carrier:  # as patient as the agent: it would wait for a wrong password to be mended
        await asyncio.wait_for(carrier.deliver(discover(bench.spool)), 60)
    assert denials
    assert [apart(bench.server, run.logged) for run in good] == [[]] * len(good)
    assert (theirs.points, theirs.params, theirs.tags, theirs.status) == (set(), {}, {}, "RUNNING")
    assert bench.server.runs_of(bad.run_id) == []
    assert bench.clock.now < 120
    with bench.ledger() as ledger:
        assert ledger.quarantined(bad.run_id) == [], "the whole run waits; no record of it is to blame"


async def test_a_user_who_may_do_nothing_at_all_is_a_wrong_configuration(bench: Workbench) -> None:
    runs = [a_run(bench) for _ in range(3)]
    bench.server.fault = lambda request: DENIED
    with pytest.raises(Misconfigured):
        await bench.deliver(patient=False)
    with bench.ledger() as ledger:
        assert [row.parked for run in runs if (row := ledger.run(run.run_id))] in ([], [None] * 3)
    bench.server.fault = lambda request: None
    await bench.deliver()
    assert [apart(bench.server, run.logged) for run in runs] == [[]] * 3


async def test_a_text_that_a_firewall_dislikes_is_set_aside_alone(bench: Workbench) -> None:
    run = SpooledRun(bench.spool, "e")
    run.params({"good": "1", "query": "' OR 1=1", "fine": "2"})
    run.end()
    bench.server.fault = lambda request: (
        Answer(403, body=b"<h1>Forbidden</h1>") if b"1=1" in (request.body or b"") else None
    )
    await bench.deliver(patient=False)
    [made] = bench.server.runs_of(run.run_id)
    assert (made.params, made.status) == ({"good": "1", "fine": "2"}, "FINISHED")
    with bench.ledger() as ledger:
        [aside] = ledger.quarantined(run.run_id)
    assert (aside.name, "403" in aside.reason) == ("query", True)
