"""What a server must show of a run, when some of it was set aside: the rest, whatever the names look like."""

from __future__ import annotations

from mlferry_agent.folding import Folded
from mlferry_agent.lanes import Action
from mlferry_agent.rows import quarantine_name
from mlferry_spool.records import Artifact, Dataset, Inputs, Metrics, Params, Record, Tags, TagsDeleted

LONG = "n" * 501


def folded(record: Record, *aside: tuple[Action, str]) -> Folded:
    found = Folded()
    found.add(5, record, {(5, action.value, quarantine_name(name)) for action, name in aside})
    return found


def test_a_name_that_is_too_long_is_known_by_its_beginning() -> None:
    assert not folded(Params(1, {LONG: "1"}), (Action.PARAM, LONG)).params
    assert not folded(Tags(1, {LONG: "1"}), (Action.TAG, LONG)).tags
    assert not folded(Metrics(1, 1, {LONG: 1.0}), (Action.METRIC, LONG)).metrics
    assert not folded(Artifact(1, LONG, b"0" * 32, 1), (Action.UPLOAD, LONG)).artifacts
    inputs = Inputs(1, (Dataset(LONG, "d", "local", "{}"), Dataset("fine", "d", "local", "{}")))
    assert folded(inputs, (Action.DATASET, LONG)).datasets == {("fine", "d")}


def test_a_tag_that_could_not_be_deleted_is_not_expected_to_be_gone() -> None:
    found = folded(Tags(1, {"kept": "1", "gone": "1"}))
    found.add(6, TagsDeleted(2, ("kept", "gone")), {(6, Action.DELETE_TAG.value, "kept")})
    assert found.tags == {"kept": (1, "1"), "gone": (2, None)}


def test_a_point_that_was_set_aside_may_be_there_and_need_not() -> None:
    found = folded(Metrics(1, 2, {"m": 1.0, "n": 1.0}), (Action.METRIC, "m"))
    assert (found.metrics, found.spared) == ({"n": {(1.0, 1, 2)}}, {"m": {(1.0, 1, 2)}})
