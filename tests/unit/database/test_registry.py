"""Registered models: told once, whatever their names were, and never a way to other files of this machine."""

from __future__ import annotations

from typing import Any

from tests.spooling import T0, a_bit_of_everything
from tests.unit.database.conftest import Lane

from mlferry_agent.database.registry import lines
from mlferry_spool.layout import store_directory
from mlferry_spool.records import Open, RegistryOperation
from mlferry_spool.writer import Writer


def log(lane: Lane, *operations: tuple[str, str, str | None, dict[str, Any]], at: int = 10) -> None:
    """Operations of the store, each a millisecond after the other."""
    log = Writer(store_directory(lane.root), Open(writer_id=f"w-{at}", opened=T0))
    for number, (operation, name, uid, details) in enumerate(operations):
        log.put(RegistryOperation(T0 + number + at, operation, name, uid, details))
    log.close()


FIRST = (
    ("create_registered_model", "birds", None, {"tags": {"team": "ours"}}),
    ("create_model_version", "birds", "uid-1", {"source": "s3://bucket/model"}),
    ("set_registered_model_alias", "birds", None, {"alias": "best", "uid": "uid-1"}),
)


def test_a_model_and_its_version_are_registered_once_and_its_owners_changes_stay(lane: Lane) -> None:
    log(lane, *FIRST)
    assert lane.carry().exit_code == 0
    lane.rows("UPDATE registered_model_aliases SET alias = 'changed'")
    before = lane.dump()
    assert lane.carry().exit_code == 0
    assert lane.dump() == before
    log(lane, ("update_model_version", "birds", None, {"uid": "uid-1", "description": "seen"}), at=20)
    assert lane.carry().exit_code == 0
    assert lane.rows("SELECT version, description, source FROM model_versions") == [(1, "seen", "s3://bucket/model")]
    assert lane.rows("SELECT alias FROM registered_model_aliases") == [("changed",)]


def test_a_model_that_is_renamed_stays_one(lane: Lane) -> None:
    log(lane, *FIRST)
    lane.carry()
    log(lane, ("rename_registered_model", "birds", None, {"new_name": "planes"}), at=20)
    log(lane, ("set_registered_model_tag", "planes", None, {"key": "a", "value": "b"}), at=30)
    for _ in range(2):
        assert lane.carry().exit_code == 0
        assert lane.rows("SELECT name FROM registered_models") == [("planes",)]
        assert lane.rows("SELECT name, version FROM model_versions") == [("planes", 1)]


def test_what_comes_in_between_is_told_also_of_a_model_that_was_renamed(lane: Lane) -> None:
    log(lane, *FIRST, ("rename_registered_model", "birds", None, {"new_name": "planes"}))
    lane.carry()
    log(lane, ("set_registered_model_tag", "birds", None, {"key": "a", "value": "b"}), at=12)
    for _ in range(2):
        assert lane.carry().exit_code == 0
    assert lane.rows("SELECT name, value FROM registered_model_tags WHERE key = 'a'") == [("planes", "b")]
    assert lane.rows("SELECT name, version FROM model_versions") == [("planes", 1)]


def test_what_is_deleted_is_a_line_of_its_own() -> None:
    told = [
        RegistryOperation(0, "create_registered_model", "a"),
        RegistryOperation(1, "rename_registered_model", "a", None, {"new_name": "b"}),
        RegistryOperation(2, "delete_registered_model", "b"),
        RegistryOperation(3, "create_registered_model", "b"),
    ]
    assert [(line.names, line.is_deleted, len(line.operations)) for line in lines(told)] == [
        (["a", "b"], True, 3),
        (["b"], False, 1),
    ]


def test_a_version_of_a_place_on_this_machine_is_set_aside(lane: Lane) -> None:
    run = a_bit_of_everything(lane.root, "birds", points=1)
    lane.rows("UPDATE experiments SET artifact_location = '/srv/mlruns/0'")
    own = {"source": f"{lane.folder}/mlruns/1/{run.run_id}/artifacts/folder", "run_id": run.run_id}
    log(
        lane,
        ("create_registered_model", "birds", None, {}),
        ("create_model_version", "birds", "uid-1", {"source": "/etc"}),
        ("create_model_version", "birds", "uid-2", {"source": "file:///etc", "run_id": run.run_id}),
        ("create_model_version", "birds", "uid-3", {**own, "source": f"{own['source']}/../../../../../../etc"}),
        ("create_model_version", "birds", "uid-4", {"source": "models:/m-1/../../etc"}),
        ("no such thing", "birds", None, {}),
    )
    report = lane.carry()
    assert (report.exit_code, report.set_aside) == (3, 5)
    assert lane.rows("SELECT * FROM model_versions") == []
    assert sum("none of its run or model" in reason for reason in lane.reasons(report)) == 3
