"""What of a run's records is let through to the tables."""

from __future__ import annotations

import pytest

from mlferry_agent.database.gathering import Gathered
from mlferry_spool.records import ModelStart, ModelUpdate, RegistryOperation, RunUpdate

NO_TEXTS = [
    ModelStart(1, "m-1", name="x" * 501),
    ModelStart(1, "m-1", params={"k" * 256: "v"}),
    ModelStart(1, "m-1", tags={"k": "\0"}),
    ModelStart(1, "m" * 37),
    ModelUpdate(1, "m-1", tags={"k": "\ud800"}),
]


@pytest.mark.parametrize("record", NO_TEXTS)
def test_a_model_whose_texts_no_database_takes_is_set_aside(record: ModelStart | ModelUpdate) -> None:
    told: list[tuple[str, str, str]] = []
    gathered = Gathered("run", lambda *words: told.append(words))
    gathered.add("w", 1, record)
    assert [what for what, _, _ in told] == ["model"] and not gathered.state.models


def test_a_record_that_belongs_into_no_run_is_set_aside() -> None:
    told: list[tuple[str, str, str]] = []
    Gathered("run", lambda *words: told.append(words)).add("w", 1, RegistryOperation(1, "create_registered_model", "a"))
    assert told == [("record", "RegistryOperation", "a record of this kind does not belong into a run's log")]


def test_the_name_that_a_run_was_given_later_is_its_tag_too() -> None:
    gathered = Gathered("run", lambda *words: None)
    gathered.add("w", 1, RunUpdate(5, run_name="second"))
    assert gathered.state.tags.values() == {"mlflow.runName": "second"}
