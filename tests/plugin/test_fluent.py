"""The fluent API: `import mlflow` as training scripts use it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from tests.plugin.differential import T0, Scenario, Stage

Both = Callable[[Scenario], Any]


def test_a_training_script(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        mlflow.set_experiment("training")
        with mlflow.start_run(run_name="one", tags={"a": "1"}, description="text") as run:
            mlflow.log_params({"lr": 0.1, "layers": [1, 2]})
            mlflow.log_param("epochs", 2)
            for step in range(3):
                mlflow.log_metric("loss", 1 / (step + 1), step=step, timestamp=T0 + step)
            mlflow.log_metrics({"a": 1, "b": 2.5}, step=3, timestamp=T0)
            mlflow.set_tags({"x": 1, "y": None})
            mlflow.set_tag("z", "z")
            mlflow.delete_tag("z")
            mlflow.set_experiment_tag("team", "ours")
        found = mlflow.get_run(run.info.run_id)
        tags = {key: value for key, value in found.data.tags.items() if not key.startswith("mlflow.source")}
        return found.info, tags, found.data.params, found.data.metrics, mlflow.last_active_run().info.status

    both(scenario)


def test_an_exception_ends_the_run_as_failed(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with pytest.raises(ValueError, match="boom"), mlflow.start_run(run_name="r") as run:
            raise ValueError("boom")
        return mlflow.get_run(run.info.run_id).info, mlflow.active_run()

    assert both(scenario)[0]["status"] == "FAILED"


def test_nested_runs(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with mlflow.start_run(run_name="parent") as parent:
            refused = stage.attempt(mlflow.start_run)
            with mlflow.start_run(run_name="child", nested=True) as child:
                mlflow.log_metric("m", 1, step=0, timestamp=T0)
                with mlflow.start_run(run_name="grandchild", nested=True) as grandchild:
                    pass
            active = mlflow.active_run().info.run_name
        with mlflow.start_run(run_name="adopted", parent_run_id=parent.info.run_id) as adopted:
            pass
        unknown = stage.attempt(mlflow.start_run, parent_run_id="f" * 32)
        links = [
            mlflow.get_run(run.info.run_id).data.tags.get("mlflow.parentRunId") for run in (child, grandchild, adopted)
        ]
        return refused, active, unknown, links == [parent.info.run_id, child.info.run_id, parent.info.run_id]

    assert both(scenario)[3] is True


def test_resuming(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with mlflow.start_run(run_name="r") as run:
            mlflow.log_metric("m", 1, step=1, timestamp=T0)
        ended = mlflow.get_run(run.info.run_id).info
        with mlflow.start_run(run_id=run.info.run_id, tags={"more": "1"}) as again:
            during = mlflow.get_run(run.info.run_id).info
            mlflow.log_metric("m", 2, step=2, timestamp=T0)
            mlflow.log_param("late", 1)
        found = mlflow.get_run(run.info.run_id)
        mlflow.delete_run(run.info.run_id)
        return (
            ended.status,
            during.status,
            again.info.run_name,
            found.info.status,
            found.data.metrics,
            found.data.params,
            found.data.tags.get("more"),
            stage.attempt(mlflow.start_run, run_id=run.info.run_id),
            stage.attempt(mlflow.start_run, run_id="f" * 32),
            mlflow.active_run(),
        )

    both(scenario)


def test_the_environment_names_run_and_experiment(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def scenario(stage: Stage) -> Any:
        known = stage.run(name="reserved")
        monkeypatch.setenv("MLFLOW_RUN_ID", known)
        with mlflow.start_run() as run:
            same = run.info.run_id == known
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
        with mlflow.start_run(run_name="n") as other:
            name = mlflow.get_experiment(other.info.experiment_id).name
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
        return same, name

    assert both(scenario) == [True, "from the environment"]


def test_set_experiment(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        first = mlflow.set_experiment("one")
        again = mlflow.set_experiment("one")
        by_id = mlflow.set_experiment(experiment_id=first.experiment_id)
        mlflow.delete_experiment(first.experiment_id)
        return (
            first.experiment_id == again.experiment_id == by_id.experiment_id,
            stage.attempt(mlflow.set_experiment, "one"),
            stage.attempt(mlflow.set_experiment, experiment_id=first.experiment_id),
            stage.attempt(mlflow.set_experiment, experiment_id="123456789123456789"),
            stage.attempt(mlflow.set_experiment, "one", experiment_id="0"),
            stage.attempt(mlflow.set_experiment),
            stage.attempt(mlflow.set_experiment, ""),
            mlflow.get_experiment_by_name("none"),
        )

    both(scenario)


def test_search_runs_as_a_table(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        mlflow.set_experiment("e")
        for number in range(4):
            with mlflow.start_run(run_name=f"r{number}"):
                mlflow.log_metric("m", number)
                mlflow.log_param("p", number)
        table = mlflow.search_runs(filter_string="metrics.m > 0", order_by=["metrics.m DESC"])
        listed = mlflow.search_runs(experiment_names=["e"], output_format="list", order_by=["metrics.m"])
        return (
            table[["metrics.m", "params.p", "tags.mlflow.runName", "status"]].to_dict("list"),
            [run.info.run_name for run in listed],
            len(mlflow.search_runs(search_all_experiments=True)),
            len(mlflow.search_runs(experiment_names=["no such"])),
            stage.attempt(mlflow.search_runs, ["0"], experiment_names=["e"]),
        )

    both(scenario)


def test_last_active_run(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        before = mlflow.last_active_run()
        with mlflow.start_run(run_name="r"):
            mlflow.log_metric("m", 1, timestamp=T0)
            during = mlflow.last_active_run().data.metrics
        return before, during, mlflow.last_active_run().info.status

    assert both(scenario) == [None, {}, "FINISHED"]


def test_threads_each_have_their_runs(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        def work(number: int) -> None:
            with mlflow.start_run(run_name=f"t{number}"):
                for step in range(20):
                    mlflow.log_metric("m", step, step=step, timestamp=T0)
                mlflow.log_param("number", number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        runs = stage.client.search_runs(["0"], order_by=["run_name"])
        points = [len(stage.client.get_metric_history(run.info.run_id, "m")) for run in runs]
        return [(run.info.run_name, run.info.status, run.data.params) for run in runs], points

    assert both(scenario)[1] == [20] * 4


def test_threads_may_share_a_run(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()

        def work(number: int) -> None:
            for step in range(10):
                stage.client.log_metric(run, f"m{number}", step, T0, step)
                stage.client.set_tag(run, f"t{number}", step)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return stage.client.get_run(run), [len(stage.client.get_metric_history(run, f"m{n}")) for n in range(4)]

    assert both(scenario)[1] == [10] * 4


def test_asynchronous_logging(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with mlflow.start_run(run_name="r") as run:
            waiting = [mlflow.log_metric("m", step, step=step, timestamp=T0, synchronous=False) for step in range(30)]
            waiting.append(mlflow.log_metrics({"a": 1, "b": 2}, step=1, timestamp=T0, synchronous=False))
            waiting.append(mlflow.log_params({"p": 1}, synchronous=False))
            waiting.append(mlflow.log_param("q", 2, synchronous=False))
            waiting.append(mlflow.set_tags({"t": 1}, synchronous=False))
            waiting.append(mlflow.set_tag("u", 2, synchronous=False))
            for operation in waiting:
                operation.wait()
            bad = mlflow.log_param("p", 5, synchronous=False)
            refused = stage.attempt(bad.wait)
            mlflow.flush_async_logging()
        found = mlflow.get_run(run.info.run_id).data
        return (
            found.metrics,
            found.params,
            found.tags["t"],
            found.tags["u"],
            refused.kind,
            len(stage.client.get_metric_history(run.info.run_id, "m")),
        )

    both(scenario)


def test_ending_with_each_status(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        found = []
        for status in ("FINISHED", "FAILED", "KILLED", "SCHEDULED", "RUNNING"):
            run = mlflow.start_run(run_name=status)
            mlflow.end_run(status)
            found.append(mlflow.get_run(run.info.run_id).info.status)
        return found, stage.attempt(mlflow.end_run)

    both(scenario)


def test_logging_without_a_run_starts_one(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        mlflow.log_metric("m", 1, timestamp=T0)
        run = mlflow.active_run()
        mlflow.end_run()
        return mlflow.get_run(run.info.run_id).data.metrics, mlflow.get_run(run.info.run_id).info.status

    both(scenario)


def test_set_tracking_uri_gives_artifacts_a_place(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with mlflow.start_run(run_name="r"):
            return mlflow.get_artifact_uri(), mlflow.get_artifact_uri("a/b.txt")

    both(scenario)
