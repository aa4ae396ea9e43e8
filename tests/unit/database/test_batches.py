"""New runs that need no look into the database are written together, and stand there as if each had been written alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from tests.servers import template_database
from tests.spooling import T0, SpooledRun, a_bit_of_everything
from tests.unit.database.conftest import Lane

from mlferry_agent.database import batches, importing, runs
from mlferry_agent.database.runs import RunImport
from mlferry_agent.status import SET_ASIDE
from mlferry_spool import records

_TABLES = ("runs", "tags", "params", "metrics", "latest_metrics")


def small_runs(lane: Lane, count: int, **opening: Any) -> list[SpooledRun]:
    runs = [SpooledRun(lane.root, "sweep", **opening) for _ in range(count)]
    for number, run in enumerate(runs):
        run.params({"lr": f"0.{number}"})
        run.tags({"mine": str(number)})
        for step in range(3):
            run.metrics(step, {"loss": number + 1 / (step + 1), "nan": float("nan")})
        run.end()
    return runs


def runs_of_every_kind(lane: Lane) -> None:
    """Such as can be written together, and such as can not."""
    first, *_ = small_runs(lane, 3)
    a_bit_of_everything(lane.root, "birds")
    going_on, renamed, deleted, empty = (SpooledRun(lane.root, "birds") for _ in range(4))
    going_on.metrics(1, {"loss": 1.0})
    going_on.metrics(1, {"loss": 1.0})
    renamed.writer.put(records.RunUpdate(T0, run_name="another"))
    renamed.tags({"gone": "1", "mlflow.note.content": "stays"})
    renamed.delete_tag("gone")
    renamed.delete_tag("mlflow.user")
    deleted.writer.put(records.RunUpdate(T0, lifecycle="deleted"))
    for run in (renamed, deleted, empty):
        run.end()
    child = SpooledRun(lane.root, "birds", parent_run_id=first.run_id, run_name=None)
    child.writer.put(records.RunUpdate(T0, run_name="it gets a name"))
    child.tags({"mlferry.dropped": "7"})
    child.writer.count_dropped(records.Kind.METRICS, "a test", 2)
    child.end("FAILED")


def dump(lane: Lane) -> dict[str, list[tuple[Any, ...]]]:
    return {table: sorted(lane.rows(f"SELECT * FROM {table}"), key=repr) for table in _TABLES}


def test_runs_that_are_written_together_stand_there_as_if_written_alone(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_of_every_kind(lane)
    together = lane.carry()
    found = dump(lane)
    assert len(found["runs"]) == 9
    shutil.copyfile(template_database(), lane.database)
    shutil.rmtree(lane.folder / "mlartifacts")
    monkeypatch.setattr(RunImport, "_as_new", lambda *_: None)
    alone = lane.carry()
    assert found == dump(lane)
    assert together.as_json() | {"going_on": []} == alone.as_json() | {"going_on": []}
    assert sorted(together.going_on) == sorted(alone.going_on) != []


def test_importing_again_what_was_written_together_changes_no_row(lane: Lane) -> None:
    runs_of_every_kind(lane)
    first = lane.carry()
    before = lane.dump()
    again = lane.carry()
    assert (again.runs["new"], again.runs["there"]) == (0, first.runs["new"] - len(first.going_on))
    assert again.rows.total() == 0
    assert lane.dump() == before


def test_a_run_that_goes_on_after_it_was_written_together_grows(lane: Lane) -> None:
    run = SpooledRun(lane.root, "birds")
    run.metrics(0, {"loss": 2.0})
    assert lane.carry().runs["new"] == 1
    run.metrics(1, {"loss": 1.0})
    run.end()
    report = lane.carry()
    assert (report.runs["grown"], report.rows["metric points"]) == (1, 1)
    assert lane.rows("SELECT status FROM runs") == [("FINISHED",)]


def test_of_runs_that_are_refused_together_only_the_one_with_the_trouble_is_set_aside(lane: Lane) -> None:
    first, bad, last = small_runs(lane, 3)
    lane.rows(
        "CREATE TRIGGER no BEFORE INSERT ON params WHEN NEW.value = '0.1' BEGIN SELECT RAISE(ABORT, 'not this one'); END"
    )
    report = lane.carry()
    assert report.exit_code == SET_ASIDE
    assert (report.runs["new"], report.runs["set aside"], report.rows["metric points"]) == (2, 1, 12)
    assert [(one.run_id, one.what) for one in report.aside] == [(bad.run_id, "run")]
    assert "not this one" in report.aside[0].reason
    assert sorted(lane.rows("SELECT run_uuid FROM runs")) == sorted([(first.run_id,), (last.run_id,)])
    lane.rows("DROP TRIGGER no")
    assert lane.carry().runs == {"new": 1, "there": 2}


def test_a_run_that_came_into_the_database_meanwhile_is_met_alone(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = small_runs(lane, 2)
    lane.rows(
        "INSERT INTO runs (run_uuid, name, experiment_id, status, lifecycle_stage, source_type, artifact_uri)"
        " VALUES (?, 'theirs', 0, 'RUNNING', 'active', 'UNKNOWN', '/nowhere')",
        other.run_id,
    )
    monkeypatch.setattr(importing, "known_runs", lambda *_: frozenset())
    report = lane.carry()
    assert [(one.run_id, one.reason) for one in report.aside] == [
        (other.run_id, "another run of the database has this id")
    ]
    assert lane.rows("SELECT status FROM runs WHERE run_uuid = ?", mine.run_id) == [("FINISHED",)]
    assert lane.rows("SELECT name FROM runs WHERE run_uuid = ?", other.run_id) == [("theirs",)]


def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each batch has that is written from now on."""
    sizes: list[int] = []
    write: Callable[..., int] = batches.Batch._write

    def counting(batch: batches.Batch, connection: Any, runs: list[batches.NewRun]) -> int:
        sizes.append(len(runs))
        return write(batch, connection, runs)

    monkeypatch.setattr(batches.Batch, "_write", counting)
    return sizes


