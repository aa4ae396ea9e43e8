"""One delivery, fifty dead agents, ten dead servers: in the end the server holds what was logged, each thing once.

A kill at a random time alone would mostly hit imports and sleeps. So most of them wait for a moment: the agent is killed
while a chosen request is on its way (the server never hears of it) or after the server has acted on it and before the
answer comes back, and which moment that is, and how late after it, is drawn from a seed that is printed.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests import faults
from tests.faults import FaultProxy
from tests.servers import MlflowServer, Undertaker
from tests.spooling import (
    Ferry,
    SpooledRun,
    a_bit_of_everything,
    differences,
    on_server,
    server_runs,
    unique,
    wait_for_arrival,
    wait_until,
)

AGENT_KILLS, SERVER_KILLS = 50, 10
POINTS, PARAMS, FILES = 20_000, 50, 30

#: A moment that is not reached in this time never will be: the agent is killed where it is.
PATIENCE_S = 12.0

SMALL, FILE = "log-batch", "mlflow-artifacts"


@dataclass(frozen=True, slots=True)
class Moment:
    """When an agent dies: at a request (part of its path), acted upon or not; or with no path, at a time.

    ``bounds``: how many requests of a kind are let through before the rest of them hang, so that one life never gets
    past the moments of those that follow. ``takes_server``: the server is killed at the same moment.
    """

    name: str
    path: str = ""
    acted_upon: bool = False
    skip: int = 0
    bounds: tuple[tuple[str, int], ...] = ()
    takes_server: bool = False

    def arm(self, proxy: FaultProxy) -> None:
        for path, many in self.bounds:
            proxy.add(faults.HANG, path=path, skip=many, times=None)
        if self.path:
            proxy.add(faults.COMMIT_THEN_HANG if self.acted_upon else faults.HANG, path=self.path, skip=self.skip)


def moments(dice: random.Random) -> list[Moment]:
    """Fifty moments: the first requests, then the middle in any order, then the end."""
    nothing = ((SMALL, 0), (FILE, 0))
    beginning = [
        *(Moment("experiment", "experiments/create", acted) for acted in (False, True)),
        *(Moment("look-up", "runs/search") for _ in range(2)),
        *(Moment("create", "runs/create", acted, bounds=nothing) for acted in (False, False, True)),
    ]
    middle = [
        *(Moment("small", SMALL, dice.random() < 0.7, dice.randrange(2), ((FILE, 0),)) for _ in range(14)),
        *(Moment("file", FILE, dice.random() < 0.7, dice.randrange(3), ((SMALL, 0),)) for _ in range(11)),
        *(Moment("any time", bounds=((SMALL, 2), (FILE, 1))) for _ in range(6)),
        *(Moment("start-up", bounds=nothing) for _ in range(8)),
    ]
    dice.shuffle(middle)
    end = [Moment("end", "runs/update", acted) for acted in (False, False, True, True)]
    plan = [*beginning, *middle, *end]
    assert len(plan) == AGENT_KILLS, len(plan)
    struck = set(dice.sample([number for number, moment in enumerate(plan) if moment.name != "start-up"], SERVER_KILLS))
    return [replace(moment, takes_server=number in struck) for number, moment in enumerate(plan)]


def a_large_run(root: Path) -> SpooledRun:
    run = SpooledRun(root, unique("killed"))
    run.params({f"param {number}": str(number) for number in range(PARAMS)})
    files = [(f"files/{number}.bin", os.urandom(200_000 + number)) for number in range(FILES)]
    for path, data in files[:-5]:
        run.artifact(path, data)
    for step in range(POINTS // 2):
        run.metrics(step, {"loss": 1 / (step + 1), "accuracy": step / POINTS})
        if step % 1000 == 0:
            run.tags({"last thousand": str(step)})
    for path, data in files[-5:]:
        run.artifact(path, data)
    run.end()
    return run


def live_and_die(ferry: Ferry, proxy: FaultProxy, moment: Moment, dice: random.Random, undertaker: Undertaker) -> bool:
    """One agent's life, until its moment comes. Whether it came."""
    proxy.clear()
    moment.arm(proxy)
    proxy.held.clear()
    if moment.path:
        undertaker.wait()  # the others come while the server is away, too
    longest = PATIENCE_S if moment.path else dice.uniform(0.0, 0.5 if moment.name == "start-up" else 2.0)
    late_s = dice.choice((0.0, 0.0, dice.uniform(0.0, 0.2)))

    def came() -> bool:
        return bool(moment.path) and any(moment.path in target for target in proxy.held)

    with ferry.agent(log=ferry.state / "agent.log"):
        end = time.monotonic() + longest
        while time.monotonic() < end and not came():
            time.sleep(0.002)
        if moment.takes_server:
            undertaker.strike()
        time.sleep(late_s if came() else 0.0)
    return came() or not moment.path


@pytest.mark.timeout(600)
def test_fifty_killed_agents_and_ten_killed_servers_neither_lose_nor_double_anything(
    own_server: MlflowServer, tmp_path: Path
) -> None:
    seed = int(os.environ.get("MLFERRY_TEST_SEED") or time.time_ns() % 10**9)
    print(f"MLFERRY_TEST_SEED={seed}")
    dice = random.Random(seed)
    run = a_large_run(tmp_path / "spool")
    came: Counter[str] = Counter()
    with FaultProxy(own_server.port) as proxy:
        ferry = Ferry(tmp_path / "spool", tmp_path / "state", proxy.url)
        with Undertaker(own_server) as undertaker:
            for moment in moments(dice):
                came[moment.name] += live_and_die(ferry, proxy, moment, dice, undertaker)
            undertaker.wait()
        print(f"moments that came: {dict(came)}; server kills: {undertaker.kills}")
        with ferry.agent(log=ferry.state / "agent.log"):
            wait_for_arrival(own_server, run.logged, 120)
        done = ferry("sync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(own_server, run.logged) == []
    assert len(server_runs(own_server, run.run_id)) == len(own_server.run_ids()) == 1
    server_id = on_server(own_server, run)
    [(rows,)] = own_server.query("SELECT count(*) FROM metrics WHERE run_uuid = ?", server_id)
    assert rows == POINTS
    assert own_server.artifacts_by_api(server_id) == run.logged.artifacts
    assert undertaker.kills == SERVER_KILLS
    aimed = ("experiment", "look-up", "create", "small", "file", "end")
    # Which moments come is chance: the data checks above hold for any, and most parts must have been hit.
    assert sum(came[name] > 0 for name in aimed) >= 4, f"too few parts of the delivery saw a kill: {dict(came)}"


@pytest.mark.parametrize("path", ["experiments/create", "runs/create", "log-inputs", "delete-tag", "runs/update"])
def test_an_agent_that_dies_between_the_servers_commit_and_its_answer_leaves_nothing_twice(
    mlflow_server: MlflowServer, tmp_path: Path, path: str
) -> None:
    run = a_bit_of_everything(tmp_path / "spool", unique("one answer lost"))
    with FaultProxy(mlflow_server.port) as proxy:
        ferry = Ferry(tmp_path / "spool", tmp_path / "state", proxy.url)
        proxy.add(faults.COMMIT_THEN_HANG, path=path)
        with ferry.agent():
            wait_until(lambda: proxy.held, f"{path} is asked for")
        done = ferry("sync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert differences(mlflow_server, run.logged) == []
