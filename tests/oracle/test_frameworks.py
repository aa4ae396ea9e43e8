"""Frameworks that log through MLflow by themselves, online and through the spool, to their end and killed on the way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.oracle import killed
from tests.oracle.stage import Stage

SCRIPTS = [
    ("sklearn", "sklearn_search", ()),
    ("xgboost", "boosting", ()),
    ("lightning", "lightning_autolog", ()),
    pytest.param("lightning", "lightning_autolog", ("failing",), marks=pytest.mark.long),
    pytest.param("lightning", "lightning_autolog", ("saving",), marks=pytest.mark.long),
    pytest.param("lightning", "lightning_logger", (), marks=pytest.mark.long),
    ("lightning", "lightning_logger", ("failing",)),
    ("lightning", "lightning_resumed", ()),
    ("transformers", "huggingface_trainer", ()),
    ("torch", "two_ranks", ()),
]

#: Seeds that kill after the first run has begun.
KILLED = [
    ("torch", "two_ranks", 9),
    pytest.param("sklearn", "sklearn_search", 9, marks=pytest.mark.long),
    pytest.param("xgboost", "boosting", 5, marks=pytest.mark.long),
    pytest.param("lightning", "lightning_autolog", 6, marks=pytest.mark.long),
    pytest.param("lightning", "lightning_logger", 9, marks=pytest.mark.long),
    pytest.param("lightning", "lightning_resumed", 10, marks=pytest.mark.long),
    pytest.param("transformers", "huggingface_trainer", 17, marks=pytest.mark.long),
]


def named(value: str | Sequence[str] | int) -> str:
    return "-".join(value) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("package", "script", "words"), SCRIPTS, ids=named)
def test_what_a_framework_logs_arrives_as_if_it_had_been_online(
    stage: Stage, package: str, script: str, words: tuple[str, ...]
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed; it comes with the extra `oracle`")
    assert stage.differences(script, *words) == []


@pytest.mark.parametrize(("package", "script", "seed"), KILLED)
def test_what_a_framework_logged_before_it_was_killed_arrives_and_its_runs_are_killed(
    stage: Stage, package: str, script: str, seed: int
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed; it comes with the extra `oracle`")
    assert killed.wrong(stage, script, seed=seed) == []
