"""Runs through the client and the store: created, ended, resumed, renamed, deleted, restored, nested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlflow.entities import Metric, Param, RunStatus, RunTag, ViewType
from tests.plugin.differential import T0, Scenario, Stage

Both = Callable[[Scenario], Any]


def test_a_new_run_is_what_the_call_said(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        experiment = stage.experiment()
        run = stage.client.create_run(experiment, T0, {"a": "1", "mlflow.user": "somebody"}, "named")
        return run, stage.client.get_run(run.info.run_id)

    made, read = both(scenario)
    assert made["info"]["start_time"] == read["info"]["start_time"] == T0
    assert read["data"]["tags"]["mlflow.runName"] == "named"


def test_a_run_without_a_name_gets_one(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.client.create_run("0")
        name = run.info.run_name
        return (
            bool(name),
            run.data.tags["mlflow.runName"] == name,
            stage.client.get_run(run.info.run_id).info.run_name == name,
        )

    assert both(scenario) == [True, True, True]


@pytest.mark.parametrize("name", ["", " ", "ü\u2603", "x" * 300, "a\nb", "../etc"])
def test_unusual_run_names(both: Both, name: str) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.attempt(stage.store.create_run, "0", "u", T0, [], name)
        return (
            run
            if not hasattr(run, "info") or not name.strip() == name != ""
            else (run, stage.client.get_run(run.info.run_id))
        )

    if name:
        both(scenario)


def test_name_and_name_tag_must_agree(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        tag = [RunTag("mlflow.runName", "one")]
        return (
            stage.attempt(stage.store.create_run, "0", "u", T0, tag, "two"),
            stage.attempt(stage.store.create_run, "0", "u", T0, tag, "one"),
            stage.attempt(stage.store.create_run, "0", "u", T0, tag, None),
            stage.attempt(stage.store.create_run, "0", "u", T0, tag, ""),
        )

    both(scenario)


def test_renaming_moves_name_and_tag_together(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        seen = []
        for act in (
            lambda: client.update_run(run, name="by update"),
            lambda: client.set_tag(run, "mlflow.runName", "by tag"),
            lambda: client.log_batch(run, tags=[RunTag("mlflow.runName", "by batch")]),
            lambda: client.set_tag(run, "mlflow.runName", ""),
            lambda: client.update_run(run, name=""),
            lambda: client.delete_tag(run, "mlflow.runName"),
            lambda: client.update_run(run, name="again"),
        ):
            seen += [stage.attempt(act), client.get_run(run)]
        return seen

    both(scenario)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED"])
def test_each_status_a_run_may_get(both: Both, status: str) -> None:
    def scenario(stage: Stage) -> Any:
        one, two, three = stage.run(), stage.run(), stage.run()
        stage.client.set_terminated(one, status, T0 + 5)
        stage.client.update_run(two, status=status)
        stage.store.update_run_info(three, RunStatus.from_string(status), T0 + 6, None)
        # MLflow leaves a run that ended at no told time without an end; the spool notes when it was told.
        infos = [stage.client.get_run(run).info for run in (one, two, three)]
        return infos[0], infos[1].status, infos[2]

    both(scenario)


def test_unknown_statuses_are_refused_alike(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.attempt(stage.client.update_run, run, status="NO SUCH"),
            stage.attempt(stage.client.set_terminated, run, "NO SUCH"),
            stage.attempt(stage.store.update_run_info, run, None, None, None),
            stage.attempt(stage.store.update_run_info, run, 99, T0, None),
            stage.client.get_run(run),
        )

    both(scenario)


def test_update_run_info_answers_what_it_changed(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        return (
            stage.store.update_run_info(run, RunStatus.FINISHED, T0 + 10, "new"),
            stage.store.update_run_info(run, RunStatus.RUNNING, None, None),
            stage.store.update_run_info(run, None, None, "newer"),
            stage.store.update_run_info(run, RunStatus.FAILED, T0 + 20, None),
            stage.store.update_run_info(run, None, T0 + 30, None),
            stage.store.update_run_info(run, RunStatus.KILLED, T0 + 40, ""),
            stage.store.update_run_info(run, RunStatus.FINISHED, 0, None),
            stage.store.update_run_info(run, RunStatus.FINISHED, None, None),
            stage.client.get_run(run),
        )

    both(scenario)


def test_a_run_ended_twice_keeps_the_last_word(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        for status, end in (("FINISHED", T0 + 1), ("FAILED", T0 + 2), ("FINISHED", T0 + 1)):
            stage.client.set_terminated(run, status, end)
        first = stage.client.get_run(run).info
        stage.client.update_run(run, status="RUNNING")
        second = stage.client.get_run(run).info
        stage.client.set_terminated(run, "KILLED", T0 + 9)
        return first, second, stage.client.get_run(run).info

    both(scenario)


def test_an_ended_run_accepts_more(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        stage.client.set_terminated(run, end_time=T0 + 1)
        stage.client.log_metric(run, "m", 1.0, T0, 3)
        stage.client.log_param(run, "p", 1)
        stage.client.set_tag(run, "t", "late")
        return stage.client.get_run(run)

    both(scenario)


def test_deleted_runs_are_kept_from_change_and_can_be_restored(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, store, client = stage.run(), stage.store, stage.client
        client.log_metric(run, "m", 1.0, T0, 0)
        client.delete_run(run)
        refusals = [
            stage.attempt(client.log_metric, run, "m", 2.0, T0, 1),
            stage.attempt(client.log_param, run, "p", 2),
            stage.attempt(client.set_tag, run, "t", 2),
            stage.attempt(client.delete_tag, run, "t"),
            stage.attempt(client.log_batch, run, metrics=[Metric("m", 1, T0, 2)]),
            stage.attempt(client.log_batch, run, params=[Param("m", "1")]),
            stage.attempt(client.log_batch, run),
            stage.attempt(client.update_run, run, name="new"),
            stage.attempt(client.set_terminated, run, "FINISHED", T0),
            stage.attempt(store.update_run_info, run, RunStatus.FINISHED, T0, None),
            stage.attempt(client.log_inputs, run, []),
            stage.attempt(client.delete_run, run),
        ]
        deleted = client.get_run(run), client.get_metric_history(run, "m")
        views = [
            client.search_runs(["0"], run_view_type=view)
            for view in (ViewType.ACTIVE_ONLY, ViewType.DELETED_ONLY, ViewType.ALL)
        ]
        client.restore_run(run)
        twice = stage.attempt(client.restore_run, run)
        client.log_metric(run, "m", 3.0, T0, 3)
        return refusals, deleted, views, twice, client.get_run(run)

    both(scenario)


UNKNOWN = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("run", [UNKNOWN, "", "no such", "../x", "ü", "a" * 300])
def test_unknown_runs_are_refused_alike(both: Both, run: str) -> None:
    def scenario(stage: Stage) -> Any:
        store = stage.store
        return [
            stage.attempt(call, *args)
            for call, *args in (
                (store.get_run, run),
                (store.update_run_info, run, RunStatus.FINISHED, T0, None),
                (store.delete_run, run),
                (store.restore_run, run),
                (store.log_metric, run, Metric("m", 1.0, T0, 0)),
                (store.log_param, run, Param("m", "1")),
                (store.set_tag, run, RunTag("m", "1")),
                (store.delete_tag, run, "m"),
                (store.log_batch, run, [], [], []),
                (store.log_batch, run, [Metric("m", 1.0, T0, 0)], [], []),
                (store.log_inputs, run, []),
                (store.log_outputs, run, []),
                (store.get_metric_history, run, "m"),
                (stage.client.get_run, run),
                (stage.client.list_artifacts, run),
                (stage.client.get_parent_run, run),
            )
        ]

    both(scenario)


def test_parents_and_children(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        parent = stage.run(name="parent")
        child = stage.run(name="child", tags={"mlflow.parentRunId": parent})
        orphan = stage.run(name="orphan", tags={"mlflow.parentRunId": UNKNOWN})
        found = stage.client.search_runs(["0"], f"tags.mlflow.parentRunId = '{parent}'")
        return (
            stage.client.get_parent_run(child),
            stage.client.get_parent_run(parent),
            stage.attempt(stage.client.get_parent_run, orphan),
            found,
        )

    both(scenario)


@pytest.mark.parametrize("start", [None, 0, 1, -1, T0, 2**62])
def test_start_times(both: Both, start: int | None) -> None:
    def scenario(stage: Stage) -> Any:
        made = stage.attempt(stage.client.create_run, "0", start, None, "n")
        stored = stage.attempt(stage.store.create_run, "0", "u", start, [], "n")
        return made, stored, len(stage.client.search_runs(["0"], order_by=["attributes.start_time"]))

    both(scenario)


def test_runs_of_unknown_and_deleted_experiments_are_refused(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        experiment = stage.experiment()
        kept = stage.run(experiment)
        stage.client.delete_experiment(experiment)
        return (
            stage.attempt(stage.client.create_run, experiment),
            stage.attempt(stage.client.create_run, "987654321987654321"),
            stage.attempt(stage.client.create_run, "no number"),
            stage.client.get_run(kept),
            stage.client.search_runs([experiment]),
            stage.client.search_runs([experiment], run_view_type=ViewType.ALL),
        )

    both(scenario)


def test_tags_of_a_new_run(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        def make(*tags: RunTag) -> Any:
            run = stage.attempt(stage.store.create_run, "0", "u", T0, list(tags), "n")
            return (run, stage.client.get_run(run.info.run_id)) if hasattr(run, "info") else run

        return (
            make(RunTag("a", "1"), RunTag("b", "")),
            make(RunTag("ü", "☃"), RunTag("long", "x" * 8000)),
            make(RunTag("mlflow.note.content", "# title")),
            make(RunTag("number", 1)),
        )

    both(scenario)


def test_none_of_the_arguments_of_create_run_is_needed_by_the_store(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.attempt(stage.store.create_run, "0", None, None, None, None)
        return run

    both(scenario)
