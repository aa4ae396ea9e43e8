"""LoggedModels, dataset inputs and model outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
)
from tests.plugin.differential import T0, Scenario, Stage
from tests.plugin.test_experiments import tick

Both = Callable[[Scenario], Any]


def test_a_model_from_creation_to_deletion(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client, store = stage.run(), stage.client, stage.store
        model = client.create_logged_model("0", "net", run, {"t": "1"}, {"p": "1"}, "agent")
        seen = [model]
        client.set_logged_model_tags(model.model_id, {"t": "2", "u": "3"})
        client.log_model_params(model.model_id, {"q": "2"})
        seen.append(client.get_logged_model(model.model_id))
        client.delete_logged_model_tag(model.model_id, "u")
        seen.append(client.finalize_logged_model(model.model_id, "READY"))
        seen.append(client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED))
        seen.append(stage.attempt(client.delete_logged_model_tag, model.model_id, "none").code)
        client.delete_logged_model(model.model_id)
        seen.append(stage.attempt(client.get_logged_model, model.model_id))
        seen.append(stage.attempt(client.delete_logged_model, model.model_id))
        seen.append(stage.attempt(store.set_logged_model_tags, model.model_id, []))
        seen.append(client.search_logged_models(["0"]))
        return seen

    both(scenario)


@pytest.mark.parametrize(
    "name", [None, "", "ok", "a/b", "a:b", "a.b", "a%b", "a'b", 'a"b', "ü", "x" * 300, "a b", "a;b"]
)
def test_names_of_models(both: Both, name: str | None) -> None:
    def scenario(stage: Stage) -> Any:
        made = stage.attempt(stage.client.create_logged_model, "0", name)
        return made if name or not hasattr(made, "name") else (made.name is not None, made.status)

    both(scenario)


def test_unknown_models(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client, unknown = stage.client, "m-" + "f" * 32
        run = stage.run()
        return (
            stage.attempt(client.get_logged_model, unknown),
            stage.attempt(client.finalize_logged_model, unknown, "READY"),
            stage.attempt(client.set_logged_model_tags, unknown, {"a": "1"}),
            stage.attempt(client.delete_logged_model_tag, unknown, "a"),
            stage.attempt(client.delete_logged_model, unknown),
            stage.attempt(client.create_logged_model, "123456789123456789", "n"),
            stage.attempt(client.get_logged_model, "no id"),
            len(client.get_run(run).outputs.model_outputs),
        )

    both(scenario)


MODEL_FILTERS = [
    None,
    "name = 'm1'",
    "name != 'm1'",
    "name LIKE 'm%'",
    "name ILIKE 'M1'",
    "name IN ('m0', 'm2')",
    "model_type = 'kind'",
    "creation_timestamp > 0",
    "params.p = '1'",
    "params.p != '1'",
    "params.none = '1'",
    "tags.t = 't0'",
    "tags.t LIKE 't%'",
    "metrics.acc > 1",
    "metrics.acc <= 1",
    "metrics.none = 1",
    "name = 'm1' AND params.p = '1'",
    "attributes.name = 'm2'",
    "name > 'a'",
    "rubbish",
]


def some_models(stage: Stage) -> str:
    experiment, client = stage.experiment(), stage.client
    run = stage.run(experiment)
    for number in range(4):
        tick()
        model = client.create_logged_model(
            experiment, f"m{number}", run, {"t": f"t{number % 2}"}, {"p": str(number)}, "kind" if number else None
        )
        for step in range(2):
            client.log_metric(
                run,
                "acc",
                float(number + step),
                T0,
                step,
                model_id=model.model_id,
                dataset_name=f"d{number % 2}",
                dataset_digest="x",
            )
        if number < 2:
            client.finalize_logged_model(model.model_id, "READY")
        if number == 3:
            client.delete_logged_model(model.model_id)
    return experiment


@pytest.mark.parametrize("filter_string", MODEL_FILTERS)
def test_searching_models(both: Both, filter_string: str | None) -> None:
    def scenario(stage: Stage) -> Any:
        found = stage.attempt(stage.client.search_logged_models, [some_models(stage)], filter_string)
        return [model.name for model in found] if isinstance(found, list) else found

    both(scenario)


@pytest.mark.parametrize(
    "order_by",
    [
        None,
        [{"field_name": "name"}],
        [{"field_name": "name", "ascending": False}],
        [{"field_name": "creation_timestamp", "ascending": True}],
        [{"field_name": "metrics.acc", "ascending": False}],
        [{"field_name": "metrics.acc", "dataset_name": "d1"}],
        [{"field_name": "metrics.none"}],
    ],
)
def test_ordering_models(both: Both, order_by: list[dict[str, Any]] | None) -> None:
    def scenario(stage: Stage) -> Any:
        found = stage.attempt(stage.client.search_logged_models, [some_models(stage)], order_by=order_by)
        return [model.name for model in found] if isinstance(found, list) else found

    both(scenario)


def test_pages_of_models(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        experiment = some_models(stage)
        first = stage.client.search_logged_models([experiment], max_results=2)
        second = stage.client.search_logged_models([experiment], max_results=2, page_token=first.token)
        whole = stage.client.search_logged_models([experiment])
        by_dataset = stage.client.search_logged_models(
            [experiment], "metrics.acc > 0", datasets=[{"dataset_name": "d1"}]
        )
        return first, second, whole, [model.name for model in by_dataset]

    both(scenario)


def test_datasets_are_kept_once(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        run, client = stage.run(), stage.client
        data = Dataset("d", "digest", "local", "source" * 1000, "schema", "profile")
        other = Dataset("d", "digest 2", "local", "s")
        client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])
        client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "test")]), DatasetInput(other, [])])
        return client.get_run(run).inputs

    both(scenario)


def test_the_datasets_of_experiments_are_told_once_each(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        first, second = stage.experiment("first"), stage.experiment("second")
        data, other = Dataset("data", "digest", "local", "{}"), Dataset("other", "digest", "local", "{}")
        used = [DatasetInput(data, [InputTag("mlflow.data.context", "train")]), DatasetInput(other, [])]
        for experiment in (first, first, second):
            stage.client.log_inputs(stage.run(experiment), used)
        gone = stage.run(second)
        stage.client.log_inputs(gone, [DatasetInput(Dataset("gone", "d", "local", "{}"), [])])
        stage.client.delete_run(gone)
        names = {first: "first", second: "second"}
        found = [
            summary for ids in ([first], [second], [first, second]) for summary in stage.store._search_datasets(ids)
        ]
        return sorted((names[told.experiment_id], told.name, told.digest, told.context or "") for told in found)

    assert len(both(scenario)) == 10


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "x" * 501},
        {"digest": "x" * 37},
        {"name": ""},
        {"digest": ""},
        {"name": None},
        {"source": "x" * 70_000},
        {"schema": "x" * 70_000},
        {"schema": "x" * 1_048_576},
        {"profile": "x" * 200_000},
        {"source_type": None},
    ],
)
def test_limits_of_datasets(both: Both, arguments: dict[str, Any]) -> None:
    def scenario(stage: Stage) -> Any:
        run = stage.run()
        told = {"name": "d", "digest": "1", "source_type": "local", "source": "s", **arguments}
        answer = stage.attempt(stage.client.log_inputs, run, [DatasetInput(Dataset(**told), [])])
        return answer if answer is None else (answer.kind, answer.code), stage.client.get_run(run).inputs

    both(scenario)


@pytest.mark.filterwarnings(
    "ignore:The specified dataset source can be interpreted:UserWarning",
    "ignore:Hint:UserWarning",
    "ignore:Starting with pandas version",
)
def test_fluent_inputs_and_metrics_of_a_dataset(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        frame = mlflow.data.from_pandas(pd.DataFrame({"a": [1, 2]}), name="frame", source="file.csv")
        array = mlflow.data.from_numpy(np.arange(4.0), name="array")
        with mlflow.start_run(run_name="r") as run:
            mlflow.log_input(frame, context="training", tags={"a": "b"})
            mlflow.log_inputs([frame, array], ["training", "test"], [None, None])
            mlflow.log_metric("m", 1.0, step=0, timestamp=T0, dataset=frame)
        found = mlflow.get_run(run.info.run_id)
        source = mlflow.data.get_source(found.inputs.dataset_inputs[0])
        by_context = mlflow.search_runs(filter_string="dataset.name = 'frame'", output_format="list")
        return found.inputs, found.data.metrics, type(source).__name__, len(by_context)

    both(scenario)


def test_inputs_and_outputs_that_are_models(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client, store = stage.client, stage.store
        run, other = stage.run(), stage.run()
        model = client.create_logged_model("0", "net", run)
        client.log_outputs(run, [LoggedModelOutput(model.model_id, 3)])
        client.log_inputs(other, models=[LoggedModelInput(model.model_id)])
        client.log_inputs(other, models=[LoggedModelInput(model.model_id)])
        store.log_batch(other, [Metric("m", 1.0, T0, 0, model_id=model.model_id)], [], [])
        return client.get_run(run), client.get_run(other), client.get_logged_model(model.model_id)

    both(scenario)
