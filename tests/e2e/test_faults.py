"""Delivery over a bad network: whatever is refused, cut, delayed or answered wrongly on the way, each thing arrives once.

A proxy between the agent and a real server misbehaves; afterwards the server's database is compared with what was logged.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import faults
from tests.faults import Fault, FaultProxy
from tests.servers import MlflowServer
from tests.spooling import (
    T0,
    Ferry,
    SpooledRun,
    a_bit_of_everything,
    differences,
    server_runs,
    unique,
    wait_for_arrival,
    wait_until,
)

SET_ASIDE = 3

#: One path of every endpoint that a delivery meets.
ENDPOINTS = (
    "/version",
    "experiments/get-by-name",
    "experiments/create",
    "runs/search",
    "runs/create",
    "log-batch",
    "delete-tag",
    "log-inputs",
    "mlflow-artifacts",
    "runs/update",
)

AT_ONCE: dict[str, Fault] = {
    "500 after the server acted": faults.commit_then_reply(500, b'{"error_code": "INTERNAL_ERROR", "message": "?"}'),
    "503": faults.reply(503, b"<html>upstream unavailable</html>"),
    "429 with Retry-After": faults.too_many_requests("1"),
    "cut before the request": faults.CUT_BEFORE,
    "cut within the request": faults.cut_mid_request(20),
    "cut after the server acted": faults.COMMIT_THEN_CUT,
    "cut within the answer": faults.CUT_MID_RESPONSE,
    "a login page": faults.captive_portal(),
    "half an answer": faults.TRUNCATE,
}

SLOW: dict[str, Fault] = {
    "no answer": faults.HANG,
    "no answer after the server acted": faults.COMMIT_THEN_HANG,
}


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultProxy]:
    with FaultProxy(mlflow_server.port) as proxy:
        yield proxy


@pytest.fixture
def ferry(tmp_path: Path, proxy: FaultProxy) -> Ferry:
    """A spool of the test's own, and the shared server behind the proxy; who waits, waits one second."""
    return Ferry(tmp_path / "spool", tmp_path / "state", proxy.url, {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1"})


def deliver(ferry: Ferry, *, deadline_s: float = 120.0) -> None:
    done = ferry("sync", deadline_s=deadline_s)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("fault", AT_ONCE.values(), ids=AT_ONCE)
def test_a_fault_at_every_endpoint_costs_nothing(
    ferry: Ferry, proxy: FaultProxy, mlflow_server: MlflowServer, fault: Fault
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("faults"))
    rules = [proxy.add(fault, path=path) for path in ENDPOINTS]
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []
    assert all(rule.done for rule in rules), [rule.path for rule in rules if not rule.done]


@pytest.mark.parametrize("fault", SLOW.values(), ids=SLOW)
def test_an_answer_that_never_comes_is_not_waited_for(
    ferry: Ferry, proxy: FaultProxy, mlflow_server: MlflowServer, fault: Fault
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("slow"))
    paths = ("experiments/create", "runs/create", "log-batch", "mlflow-artifacts", "runs/update")
    rules = [proxy.add(fault, path=path) for path in paths]
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []
    assert all(rule.done for rule in rules), [rule.path for rule in rules if not rule.done]


@pytest.mark.parametrize("path", ["experiments/create", "runs/create"])
def test_a_create_whose_answer_is_lost_again_and_again_creates_once(
    ferry: Ferry, proxy: FaultProxy, mlflow_server: MlflowServer, path: str
) -> None:
    runs = [a_bit_of_everything(ferry.spool, unique("lost answers"), points=5, files=1) for _ in range(4)]
    proxy.add(faults.COMMIT_THEN_CUT, path=path, times=None)
    proxy.add(faults.CUT_BEFORE, path="runs/search", times=3)
    deliver(ferry)
    assert [differences(mlflow_server, run.logged) for run in runs] == [[]] * 4


def test_a_storm_of_faults_costs_nothing(ferry: Ferry, proxy: FaultProxy, mlflow_server: MlflowServer) -> None:
    seed = int(os.environ.get("MLFERRY_TEST_SEED") or time.time_ns() % 10**9)
    print(f"MLFERRY_TEST_SEED={seed}")
    dice = random.Random(seed)
    runs = [a_bit_of_everything(ferry.spool, unique("storm"), points=1500, files=8) for _ in range(4)]
    kinds = [fault for name, fault in AT_ONCE.items() if name != "429 with Retry-After"]
    for _ in range(30):  # a server that fails most of the time is asked ever more rarely
        proxy.add(dice.choice(kinds), path=dice.choice(ENDPOINTS), skip=dice.randrange(4))
    deliver(ferry, deadline_s=240.0)
    assert [differences(mlflow_server, run.logged) for run in runs] == [[]] * 4


def test_a_proxy_that_takes_no_large_bodies_gets_smaller_ones(
    ferry: Ferry, proxy: FaultProxy, mlflow_server: MlflowServer
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("413"), points=600, files=2)
    large = run.beside()
    large.artifact("too large.bin", os.urandom(20_001))
    large.end()
    rule = proxy.add(faults.reply(413, faults.HTML), times=None, larger_than=20_000)
    done = ferry("sync")
    assert done.returncode == SET_ASIDE, done.stdout + done.stderr
    [entry] = ferry.statuses()[run.run_id]["quarantined"]
    assert entry["name"] == "too large.bin" and "HTTP 413" in entry["reason"]
    del run.logged.artifacts["too large.bin"]
    assert differences(mlflow_server, run.logged) == []
    assert rule.done >= 2, "no batch was too large"
    proxy.clear()
    ferry("retry")
    deliver(ferry)


# -- a create that is carried out after nobody waits for it any more ---------------------------------------------------


def an_open_run(ferry: Ferry) -> SpooledRun:
    run = SpooledRun(ferry.spool, unique("late"))
    run.params({"lr": "0.1"})
    run.metrics(0, {"loss": 1.0})
    return run


def come_late(proxy: FaultProxy, server: MlflowServer, run: SpooledRun) -> None:
    """Once another run was made, the server carries out the first create as well."""
    wait_until(lambda: server_runs(server, run.run_id), "the agent makes another run")
    [answer] = proxy.release()
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    assert len(server_runs(server, run.run_id)) == 2


def test_a_run_that_the_server_made_after_nobody_waited_for_it_is_removed(
    ferry: Ferry, proxy: FaultProxy, mlflow_server: MlflowServer
) -> None:
    run = an_open_run(ferry)
    proxy.add(faults.COMMIT_LATE, path="runs/create")
    with ferry.agent():
        come_late(proxy, mlflow_server, run)
        run.metrics(1, {"loss": 0.5}, timestamp=T0 + 9)
        run.end()
        wait_until(lambda: not differences(mlflow_server, run.logged, removed=1), "the second run is removed")
    deliver(ferry)
    assert differences(mlflow_server, run.logged, removed=1) == []


def test_a_late_run_is_removed_even_if_the_agent_that_asked_for_it_was_killed(
    ferry: Ferry, proxy: FaultProxy, mlflow_server: MlflowServer
) -> None:
    run = an_open_run(ferry)
    proxy.add(faults.COMMIT_LATE, path="runs/create")
    with ferry.agent():
        wait_until(lambda: proxy.held, "the agent asks for a run")
    with ferry.agent():
        come_late(proxy, mlflow_server, run)
        run.end()
        wait_until(lambda: not differences(mlflow_server, run.logged, removed=1), "the second run is removed")


def test_a_server_that_is_away_for_a_while_is_waited_for_and_then_given_everything(
    ferry: Ferry, proxy: FaultProxy, mlflow_server: MlflowServer
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("away"))
    proxy.add(faults.CUT_BEFORE, times=None)
    with ferry.agent():
        wait_until(lambda: len(proxy.seen) >= 4, "the agent tries again")
        proxy.clear()
        wait_for_arrival(mlflow_server, run.logged)
