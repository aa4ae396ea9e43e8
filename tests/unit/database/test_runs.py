"""A run of the spool becomes a run of the database, once, under its own id."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
from tests.spooling import T0, SpooledRun, a_bit_of_everything, stored_point
from tests.unit.database.conftest import Lane

from mlferry_agent.database import runs as module
from mlferry_agent.database.marks import MARK_TAG
from mlferry_spool import records
from mlferry_spool.layout import new_run_directory, store_directory
from mlferry_spool.writer import Writer

_POINTS = "SELECT key, value, timestamp, step, is_nan FROM metrics WHERE run_uuid = ?"


def points(lane: Lane, run: SpooledRun) -> Counter[object]:
    stored = lane.rows(_POINTS, run.run_id)
    return Counter(stored_point(key, math.nan if nan else value, at, step) for key, value, at, step, nan in stored)


def status(lane: Lane, run: SpooledRun) -> str:
    [(found,)] = lane.rows("SELECT status FROM runs WHERE run_uuid = ?", run.run_id)
    return str(found)


def test_all_that_a_run_logged_is_there_under_its_id(lane: Lane) -> None:
    run = a_bit_of_everything(lane.root, "birds")
    report = lane.carry()
    assert (report.exit_code, report.runs["new"], report.rows["metric points"], report.rows["files"]) == (0, 1, 300, 3)
    assert points(lane, run) == run.logged.points
    assert dict(lane.rows("SELECT key, value FROM params")) == run.logged.params
    tags = {key: value for key, value in lane.tags(run.run_id).items() if not key.startswith(("mlferry.", "mlflow."))}
    assert tags == {"first": "changed"}
    wanted = ("a run", "somebody", "FINISHED", T0, T0 + 10**6, "active", f"mlflow-artifacts:/1/{run.run_id}/artifacts")
    columns = "name, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri"
    assert lane.rows(f"SELECT {columns} FROM runs") == [wanted]
    stored = {path.name: path.read_bytes() for path in (lane.folder / "mlartifacts").rglob("*.bin")}
    assert stored == {name.rpartition("/")[2]: data for name, data in run.logged.artifacts.items()}
    assert lane.rows("SELECT value FROM latest_metrics") == [(1 / 300,)]
    assert lane.rows("SELECT name, value FROM input_tags") == [("mlflow.data.context", "training")]


def test_importing_again_changes_no_row(lane: Lane) -> None:
    a_bit_of_everything(lane.root, "birds")
    lane.carry()
    before = lane.dump()
    report = lane.carry()
    assert (report.runs["there"], report.rows.total(), report.records["there"]) == (1, 0, 308)
    assert lane.dump() == before


def test_a_run_that_has_grown_gets_what_is_new_and_keeps_what_its_owner_changed(lane: Lane) -> None:
    run = SpooledRun(lane.root, "birds")
    run.tags({"mine": "1", "theirs": "1"})
    run.metrics(0, {"loss": 2.0})
    assert lane.carry().going_on == [run.run_id]
    assert status(lane, run) == "RUNNING"
    lane.rows("UPDATE tags SET value = 'changed' WHERE key = 'theirs'")
    run.metrics(1, {"loss": 1.0})
    run.tags({"mine": "2"})
    run.end()
    report = lane.carry()
    assert (report.runs["grown"], report.rows["metric points"], report.there["metric points"]) == (1, 1, 0)
    assert (points(lane, run), status(lane, run)) == (run.logged.points, "FINISHED")
    assert {"mine": "2", "theirs": "changed"}.items() <= lane.tags(run.run_id).items()
    assert lane.rows("SELECT value, step FROM latest_metrics") == [(1.0, 1)]


def test_points_are_kept_and_the_latest_is_chosen_by_mlflows_rules(lane: Lane) -> None:
    run = SpooledRun(lane.root, "birds")
    for value in (1.0, math.nan, math.inf, -math.inf, 1.0):
        run.metrics(3, {"odd": value}, T0)
    run.metrics(2, {"back": 9.0})
    run.metrics(1, {"back": 10.0})
    run.metrics(5, {"nan": -1.0}, T0)
    run.metrics(5, {"nan": math.nan}, T0)
    run.series(records.Series("columns", b"\0" * 24, (0, 2), (T0, 5)))
    run.end()
    report = lane.carry()
    assert set(points(lane, run)) == set(run.logged.points) and points(lane, run).total() == 4 + 2 + 2 + 3
    assert (report.rows["metric points"], report.there["metric points"]) == (11, 1)
    latest = {key: row for key, *row in lane.rows("SELECT key, value, step, is_nan FROM latest_metrics")}
    assert latest == {
        "odd": [1.7976931348623157e308, 3, 0],
        "back": [9.0, 2, 0],
        "nan": [0.0, 5, 1],
        "columns": [0.0, 4, 0],
    }


def test_more_points_than_are_kept_in_memory_arrive(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_POINTS", 7)
    monkeypatch.setattr(module, "_PIECE", 2)
    monkeypatch.setattr(module, "_MOST_TOGETHER", 0)
    run = a_bit_of_everything(lane.root, "birds")
    assert lane.carry().rows["metric points"] == 300
    assert points(lane, run) == run.logged.points


def test_what_no_mlflow_would_store_is_set_aside_and_the_rest_is_there(lane: Lane) -> None:
    run = SpooledRun(lane.root, "birds")
    run.metrics(0, {"good": 1.0, "b?d": 2.0})
    run.metrics(1, {"good": 1.5}, -5)
    run.params({"lr": "0.1", "x" * 251: "1", "long": "y" * 7000})
    run.params({"lr": "0.2"})
    run.tags({"mlferry.run_id": "another", MARK_TAG: "over 1", "nul": "\0", "kept": "z" * 9000})
    run.artifact("../../escaped", b"1")
    run.end()
    report = lane.carry()
    told = lane.reasons(report)
    assert (report.exit_code, report.set_aside) == (3, len(told) == 8 and 8)
    assert dict(lane.rows("SELECT key, length(value) FROM params")) == {"lr": 3, "long": 6000}
    assert lane.rows("SELECT value FROM params WHERE key = 'lr'") == [("0.1",)]
    tags = lane.tags(run.run_id)
    assert (tags["mlferry.run_id"], len(tags["kept"]), tags["mlferry.quarantined"]) == (run.run_id, 8000, "8")
    assert lane.rows("SELECT key, value FROM metrics") == [("good", 1.0)]
    assert status(lane, run) == "FINISHED"
    assert not list(lane.folder.rglob("escaped")) and any("escaped" in reason for reason in told)
    assert lane.carry().set_aside == 8, "what is set aside is told again each time"


def test_a_run_that_rest_delivered_under_another_id_is_not_doubled(lane: Lane) -> None:
    run = a_bit_of_everything(lane.root, "birds")
    lane.carry()
    lane.rows("UPDATE runs SET run_uuid = 'server'")
    lane.rows("UPDATE tags SET run_uuid = 'server'")
    report = lane.carry()
    assert report.exit_code == 3
    assert [one.reason for one in report.aside] == [
        "it was delivered over REST, as run server: `mlferry sync` goes on with it"
    ]
    assert lane.rows("SELECT run_uuid FROM runs") == [("server",)]
    assert run.run_id not in {key for (key,) in lane.rows("SELECT run_uuid FROM metrics") if key != run.run_id}


def test_a_child_of_a_run_that_rest_delivered_names_it_by_the_servers_id(lane: Lane) -> None:
    parent = a_bit_of_everything(lane.root, "birds")
    lane.carry()
    lane.rows("UPDATE runs SET run_uuid = 'server'")
    lane.rows("UPDATE tags SET run_uuid = 'server'")
    child = a_bit_of_everything(lane.root, "birds", parent_run_id=parent.run_id)
    lane.carry()
    assert lane.tags(child.run_id)["mlflow.parentRunId"] == "server"


@pytest.mark.parametrize(
    ("policy", "code", "stage"), [("quarantine", 3, "deleted"), ("recreate", 0, "active"), ("drop", 0, "deleted")]
)
def test_a_run_that_somebody_deleted_is_treated_as_in_delivery(lane: Lane, policy: str, code: int, stage: str) -> None:
    run = SpooledRun(lane.root, "birds")
    run.metrics(0, {"loss": 1.0})
    lane.carry()
    lane.rows("UPDATE runs SET lifecycle_stage = 'deleted'")
    run.metrics(1, {"loss": 0.5})
    run.end()
    report = lane.carry(deleted=policy)
    assert (report.exit_code, lane.rows("SELECT lifecycle_stage FROM runs")) == (code, [(stage,)])
    assert len(lane.rows("SELECT * FROM metrics")) == (2 if policy == "recreate" else 1)
    assert report.rows["metric points"] == (1 if policy == "recreate" else 0)


def test_a_run_that_the_spool_deletes_and_restores_follows_it(lane: Lane) -> None:
    run = SpooledRun(lane.root, "birds")
    for time_ms, lifecycle in ((1, "deleted"), (2, "active")):
        run.writer.put(records.RunUpdate(T0 + time_ms, lifecycle=lifecycle))
        assert lane.carry().set_aside == 0
        assert lane.rows("SELECT lifecycle_stage FROM runs") == [(lifecycle,)]
        run.writer.put(records.Tags(T0, {"seen": lifecycle}))


def test_another_run_of_the_database_with_this_id_is_left_alone(lane: Lane) -> None:
    run = a_bit_of_everything(lane.root, "birds")
    lane.carry()
    lane.rows("DELETE FROM tags WHERE key LIKE 'mlferry.%'")
    before = lane.dump()
    [aside] = lane.carry().aside
    assert (aside.run_id, aside.reason) == (run.run_id, "another run of the database has this id")
    assert lane.dump() == before


def test_a_run_that_was_reserved_in_the_database_is_filled(lane: Lane) -> None:
    first = a_bit_of_everything(lane.root, "birds")
    lane.carry()
    lane.rows("DELETE FROM tags WHERE key LIKE 'mlferry.%'")
    lane.rows("DELETE FROM metrics")
    (lane.root / "runs").rename(lane.root / "before")
    directory = new_run_directory(lane.root, first.run_id, T0)
    again = SpooledRun(lane.root, "birds", logged=first.logged, directory=directory, resumed=True)
    again.metrics(7, {"loss": 7.0})
    again.end()
    assert lane.carry().set_aside == 0
    assert lane.rows("SELECT value FROM metrics") == [(7.0,)]


def test_a_run_whose_experiment_was_deleted_waits_and_the_others_do_not(lane: Lane) -> None:
    a_bit_of_everything(lane.root, "gone")
    lane.carry()
    lane.rows("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'gone'")
    late = a_bit_of_everything(lane.root, "gone")
    fine = a_bit_of_everything(lane.root, "there")
    report = lane.carry()
    assert [one.run_id for one in report.aside] == [late.run_id]
    assert status(lane, fine) == "FINISHED"
    assert lane.carry(deleted="recreate").exit_code == 0
    assert status(lane, late) == "FINISHED"


def test_what_a_record_says_of_the_place_of_artifacts_is_not_heard(lane: Lane, tmp_path: Path) -> None:
    stolen = tmp_path / "elsewhere"
    store = records.Open(writer_id="w-store", opened=T0)
    writer = Writer(store_directory(lane.root), store)
    details = {"tags": {"team": "ours"}, "artifact_location": str(stolen)}
    writer.put(records.ExperimentOperation(T0, "create", "birds", details))
    writer.close()
    a_bit_of_everything(lane.root, "birds")
    lane.carry()
    assert not stolen.exists()
    assert lane.rows("SELECT artifact_location FROM experiments WHERE name = 'birds'") == [("mlflow-artifacts:/1",)]
    assert ("team", "ours") in lane.rows("SELECT key, value FROM experiment_tags")


def test_a_file_that_is_not_what_its_name_says_is_set_aside(lane: Lane) -> None:
    run = SpooledRun(lane.root, "birds")
    blob = run.artifact("a.bin", b"right")
    blob.write_bytes(b"wrong")
    run.artifact("b.bin", b"fine")
    run.end()
    report = lane.carry()
    assert [(one.what, one.name) for one in report.aside] == [("artifact", "a.bin")]
    assert [path.name for path in (lane.folder / "mlartifacts").rglob("*") if path.is_file()] == ["b.bin"]
