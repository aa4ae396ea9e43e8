"""What scripts call less often: files of models, active models, streams, prompts in parts, models that are changed later."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.models import infer_signature
from tests.plugin.differential import T0, Refused, Scenario, Stage
from tests.plugin.test_prompts import told

from mlferry.plugin import versions

pytestmark = [
    pytest.mark.skipif(not versions.SQL_TRACES, reason="some of these came after MLflow's first versions"),
    pytest.mark.filterwarnings("ignore"),  # what MLflow says of its own models, once
]

Both = Callable[[Scenario], Any]


def code_of(answer: Any) -> Any:
    """Of a refusal, what programs look at: a database tells it in words of its own."""
    return (answer.kind, answer.code) if isinstance(answer, Refused) else answer


def test_files_of_logged_models(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client, run = stage.client, stage.run()
        stage.write("folder/a.txt", "a")
        stage.write("folder/deep/ü.txt", "u")
        model = client.create_logged_model("0", "m", run, tags={"t": "1"}, params={"p": "1"}, model_type="kind")
        found = []
        for act in (
            lambda: client.log_model_artifact(model.model_id, stage.write("one.txt", "1")),
            lambda: client.log_model_artifact(model.model_id, stage.write("two.txt", "2"), "sub/dir"),
            lambda: client.log_model_artifact(model.model_id, stage.write("one.txt", "changed")),
            lambda: client.log_model_artifacts(model.model_id, str(stage.folder / "own" / "folder")),
            lambda: client.log_model_artifacts(model.model_id, str(stage.folder / "own" / "folder"), "again"),
            lambda: client.log_model_artifact(model.model_id, stage.write("three.txt", "3"), "../out"),
            lambda: client.log_model_artifact("m-" + "0" * 32, stage.write("one.txt", "1")),
            lambda: client.list_logged_model_artifacts(model.model_id),
            lambda: client.list_logged_model_artifacts(model.model_id, "sub"),
            lambda: client.list_logged_model_artifacts(model.model_id, "sub/dir/two.txt"),
            lambda: client.list_logged_model_artifacts(model.model_id, "absent"),
            lambda: client.list_logged_model_artifacts("m-" + "0" * 32),
            lambda: mlflow.artifacts.load_text(f"models:/{model.model_id}/one.txt"),
            lambda: mlflow.artifacts.list_artifacts(f"models:/{model.model_id}"),
            lambda: client.finalize_logged_model(model.model_id, "READY"),
            lambda: client.delete_logged_model(model.model_id),
            lambda: client.list_logged_model_artifacts(model.model_id),
        ):
            found.append(stage.attempt(act))
        return found

    both(scenario)


def test_active_and_external_models(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        seen: list[Any] = [mlflow.get_active_model_id(), mlflow.last_logged_model()]
        begun = mlflow.initialize_logged_model("begun", tags={"a": "1"}, params={"p": "x" * 300}, model_type="kind")
        seen += [begun, mlflow.last_logged_model()]
        seen.append(mlflow.finalize_logged_model(begun.model_id, "READY").status)
        active = mlflow.set_active_model(name="served")
        again = mlflow.set_active_model(name="served")
        seen.append(active.model_id == again.model_id == mlflow.get_active_model_id())
        with mlflow.start_run() as run:
            mlflow.log_metric("m", 1.0, step=1)
            mlflow.log_metric("of the other", 2.0, model_id=begun.model_id)
        seen += [[(one.key, one.value) for one in mlflow.get_logged_model(active.model_id).metrics]]
        seen += [[(one.key, one.value) for one in mlflow.get_logged_model(begun.model_id).metrics]]
        seen.append(len(mlflow.get_run(run.info.run_id).inputs.model_inputs))
        with mlflow.set_active_model(model_id=begun.model_id):
            seen.append(mlflow.get_active_model_id() == begun.model_id)
        mlflow.clear_active_model()
        seen += [mlflow.get_active_model_id(), stage.attempt(mlflow.set_active_model, model_id="m-absent")]
        seen += [
            stage.attempt(mlflow.set_active_model),
            stage.attempt(mlflow.set_active_model, name="a", model_id="m-b"),
        ]
        external = mlflow.create_external_model("outside", params={"p": "1"})
        mlflow.log_model_params({"q": "2"}, external.model_id)
        mlflow.set_logged_model_tags(external.model_id, {"k": "v", "gone": "1"})
        mlflow.delete_logged_model_tag(external.model_id, "gone")
        seen.append(stage.attempt(mlflow.delete_logged_model_tag, external.model_id, "gone"))
        for again in ({"q": "3"}, {"q": "2"}, {"new": "1", "p": "1"}):
            seen.append(code_of(stage.attempt(mlflow.log_model_params, again, external.model_id)))
        seen.append(mlflow.get_logged_model(external.model_id))
        return [*seen, sorted(mlflow.search_logged_models().columns)]

    both(scenario)


def test_streams_and_experiment_tags(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client, run = stage.client, stage.run()
        mlflow.set_experiment("with tags")
        return [
            stage.attempt(mlflow.set_experiment_tags, {"a": 1, "ü": "x" * 6000}),
            stage.attempt(mlflow.delete_experiment_tag, "a"),
            stage.attempt(mlflow.delete_experiment_tag, "a"),
            client.get_experiment_by_name("with tags").tags,
            stage.attempt(client.log_stream, run, io.BytesIO(b"\0\1" * 50_000), "deep/stream.bin"),
            stage.attempt(client.log_stream, run, io.BytesIO(b""), "empty.bin"),
            stage.attempt(client.log_stream, run, io.StringIO("text"), "text.txt"),
            stage.attempt(client.log_stream, "0" * 32, io.BytesIO(b"x"), "x"),
            client.list_artifacts(run, "deep"),
            stage.attempt(mlflow.log_stream, io.BytesIO(b"of a run"), "b.bin", run),
            client.list_artifacts(run),
            mlflow.get_registry_uri() == mlflow.get_tracking_uri(),
            client.tracking_uri == stage.uri,
        ]

    both(scenario)


def test_prompts_in_parts(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client = stage.client
        seen = []
        for act in (
            lambda: client.create_prompt("p", "described", {"a": "1"}),
            lambda: client.create_prompt("p"),
            lambda: client.create_prompt_version("p", "hello {{x}}", "first", {"t": "1"}),
            lambda: client.create_prompt_version("p", [{"role": "user", "content": "{{y}}"}], response_format={"a": 1}),
            lambda: client.create_prompt_version("absent", "hello"),
            lambda: client.set_prompt_alias("p", "good", 1),
            lambda: client.get_prompt_version_by_alias("p", "good"),
            lambda: client.get_prompt_version_by_alias("p", "absent"),
            lambda: client.set_prompt_version_tag("p", "1", "k", "v"),
            lambda: client.delete_prompt_version_tag("p", "1", "k"),
            lambda: client.delete_prompt_version_tag("p", "1", "absent"),
            lambda: client.get_prompt_version("p", "1"),
            lambda: client.parse_prompt_uri("prompts:/p/1"),
            lambda: client.parse_prompt_uri("prompts:/p"),
            lambda: client.list_logged_prompts("0" * 32),
            lambda: client.detach_prompt_from_run("0" * 32, "prompts:/p/1"),
            lambda: [prompt.name for prompt in client.search_prompts("tags.a = '1'")],
            lambda: client.delete_prompt_version("p", "1"),
            lambda: client.delete_prompt_version("p", "1"),
            lambda: client.get_model_version_stages("p", "2"),
        ):
            seen.append(told(stage.attempt(act)))
        return seen

    both(scenario)


def test_models_that_are_changed_and_judged_later(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        class Doubling(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
            def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
                return 2 * model_input["x"]

        frame = pd.DataFrame({"x": [1.0, 2.0, 3.0]})
        with mlflow.start_run(run_name="made"):
            info = mlflow.pyfunc.log_model(name="double", python_model=Doubling(), pip_requirements=["numpy"])
        mlflow.models.set_signature(info.model_uri, infer_signature(frame, 2 * frame))
        mlflow.models.update_model_requirements(info.model_uri, "add", ["pandas"])
        found = mlflow.models.get_model_info(info.model_uri)
        loaded = mlflow.pyfunc.load_model(info.model_uri)
        with mlflow.start_run(run_name="judged") as run:
            data = mlflow.data.from_pandas(frame.assign(y=[2.0, 4.0, 6.5]), targets="y", predictions=None, name="rows")
            result = mlflow.models.evaluate(
                info.model_uri, data, model_type="regressor", evaluator_config={"log_explainer": False}
            )
        judged = mlflow.get_run(run.info.run_id)
        folder = mlflow.artifacts.download_artifacts(info.model_uri)
        requirements = Path(folder, "requirements.txt").read_text()
        return [
            (str(found.signature), sorted(found.flavors), requirements.split()),
            loaded.predict(frame).tolist(),
            {key: round(value, 6) for key, value in result.metrics.items()},
            sorted(result.artifacts),
            judged.data.metrics.keys(),
            [[tag.value for tag in one.tags] for one in judged.inputs.dataset_inputs],
            len(judged.inputs.model_inputs),
            sorted((one.key, one.dataset_name) for one in mlflow.get_logged_model(info.model_id).metrics),
            code_of(stage.attempt(mlflow.models.get_model_info, f"models:/m-{'0' * 32}")),
            code_of(stage.attempt(mlflow.models.set_signature, f"runs:/{run.info.run_id}/absent", found.signature)),
            code_of(stage.attempt(mlflow.pyfunc.load_model, f"runs:/{run.info.run_id}/absent")),
        ]

    both(scenario)


def test_system_metrics_are_logged_under_their_names(both: Both) -> None:
    pytest.importorskip("psutil")

    def scenario(stage: Stage) -> Any:
        mlflow.enable_system_metrics_logging()
        mlflow.set_system_metrics_node_id("node")
        try:
            mlflow.set_system_metrics_sampling_interval(0.05)
            mlflow.set_system_metrics_samples_before_logging(1)
            with mlflow.start_run() as run:
                for _ in range(200):
                    if len(mlflow.get_run(run.info.run_id).data.metrics) > 5:
                        break
                    time.sleep(0.05)
        finally:
            mlflow.disable_system_metrics_logging()
            mlflow.set_system_metrics_node_id(None)
            mlflow.set_system_metrics_sampling_interval(None)
            mlflow.set_system_metrics_samples_before_logging(None)
        with mlflow.start_run() as without:
            pass
        names = sorted(mlflow.get_run(run.info.run_id).data.metrics)
        return [name for name in names if "gpu" not in name], mlflow.get_run(without.info.run_id).data.metrics

    assert any(name.startswith("system/node/cpu") for name in both(scenario)[0])


def test_searching_with_many_experiments_and_unicode(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client, ids = stage.client, []
        for number in range(3):
            experiment = stage.experiment(f"größe {number}")
            ids.append(experiment)
            for other in range(2):
                run = stage.run(experiment, f"lauf {other} ☃", start_time=T0 + number * 10 + other)
                client.set_tag(run, "schlüssel", "wért 'quoted'")
                client.log_param(run, "größe/ü", "ß" * 10)
        return [
            [run.info.run_name for run in client.search_runs(ids, "tags.`schlüssel` = \"wért 'quoted'\"")],
            [run.info.run_name for run in client.search_runs(ids, "params.`größe/ü` LIKE 'ß%'")],
            [run.info.run_name for run in client.search_runs(ids, "attributes.run_name ILIKE 'LAUF 1%'")],
            [run.info.run_name for run in client.search_runs(ids, "params.`größe/ü` ILIKE 'SS%'")],
            stage.attempt(client.search_experiments, filter_string="name = 'a' OR name = 'b'"),
            [one.name for one in client.search_experiments(filter_string="name ILIKE 'GRößE%'")],
            [one.name for one in client.search_experiments(filter_string="name LIKE 'gr%'", order_by=["name DESC"])],
            mlflow.search_runs(search_all_experiments=True, output_format="list", max_results=2)[0].info.run_name,
            stage.attempt(mlflow.search_runs, ids, search_all_experiments=True, experiment_names=["größe 1"]),
            len(mlflow.search_runs(experiment_names=["größe 1", "absent"])),
        ]

    both(scenario)