def test_no_more_runs_wait_than_memory_is_meant_for(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MOST_RUNS", 4)
    sizes = written(monkeypatch)
    small_runs(lane, 10)
    assert lane.carry().runs == {"new": 10}
    assert sizes == [4, 4, 2]


def test_a_run_with_many_points_is_written_by_itself(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_MOST_TOGETHER", 7)
    monkeypatch.setattr(runs, "_PIECE", 2)
    together: list[str] = []
    add = batches.Batch.add
    monkeypatch.setattr(batches.Batch, "add", lambda batch, new: (together.append(new.run.run_id), add(batch, new)))
    small = small_runs(lane, 2)  # six points each
    large = SpooledRun(lane.root, "sweep")
    for step in range(4):
        large.metrics(step, {"loss": 1.0, "accuracy": 1.0})
    large.end()
    report = lane.carry()
    assert sorted(together) == sorted(run.run_id for run in small)
    assert (report.runs["new"], report.rows["metric points"]) == (3, 6 + 6 + 8)


def test_no_more_points_wait_than_memory_is_meant_for(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_MOST_POINTS", 11)  # a run has six
    sizes = written(monkeypatch)
    small_runs(lane, 5)
    assert lane.carry().rows["metric points"] == 30
    assert sizes == [2, 2, 1]


def test_a_run_takes_no_statement_of_its_own(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy import event

    def statements(count: int) -> int:
        small_runs(lane, count)
        shutil.copyfile(template_database(), lane.database)
        seen = []
        opened = importing.open_database

        def watched(uri: str) -> Any:
            database = opened(uri)
            event.listen(database.engine, "before_cursor_execute", lambda *told: seen.append(told[2]))
            return database

        monkeypatch.setattr(importing, "open_database", watched)
        assert lane.carry().exit_code == 0
        monkeypatch.setattr(importing, "open_database", opened)
        return len(seen)

    assert statements(3) == statements(40) < 30
