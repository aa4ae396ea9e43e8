"""Params, which are written once, and tags, of which the last value counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlflow.entities import Param, RunTag
from tests.plugin.differential import T0, Scenario, Stage

Both = Callable[[Scenario], Any]

VALUES = [
    "",
    " ",
    "x" * 500,
    "x" * 6000,
    "x" * 6001,
    "ü☃𝄞" * 100,
    "a\nb\tc",
    "nul\0nul",
    1,
    1.5,
    None,
    True,
    [1, "a"],
    {"a": 1},
]

#: What MLflow's type hints allow: of anything else the store says what its database says.
TEXTS = [value for value in VALUES if isinstance(value, str)]


@pytest.mark.parametrize("value", VALUES)
def test_param_values(both: Both, value: Any) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.attempt(stage.client.log_param, run, "p", value),
            stage.attempt(stage.client.log_batch, run, params=[Param("r", str(value))]),
            stage.client.get_run(run),
        )

    both(scenario)


@pytest.mark.parametrize("value", TEXTS)
def test_texts_given_to_the_store(both: Both, value: str) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.attempt(stage.store.log_param, run, Param("q", value)),
            stage.attempt(stage.store.log_batch, run, [], [Param("r", value)], []),
            stage.attempt(stage.store.set_tag, run, RunTag("q", value)),
            stage.attempt(stage.store.log_batch, run, [], [], [RunTag("r", value)]),
            stage.attempt(stage.client.create_run, "0", T0, {"s": value}, "other"),
            stage.client.get_run(run),
        )

    both(scenario)


def test_a_param_needs_a_value(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        answers = (
            stage.attempt(stage.store.log_param, run, Param("q", None)),
            stage.attempt(stage.store.log_batch, run, [], [Param("q", None)], []),
        )
        told = [(answer.kind, answer.code, "NOT NULL constraint failed" in answer.words) for answer in answers]
        return told, stage.client.get_run(run)

    assert both(scenario)[0] == [["MlflowException", "BAD_REQUEST", True]] * 2


@pytest.mark.parametrize("value", [*VALUES, "x" * 8000, "x" * 8001, "x" * 100_000])
def test_tag_values(both: Both, value: Any) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.attempt(stage.client.set_tag, run, "p", value),
            stage.attempt(stage.client.log_batch, run, tags=[RunTag("r", str(value))]),
            stage.client.get_run(run),
        )

    both(scenario)


def test_long_values_may_be_refused_instead_of_cut(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")

    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.attempt(stage.client.log_param, run, "p", "x" * 6001),
            stage.attempt(stage.client.set_tag, run, "p", "x" * 8001),
            stage.attempt(stage.store.log_batch, run, [], [Param("r", "x" * 6001)], []),
            stage.attempt(stage.store.log_batch, run, [], [], [RunTag("r", "x" * 8001)]),
            stage.client.get_run(run),
        )

    both(scenario)


def test_a_param_is_written_once(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        return (
            client.log_param(run, "p", "1"),
            client.log_param(run, "p", "1"),
            client.log_param(run, "p", 1),
            stage.attempt(client.log_param, run, "p", "2"),
            stage.attempt(client.log_param, run, "p", 1.0),
            stage.attempt(client.log_batch, run, params=[Param("p", "1"), Param("q", "1")]),
            stage.attempt(client.log_batch, run, params=[Param("p", "3"), Param("q", "4"), Param("r", "1")]),
            stage.attempt(client.log_param, run, "long", "x" * 6001),
            stage.attempt(client.log_param, run, "long", "x" * 6002),
            stage.attempt(client.log_param, run, "long", "x" * 5999),
            client.get_run(run),
        )

    both(scenario)


def test_names_differ_by_case(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        for key in ("a", "A"):
            client.log_param(run, key, key)
            client.set_tag(run, key, key)
            client.log_metric(run, key, len(key), T0, 0)
        return client.get_run(run)

    both(scenario)


def test_tags_are_overwritten_and_deleted(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        client.set_tag(run, "t", "1")
        client.set_tag(run, "t", "2")
        client.log_batch(run, tags=[RunTag("t", "3"), RunTag("u", "1"), RunTag("t", "4")])
        first = client.get_run(run)
        client.delete_tag(run, "t")
        second = client.get_run(run)
        gone = stage.attempt(client.delete_tag, run, "t"), stage.attempt(client.delete_tag, run, "never")
        client.set_tag(run, "t", "back")
        return first, second, gone, client.get_run(run)

    both(scenario)


@pytest.mark.parametrize("key", ["", None, "a@b", "x" * 300])
def test_deleting_tags_of_odd_names(both: Both, key: Any) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.attempt(stage.client.delete_tag, run, key),
            stage.attempt(stage.client.delete_experiment_tag, "0", key),
        )

    both(scenario)


def test_mlflow_tags_are_tags(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        for key in (
            "mlflow.user",
            "mlflow.source.name",
            "mlflow.parentRunId",
            "mlflow.note.content",
            "mlflow.anything",
        ):
            client.set_tag(run, key, f"value of {key}")
        return client.get_run(run)

    both(scenario)


def test_what_was_logged_last_is_read_at_once(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client, seen = stage.run(), stage.client, []
        for number in range(30):
            client.set_tag(run, "t", number)
            client.log_metric(run, "m", number, T0, number)
            client.log_param(run, f"p{number}", number)
            found = client.get_run(run).data
            seen.append((found.tags["t"], found.metrics["m"], len(found.params)))
        return seen

    assert both(scenario) == [[str(number), float(number), number + 1] for number in range(30)]
