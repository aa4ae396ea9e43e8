"""A little of `make chaos` with each `make test`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos import catalogue
from tests.chaos.agreement import agree
from tests.chaos.catalogue import Scenario
from tests.chaos.jobs import Nursery
from tests.chaos.report import Round, rows, shown
from tests.chaos.trial import Stage, Tally, Trial
from tests.servers import MlflowServer
from tests.spooling import on_server, wait_until


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("chaos")
    with MlflowServer(root / "server") as server, Nursery(root / "nursery.log") as nursery:
        yield Stage(server, nursery)


@pytest.mark.parametrize("scenario", catalogue.short(), ids=lambda scenario: scenario.name)
def test_nothing_is_lost_doubled_or_closed_alive(stage: Stage, tmp_path: Path, scenario: Scenario) -> None:
    if not scenario.possible():
        pytest.skip(f"it needs {scenario.needs}")
    seed = int(os.environ.get("MLFERRY_TEST_SEED") or time.time_ns() % 10**9)
    print(f"MLFERRY_TEST_SEED={seed}")
    with Trial(stage, tmp_path / "trial", random.Random(seed)) as trial:
        scenario.play(trial)
    done = Round(scenario.name, trial.tally, 0.0)
    assert done.trouble == []
    assert done.kills + done.faults > 0
    assert trial.tally.found.records > 100


def test_the_watch_sees_a_run_that_is_closed_while_its_training_lives(stage: Stage, tmp_path: Path) -> None:
    with Trial(stage, tmp_path / "trial", random.Random(1)) as trial:
        job = trial.job("sdk", pace_s=0.02)
        trial.start_agent()
        job.await_notes("metrics", 30)
        wait_until(lambda: trial.watched, "the run is seen to run")
        run = on_server(stage.server, str(job.run_id))
        with contextlib.closing(sqlite3.connect(stage.server.database, timeout=30)) as database, database:
            database.execute("UPDATE runs SET status = 'KILLED' WHERE run_uuid = ?", (run,))
        time.sleep(1)
        trial.settle()
    [words] = trial.tally.closed_alive
    assert "was KILLED while life 0 went on" in words
    assert trial.tally.found.apart == []


def test_the_check_sees_a_point_that_is_missing_and_one_that_is_too_many(stage: Stage, tmp_path: Path) -> None:
    with Trial(stage, tmp_path / "trial", random.Random(1)) as trial:
        job = trial.job("sdk")
        job.await_notes("metrics", 30)
        trial.settle()
        assert Round("", trial.tally, 0.0).trouble == []
        run, one = "run_uuid = ?", on_server(stage.server, str(job.run_id))
        with contextlib.closing(sqlite3.connect(stage.server.database)) as database, database:
            database.execute(f"DELETE FROM metrics WHERE {run} AND key = 'loss' AND step IN (3, 4)", (one,))
            database.execute(
                f"UPDATE metrics SET timestamp = timestamp + 1 WHERE {run} AND key = 'loss' AND step = 5", (one,)
            )
        found = agree(trial.ferry, stage.server, trial.jobs)
        assert (found.lost, found.doubled) == (3, 1)
        assert any("mlferry verify" in words for words in found.apart)
        with Path(job.life.order.journal).open("a") as journal:  # a call that has returned and left nothing
            journal.write(json.dumps(["metrics", 77, 1, {"loss": 1.0}]) + "\n")
        assert agree(trial.ferry, stage.server, trial.jobs).lost == 4


def test_the_table_sums_up_the_rounds_of_a_scenario_and_all_of_them() -> None:
    tally = Tally()
    tally.kills["agent"] = 3
    tally.found.lost = 1
    tally.found.apart.append("a point is missing")
    rounds = [Round("one", tally, 2.0), Round("one", tally, 2.0), Round("other", Tally(), 1.0, left_out="root")]
    one, other, total = rows(rounds)
    assert (one["rounds"], one["kills"], one["lost"], one["seconds"]) == (2, 6, 2, 4)
    assert (other["left out"], other["rounds"]) == ("root", 0)
    assert (total["name"], total["rounds"], total["kills"]) == ("all", 2, 6)
    assert [round_.trouble for round_ in rounds] == [["a point is missing"], ["a point is missing"], []]
    assert shown(rounds).row_count == 3
