"""The verdict of an import."""

from __future__ import annotations

import json

import pytest

from mlferry_agent.database import report as module
from mlferry_agent.database.report import Report


def test_what_is_set_aside_is_listed_up_to_a_number_and_counted_beyond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_LISTED", 2)
    report = Report()
    for number in range(5):
        report.set_apart("run", "param", f"p{number}", "why")
    assert (report.set_aside, [one.name for one in report.aside]) == (5, ["p0", "p1"])


def test_the_exit_code_is_the_worst_of_what_happened() -> None:
    report = Report()
    assert report.exit_code == 0
    report.going_on.append("run")
    assert report.exit_code == 4
    report.set_apart("run", "param", "p", "why")
    assert report.exit_code == 3
    assert json.loads(json.dumps(report.as_json()))["aside"][0]["reason"] == "why"
