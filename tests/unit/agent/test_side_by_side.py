"""A backlog of one run: several requests on their way at once, and nothing that comes out differently by it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.fakes.registry import FakeServer
from tests.fakes.workbench import Workbench, apart
from tests.spooling import SpooledRun

from mlferry_agent.answers import Answer
from mlferry_agent.carrier import Carrier
from mlferry_agent.discovery import discover
from mlferry_agent.requests import Request


class Slow(FakeServer):
    """A server whose answers to requests of points wait for ``goes``; ``first_waits``: only the first such request does.
    ``most_beside``: requests of points at once, ``mixed``: whether anything else of the run was beside them."""

    def __init__(self, *, first_waits: bool = False) -> None:
        super().__init__()
        self.goes = asyncio.Event()
        self.beside = self.most_beside = self.answered = 0
        self.mixed = False
        self._first_waits, self._is_first = first_waits, True

    async def send(self, request: Request) -> Answer:
        if "log-batch" not in request.path:
            return await super().send(request)
        has_points = "metrics" in json.loads(request.body or b"{}")
        self.mixed |= not has_points and self.beside > 0
        self.beside += has_points
        self.most_beside = max(self.most_beside, self.beside)
        try:
            if has_points and (self._is_first or not self._first_waits):
                self._is_first = False
                await self.goes.wait()
            for _ in range(20 * has_points):
                await asyncio.sleep(0)
            answer = await super().send(request)
        finally:
            self.beside -= has_points
        self.answered += has_points
        return answer


def hot_run(bench: Workbench, points: int = 12_000, *, tags: bool = False) -> SpooledRun:
    run = SpooledRun(bench.spool, "e")
    run.params({"p": "1"})
    for step in range(points // 10):
        run.metrics(step, {f"m{key}": step / (key + 1) for key in range(10)})
        if tags and step % 100 == 0:
            run.tags({"step": str(step)})
    run.end()
    return run


def be_bold(carrier: Carrier) -> None:
    """As if it had found out that the server is not busy, and serves four at once best."""
    gate = carrier._courier.gate
    gate.window.size, gate.pace.limit = 4.0, 4


async def settled() -> None:
    """Everything that does not wait for the server is done."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_as_many_requests_of_a_backlog_are_on_their_way_as_the_gate_lets_through(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, server := Slow())
    run = hot_run(bench)
    with bench.carrier() as carrier:
        be_bold(carrier)
        life = asyncio.create_task(carrier.deliver(discover(bench.spool)))
        await settled()
        assert server.beside == 4
        server.goes.set()
        await life
    assert (server.most_beside, apart(server, run.logged)) == (4, [])
    assert server.endpoints(server.run_of(run.run_id).run_id)[-1] == "runs/update"


async def test_a_backlog_takes_no_second_place_while_others_wait_for_their_first(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, server := Slow())
    server.goes.set()
    run = hot_run(bench)

    async def other() -> None:
        while True:
            async with gate.passed():
                for _ in range(5):
                    await asyncio.sleep(0)

    with bench.carrier(connections=2) as carrier:
        gate = carrier._courier.gate
        others = [asyncio.create_task(other()) for _ in range(3)]
        await carrier.deliver(discover(bench.spool))
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    assert (server.most_beside, apart(server, run.logged)) == (1, [])


async def test_what_is_noted_ends_before_the_first_request_that_has_no_answer(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, server := Slow(first_waits=True))
    run = hot_run(bench)
    with bench.carrier() as carrier:
        be_bold(carrier)
        life = asyncio.create_task(carrier.deliver(discover(bench.spool)))
        while server.answered < 2:  # noqa: ASYNC110 - later requests are answered, the first one is not
            await asyncio.sleep(0)
        await settled()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await carrier.stop()
    with bench.ledger() as ledger:
        [row] = ledger.writers(run.run_id).values()
        assert row.lanes["metrics"] == 2  # OPEN, the params, then the first point
        assert row.acknowledged == 1
    server.goes.set()
    await bench.deliver()
    assert apart(server, run.logged) == []
    with bench.ledger() as ledger:
        [row] = ledger.writers(run.run_id).values()
        assert row.acknowledged == 1 + 1_200


async def test_one_bad_point_among_requests_side_by_side_is_set_aside_alone(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, server := Slow())
    server.goes.set()
    run = SpooledRun(bench.spool, "e")
    for step in range(300):
        run.metrics(step, {f"m{key}": step / (key + 1) for key in range(10)})
        if step == 150:
            run.writer.append(4, (1, step, {"poison": 1.0}))
    run.end()
    await bench.deliver()
    assert apart(server, run.logged) == []
    with bench.ledger() as ledger:
        assert [entry.name for entry in ledger.quarantined()] == ["poison"]


async def test_tags_do_not_wait_for_the_end_of_a_backlog_and_go_beside_nothing(tmp_path: Path) -> None:
    bench = Workbench(tmp_path, server := Slow())
    server.goes.set()
    run = hot_run(bench, tags=True)
    await bench.deliver()
    assert (apart(server, run.logged), server.mixed) == ([], False)
    kinds = ["metrics" in body for endpoint, body in server.heard if endpoint == "runs/log-batch"]
    assert kinds.index(True) < len(kinds) - 1 - kinds[::-1].index(False)  # some points before the last tag
