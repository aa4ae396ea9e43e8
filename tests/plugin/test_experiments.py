"""Experiments: created, found, renamed, tagged, deleted, restored, searched."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from mlflow.entities import ExperimentTag, ViewType
from tests.plugin.differential import Scenario, Stage

Both = Callable[[Scenario], Any]

VIEWS = [ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY, ViewType.ALL]


def tick() -> None:
    """Let a millisecond pass, so that what is made next is younger."""
    now = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 <= now:
        pass


def several(stage: Stage, *names: str) -> list[str]:
    found = []
    for name in names:
        tick()
        found.append(stage.experiment(name, tags={"kind": name[0]}))
    return found


def test_default_exists_from_the_start(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client = stage.client
        default = client.get_experiment("0")
        return (
            default.name,
            default.lifecycle_stage,
            default.tags,
            client.get_experiment_by_name("Default").experiment_id,
        )

    assert both(scenario)[0] == "Default"


@pytest.mark.parametrize(
    "name", ["plain", "", " ", None, 1, "ü☃", "a/b", "../x", "x" * 500, "x" * 501, "a\nb", "Default", "'q'"]
)
def test_names(both: Both, name: Any) -> None:
    def scenario(stage: Stage) -> Any:
        return (
            stage.attempt(stage.client.create_experiment, name),
            getattr(stage.client.get_experiment_by_name(str(name)), "name", None),
            stage.attempt(stage.client.create_experiment, name),
        )

    both(scenario)


def test_location_and_tags_are_kept(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        one = stage.client.create_experiment("one", artifact_location="s3://bucket/place", tags={"a": "1"})
        two = stage.client.create_experiment("two", tags={"ü": "☃"})
        return (
            [stage.client.get_experiment(found) for found in (one, two)],
            stage.attempt(stage.client.create_experiment, "three", artifact_location="s3://b/p#fragment"),
            stage.attempt(stage.client.create_experiment, "four", artifact_location="s3://b/p?query=1"),
        )

    both(scenario)


def test_tags_are_set_overwritten_and_deleted(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        found, client = stage.experiment(), stage.client
        client.set_experiment_tag(found, "a", "1")
        client.set_experiment_tag(found, "a", 2)
        client.set_experiment_tag(found, "long", "x" * 5000)
        first = client.get_experiment(found)
        client.delete_experiment_tag(found, "a")
        return (
            first,
            client.get_experiment(found),
            stage.attempt(client.delete_experiment_tag, found, "a"),
            stage.attempt(client.set_experiment_tag, found, "x", "v" * 20_001),
            stage.attempt(client.set_experiment_tag, found, "x" * 251, "v"),
            stage.attempt(client.set_experiment_tag, "123456789123456789", "a", "1"),
            stage.attempt(client.delete_experiment_tag, "123456789123456789", "a"),
            stage.attempt(stage.store.set_experiment_tag, found, ExperimentTag("mlflow.note.content", "text")),
            client.get_experiment(found),
        )

    both(scenario)


def test_deleted_experiments(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        found, client = stage.experiment(), stage.client
        run = stage.run(found)
        already = stage.run(found)
        client.delete_run(already)
        client.delete_experiment(found)
        during = [
            client.get_experiment(found).lifecycle_stage,
            client.get_experiment_by_name("an experiment").lifecycle_stage,
            stage.attempt(client.create_experiment, "an experiment"),
            stage.attempt(client.delete_experiment, found),
            stage.attempt(client.rename_experiment, found, "other"),
            stage.attempt(client.set_experiment_tag, found, "a", "1"),
            stage.attempt(client.delete_experiment_tag, found, "a"),
            stage.attempt(client.create_run, found),
            stage.attempt(client.set_tag, run, "a", "1"),
            client.get_run(run).info.lifecycle_stage,
            [sorted(e.name for e in client.search_experiments(view_type=view)) for view in VIEWS],
        ]
        client.restore_experiment(found)
        after = [
            client.get_experiment(found),
            stage.attempt(client.restore_experiment, found),
            [client.get_run(one).info.lifecycle_stage for one in (run, already)],
            [len(client.search_runs([found], run_view_type=view)) for view in VIEWS],
        ]
        return during, after

    both(scenario)


@pytest.mark.parametrize("known", ["123456789123456789", "", "abc", None, "-1", "0x1"])
def test_unknown_experiments(both: Both, known: Any) -> None:
    def scenario(stage: Stage) -> Any:
        client = stage.client
        return (
            stage.attempt(lambda: client.get_experiment(known).name),
            stage.attempt(client.delete_experiment, known or "123456789123456789"),
            stage.attempt(client.restore_experiment, known),
            stage.attempt(client.rename_experiment, known or "123456789123456789", "new"),
            stage.attempt(client.get_experiment_by_name, "no such"),
        )

    both(scenario)


def test_renaming(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        one, two = several(stage, "one", "two")
        client = stage.client
        run = stage.run(one)
        client.rename_experiment(one, "new")
        again = client.create_experiment("one")
        return (
            client.get_experiment(one).name,
            client.get_experiment_by_name("new").name,
            again == one,
            stage.attempt(client.rename_experiment, two, "new").code,
            stage.attempt(client.rename_experiment, two, "two"),
            stage.attempt(client.rename_experiment, two, None),
            stage.attempt(client.rename_experiment, two, ""),
            [found.info.run_id == run for found in client.search_runs([one])],
            len(client.search_runs([again])),
            sorted(found.name for found in client.search_experiments()),
        )

    both(scenario)


FILTERS = [
    None,
    "",
    "name = 'abc'",
    "name != 'abc'",
    "attribute.name = 'abc'",
    "attributes.name LIKE 'a%'",
    "name LIKE '%B%'",
    "name ILIKE '%B%'",
    "name LIKE '_bc'",
    "tags.kind = 'a'",
    "tag.kind != 'a'",
    "tags.`kind` LIKE 'a%'",
    "tags.kind ILIKE 'A'",
    "tags.none = 'a'",
    "tags.kind = 'a' AND name LIKE '%e'",
    "creation_time > 0 AND name != 'Default'",
    "last_update_time >= 5 AND name != 'Default'",
    "name = abc",
    "name IN ('abc')",
    "no_such = 'a'",
    "name >",
    "name = 'a' OR name = 'b'",
    "creation_time = 'text'",
    "creation_time LIKE '1'",
    "rubbish",
    "params.a = '1'",
]


@pytest.mark.parametrize("filter_string", FILTERS)
def test_searching(both: Both, filter_string: str | None) -> None:
    def scenario(stage: Stage) -> Any:
        several(stage, "abc", "abe", "Abc", "b%c", "bbc")
        found = stage.attempt(stage.client.search_experiments, filter_string=filter_string)
        return [one.name for one in found] if isinstance(found, list) else found

    both(scenario)


@pytest.mark.parametrize(
    "order_by",
    [
        None,
        [],
        ["name"],
        ["name DESC"],
        ["name asc"],
        ["creation_time"],
        ["creation_time DESC", "name"],
        ["last_update_time"],
        ["last_update_time DESC"],
        ["attribute.name"],
        ["no_such"],
        ["name sideways"],
        ["tags.kind"],
        [""],
        ["name", "name"],
    ],
)
def test_ordering(both: Both, order_by: list[str] | None) -> None:
    def scenario(stage: Stage) -> Any:
        found = several(stage, "abc", "abe", "Abc", "bbc")
        tick()
        stage.client.set_experiment_tag(found[1], "a", "1")
        tick()
        stage.client.rename_experiment(found[0], "zzz")
        answer = stage.attempt(stage.client.search_experiments, order_by=order_by)
        return [one.name for one in answer] if isinstance(answer, list) else answer

    both(scenario)


def test_pages(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        several(stage, *(f"{number}" for number in range(7)))
        pages, token = [], None
        while True:
            page = stage.client.search_experiments(max_results=3, page_token=token)
            pages.append([one.name for one in page])
            token = page.token
            if not token:
                break
        odd = [stage.attempt(stage.store.search_experiments, max_results=most) for most in (0, -1, 1_000_000, None)]
        return pages, odd, stage.attempt(stage.client.search_experiments, page_token="rubbish")

    assert [len(page) for page in both(scenario)[0]] == [3, 3, 2]
