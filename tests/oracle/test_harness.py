"""The oracle can tell: two equal executions are equal, and each small change in a script is named."""

from __future__ import annotations

import pytest
from tests.oracle import differences
from tests.oracle.stage import Stage

CHANGES = {
    "tag": "runs/1/tags/word",
    "param": "runs/1/params/word",
    "metric": "runs/1/points/value@0#1/value",
    "step": "runs/1/points/value@1#1/value",
    "point": "runs/1/points/value@0#2/value",
    "file": "runs/1/files/word.txt",
    "status": "runs/1/status",
    "nested": "runs/2/run_name",
}


def test_two_online_executions_of_one_script_do_not_differ(stage: Stage) -> None:
    first = stage.perform_online("basics")
    second = stage.perform_online("basics", on=stage.target)
    assert first.code == second.code == 0, first.words + second.words
    expected, found = stage.held(stage.online, first), stage.held(stage.target, second)
    stage.forget()
    assert len(expected) > 300
    assert differences.between(expected, found, ["experiments/*_time"]) == []


@pytest.mark.parametrize("word", CHANGES)
def test_a_change_in_the_script_is_found_and_named(stage: Stage, word: str) -> None:
    first = stage.perform_online("changed", "same", title=f"changed {word}")
    second = stage.perform_online("changed", word, on=stage.target, title=f"changed {word}")
    assert first.code == second.code == 0, first.words + second.words
    expected, found = stage.held(stage.online, first), stage.held(stage.target, second)
    stage.forget()
    assert any(said.startswith(CHANGES[word]) for said in differences.between(expected, found, differences.allowed()))


def test_the_table_of_allowed_differences_is_read() -> None:
    patterns = differences.allowed()
    assert "runs/*/tags/mlferry.*" in patterns
    assert not {"*", "runs/*", "runs/*/tags/*", "runs/*/files/*"} & set(patterns)
