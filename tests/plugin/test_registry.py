"""The model registry: registered models, their versions, tags, aliases and stages, and searches over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag
from tests.plugin.differential import T0, Clock, Scenario, Stage

Both = Callable[[Scenario], Any]

NAMES: list[Any] = ["m", "M", " ", "", None, 7, "a/b", "a:b", "a.b", "ü\u2603", "x" * 256, "x" * 257, "'; DROP", "%a_"]


def test_names_of_registered_models(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        return {repr(name): tried(stage, stage.registry, name) for name in NAMES}

    def tried(stage: Stage, store: Any, name: Any) -> Any:
        return [
            stage.attempt(store.create_registered_model, name),
            stage.attempt(store.get_registered_model, name),
            stage.attempt(store.create_registered_model, name, [RegisteredModelTag("a", "b")], "again"),
            stage.attempt(store.create_model_version, name, "file:///x"),
            stage.attempt(store.rename_registered_model, name, "other"),
            stage.attempt(store.delete_registered_model, name),
        ]

    both(scenario)


def test_new_names_of_registered_models(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store = stage.registry
        store.create_registered_model("taken")
        return {repr(name): tried(stage, store, name) for name in ["taken", "first", *NAMES]}

    def tried(stage: Stage, store: Any, name: Any) -> Any:
        store.create_registered_model("first")
        store.create_model_version("first", "file:///x")
        seen = [stage.attempt(store.rename_registered_model, "first", name), store.search_registered_models()]
        for left in ("first", name):
            stage.attempt(store.delete_registered_model, left) if left != "taken" else None
        return [*seen, stage.attempt(store.rename_registered_model, "absent", name)]

    both(scenario)


def test_a_registered_model_from_creation_to_deletion(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store, client = stage.registry, stage.client
        tags = [RegisteredModelTag("a", "1"), RegisteredModelTag("b", ""), RegisteredModelTag("a", "2")]
        seen: list[Any] = [store.create_registered_model("m", tags, "about it")]
        seen.append(client.get_registered_model("m"))
        for act in (
            lambda: client.update_registered_model("m", "more"),
            lambda: client.update_registered_model("m", None),
            lambda: client.update_registered_model("m", ""),
            lambda: client.update_registered_model("absent", "x"),
            lambda: client.set_registered_model_tag("m", "a", "3"),
            lambda: client.set_registered_model_tag("m", "n", 7),
            lambda: client.set_registered_model_tag("m", "", "x"),
            lambda: client.set_registered_model_tag("m", None, "x"),
            lambda: client.set_registered_model_tag("m", "k" * 251, "x"),
            lambda: client.set_registered_model_tag("m", "k", "v" * 100_001),
            lambda: client.set_registered_model_tag("m", "k", "v" * 5001),
            lambda: client.set_registered_model_tag("absent", "k", "v"),
            lambda: client.delete_registered_model_tag("m", "n"),
            lambda: client.delete_registered_model_tag("m", "never"),
            lambda: client.delete_registered_model_tag("m", None),
            lambda: client.delete_registered_model_tag("absent", "k"),
            lambda: client.rename_registered_model("m", "n"),
            lambda: client.get_registered_model("m"),
            lambda: client.delete_registered_model("n"),
            lambda: client.delete_registered_model("n"),
            lambda: client.create_registered_model("n"),
        ):
            seen += [stage.attempt(act), stage.attempt(client.get_registered_model, "m")]
        return seen

    both(scenario)


def test_a_name_that_is_used_again_starts_with_nothing(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client = stage.client
        client.create_registered_model("m", {"a": "1"}, "old")
        client.create_model_version("m", "file:///x", tags={"t": "1"})
        client.set_registered_model_alias("m", "champion", 1)
        client.delete_registered_model("m")
        client.create_registered_model("m")
        return (
            client.get_registered_model("m"),
            stage.attempt(client.get_model_version, "m", 1),
            client.create_model_version("m", "file:///y"),
            stage.attempt(client.get_model_version_by_alias, "m", "champion"),
        )

    both(scenario)


def test_a_version_from_creation_to_deletion(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store, client = stage.registry, stage.client
        run = stage.run()
        store.create_registered_model("m")
        tags = [ModelVersionTag("a", "1"), ModelVersionTag("a", "2")]
        seen: list[Any] = [
            store.create_model_version("m", "file:///x", run, tags, "http://link", "about it"),
            store.create_model_version("m", "file:///y"),
            store.create_model_version("m", "s3://b/x", model_id=None, local_model_path="/x"),
        ]
        for act in (
            lambda: client.update_model_version("m", "1", "more"),
            lambda: client.update_model_version("m", 1, None),
            lambda: client.set_model_version_tag("m", "1", "k", 7),
            lambda: client.set_model_version_tag("m", "1", "k", "v" * 100_001),
            lambda: client.set_model_version_tag("m", "1", None, "v"),
            lambda: client.set_model_version_tag("m", "9", "k", "v"),
            lambda: client.set_model_version_tag("m", "x", "k", "v"),
            lambda: client.delete_model_version_tag("m", "1", "k"),
            lambda: client.delete_model_version_tag("m", "1", "never"),
            lambda: client.delete_model_version_tag("m", "9", "k"),
            lambda: client.get_model_version_download_uri("m", "1"),
            lambda: client.get_model_version_download_uri("m", "9"),
            lambda: client.delete_model_version("m", "2"),
            lambda: client.delete_model_version("m", "2"),
            lambda: client.get_model_version("m", "2"),
            lambda: client.update_model_version("m", "2", "x"),
            lambda: client.create_model_version("m", "file:///z"),
            lambda: client.delete_model_version("m", 4),
            lambda: client.create_model_version("m", "file:///z"),
            lambda: client.rename_registered_model("m", "n"),
            lambda: client.get_model_version("n", 1),
            lambda: client.get_model_version("m", 1),
        ):
            seen += [stage.attempt(act), stage.attempt(client.get_registered_model, "m")]
        return seen

    both(scenario)


VERSIONS: list[Any] = ["1", 1, "01", " 1", "one", "", None, 1.0, "1.0", -1, 0]


def test_numbers_of_versions(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        stage.registry.create_registered_model("m")
        return {repr(version): tried(stage, stage.registry, version) for version in VERSIONS}

    def tried(stage: Stage, store: Any, version: Any) -> Any:
        number = store.create_model_version("m", "file:///x").version
        if version in ("1", 1):
            version = type(version)(number)
        return [
            stage.attempt(store.get_model_version, "m", version),
            stage.attempt(store.get_model_version_download_uri, "m", version),
            stage.attempt(store.set_registered_model_alias, "m", "a", version),
            stage.attempt(store.set_model_version_tag, "m", version, ModelVersionTag("a", "b")),
            stage.attempt(store.transition_model_version_stage, "m", version, "Staging", True),
            stage.attempt(store.update_model_version, "m", version, "text"),
            store.get_model_version("m", number),
            stage.attempt(store.delete_model_version_tag, "m", version, "a"),
            stage.attempt(store.delete_model_version, "m", version),
        ]

    both(scenario)


@pytest.mark.parametrize(
    "source",
    ["file:///x", "/tmp/x", "", None, "runs:/0/x", "models:/absent/1", "models:/m/1", "models:/m-0", "models:/m@a"],
)
def test_sources_of_versions(both: Both, source: Any) -> None:
    def scenario(stage: Stage) -> Any:
        store = stage.registry
        store.create_registered_model("m")
        store.create_model_version("m", "file:///first", run_id="0" * 32)
        store.set_registered_model_alias("m", "a", 1)
        store.create_registered_model("n")
        made = stage.attempt(store.create_model_version, "n", source)
        return made, stage.attempt(store.get_model_version_download_uri, "n", 1)

    both(scenario)


def test_versions_of_logged_models(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store, run = stage.registry, stage.run()
        model = stage.store.create_logged_model("0", "logged", run)
        of_none = stage.store.create_logged_model("0", "logged")
        store.create_registered_model("m")
        return [
            stage.attempt(store.create_model_version, "m", f"models:/{model.model_id}", model_id=model.model_id),
            stage.attempt(store.create_model_version, "m", f"models:/{model.model_id}", "1" * 32),
            stage.attempt(store.create_model_version, "m", f"models:/{of_none.model_id}"),
            stage.attempt(store.create_model_version, "m", "file:///x", model_id=model.model_id),
            stage.attempt(store.create_model_version, "m", "file:///x", model_id="m-absent"),
            store.get_model_version_download_uri("m", 1),
            store.search_model_versions("name = 'm'"),
            stage.client.get_logged_model(model.model_id),
        ]

    both(scenario)


STAGES: list[Any] = ["Staging", "production", "ARCHIVED", "None", "none", "", None, "other", 7]


@pytest.mark.parametrize("archive", [False, True, None])
def test_stages(both: Both, archive: Any) -> None:
    def scenario(stage: Stage) -> Any:
        store = stage.registry
        return {repr(name): tried(stage, store, name, f"m{number}") for number, name in enumerate(STAGES)}

    def tried(stage: Stage, store: Any, stage_name: Any, model: str) -> Any:
        store.create_registered_model(model)
        for number in range(1, 4):
            store.create_model_version(model, f"file:///{number}")
        store.transition_model_version_stage(model, 1, "Staging", False)
        store.transition_model_version_stage(model, 2, "Production", False)
        return [
            stage.attempt(store.transition_model_version_stage, model, 3, stage_name, archive),
            stage.attempt(store.transition_model_version_stage, model, 9, stage_name, archive),
            store.search_model_versions(f"name = '{model}'", order_by=["version_number"]),
            store.get_registered_model(model),
            stage.attempt(store.get_latest_versions, model, [stage_name]),
        ]

    both(scenario)


@pytest.mark.parametrize(
    "stages", [None, [], ["None"], ["production", "Staging"], ["Archived"], ["bad"], ["None", "none"]]
)
def test_latest_versions(both: Both, stages: Any) -> None:
    def scenario(stage: Stage) -> Any:
        store = stage.registry
        store.create_registered_model("m")
        for number in range(1, 7):
            store.create_model_version("m", f"file:///{number}")
        for number, name in ((1, "Production"), (2, "Production"), (3, "Staging"), (5, "Archived")):
            store.transition_model_version_stage("m", number, name, False)
        store.delete_model_version("m", 6)
        store.set_registered_model_alias("m", "here", 4)
        return [
            sorted(stage.attempt(store.get_latest_versions, "m", stages), key=lambda version: version.version)
            if stages != ["bad"]
            else stage.attempt(store.get_latest_versions, "m", stages),
            stage.attempt(store.get_latest_versions, "absent", stages),
        ]

    both(scenario)


@pytest.mark.parametrize(
    "alias", ["champion", "Latest", "latest", "v1", "V12", "v1a", "", None, "a b", "ü", "a.b", "x" * 257, "1", 7]
)
def test_names_of_aliases(both: Both, alias: Any) -> None:
    def scenario(stage: Stage) -> Any:
        store = stage.registry
        store.create_registered_model("m")
        store.create_model_version("m", "file:///x")
        return [
            stage.attempt(store.set_registered_model_alias, "m", alias, 1),
            stage.attempt(store.get_model_version_by_alias, "m", alias),
            store.get_registered_model("m"),
            stage.attempt(store.delete_registered_model_alias, "m", alias),
            stage.attempt(store.get_model_version_by_alias, "m", alias),
        ]

    both(scenario)


def test_aliases_move_and_go(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client = stage.client
        client.create_registered_model("m")
        client.create_registered_model("empty")
        for number in range(1, 4):
            client.create_model_version("m", f"file:///{number}")
        seen: list[Any] = []
        for act in (
            lambda: client.set_registered_model_alias("m", "a", 1),
            lambda: client.set_registered_model_alias("m", "b", "1"),
            lambda: client.set_registered_model_alias("m", "a", 2),
            lambda: client.set_registered_model_alias("m", "c", 9),
            lambda: client.set_registered_model_alias("absent", "c", 1),
            lambda: client.delete_registered_model_alias("m", "never"),
            lambda: client.delete_registered_model_alias("absent", "never"),
            lambda: client.get_model_version_by_alias("m", "a"),
            lambda: client.get_model_version_by_alias("m", "A"),
            lambda: client.get_model_version_by_alias("m", "latest"),
            lambda: client.get_model_version_by_alias("empty", "latest"),
            lambda: client.get_model_version_by_alias("absent", "latest"),
            lambda: client.delete_model_version("m", 2),
            lambda: client.get_model_version_by_alias("m", "a"),
            lambda: client.delete_model_version("m", 3),
            lambda: client.get_model_version_by_alias("m", "latest"),
            lambda: client.rename_registered_model("m", "n"),
            lambda: client.get_model_version_by_alias("n", "b"),
        ):
            seen += [stage.attempt(act), stage.attempt(client.get_registered_model, "m")]
        return seen

    both(scenario)


def populated(stage: Stage, clock: Clock) -> None:
    """Models and versions to search for, each made a second after the one before."""
    store = stage.registry
    clock.now = T0
    for name, tags in (
        ("Alpha", {"kind": "x"}),
        ("alpha", {"kind": "X", "more": "1"}),
        ("beta_1", {}),
        ("beta%2", {"kind": "y"}),
        ("ünicode", {"a.b": "d o t"}),
    ):
        clock.now += 1000
        store.create_registered_model(name, [RegisteredModelTag(key, value) for key, value in tags.items()])
    run = "a" * 32
    for name, run_id, tags in (
        ("Alpha", run, {"t": "1"}),
        ("Alpha", None, {"t": "2", "u": "x"}),
        ("alpha", "b" * 32, {}),
        ("beta_1", run, {"T": "1"}),
        ("Alpha", run, {}),
    ):
        clock.now += 1000
        told = [ModelVersionTag(key, value) for key, value in tags.items()]
        store.create_model_version(name, f"file:///{name}/model", run_id, told)
    store.delete_model_version("Alpha", 3)


MODEL_FILTERS: list[Any] = [
    *(None, "", "name = 'alpha'", "name LIKE 'a%'", "name ILIKE 'A%'", "name LIKE 'beta_1'", "name LIKE '%%2'"),
    *("name != 'alpha'", "name IN ('alpha', 'Alpha')", "name NOT IN ('alpha')", "name > 'a'", "NAME = 'alpha'"),
    *("name = 'alpha' AND tags.kind = 'X'", "tags.kind = 'x'", "tags.kind != 'x'", "tag.kind ILIKE 'X'"),
    *("tags.kind LIKE '%'", "tags.`a.b` = 'd o t'", "tags.\"a.b\" = 'd o t'", "tags.absent != 'x'", "tags.kind > 'x'"),
    *("tags.kind IN ('x')", "bad = 'x'", "name", "name = alpha", "name = 'a' OR name = 'b'", "run_id = 'x'"),
    *("tags.kind = 'X' AND tags.more = '1'", "tags.kind = 'X' AND tags.kind != 'y'", "attribute.name = 'alpha'"),
    *(
        "name = 'a' AND name = 'b'",
        "name LIKE 'ü%'",
        "description = 'x'",
        "name='alpha'",
        "name IN ()",
    ),
    *("tags.`mlflow.prompt.is_prompt` = 'true'", "tags.`mlflow.prompt.is_prompt` != 'true'", 7),
]


def test_searching_registered_models(both: Both, clock: Clock) -> None:
    def scenario(stage: Stage) -> Any:
        populated(stage, clock)
        return {
            repr(wanted): stage.attempt(stage.registry.search_registered_models, wanted) for wanted in MODEL_FILTERS
        }

    both(scenario)


VERSION_FILTERS: list[Any] = [
    *(None, "", "name = 'Alpha'", "name LIKE '%a'", "name ILIKE 'ALPHA'", "name != 'Alpha'", "run_id = 'b'"),
    *(f"run_id = '{'a' * 32}'", f"run_id IN ('{'a' * 32}', 'b')", f"run_id NOT IN ('{'a' * 32}')", "run_id IN ()"),
    *("run_id != 'x'", "run_id LIKE 'a%'", "source_path = 'file:///Alpha/model'", "source_path LIKE 'file%'"),
    *(
        "source_path IN ('x')",
        "version_number = 1",
        "version_number > 1",
        "version_number = '1'",
        "version_number != 1",
    ),
    *("version_number = 1.5", "version_number <= 1", "version_number LIKE '1'", "version_number IN (1)", "version = 1"),
    *("tags.t = '1'", "tags.t != '1'", "tags.T = '1'", "tags.t LIKE '%' AND tags.u = 'x'", "tags.t > '1'", "bad = 1"),
    *("name = 'Alpha' AND version_number < 2 AND tags.t ILIKE '1'", "attributes.name = 'Alpha'", "name IN ('Alpha')"),
    *("name NOT IN ('Alpha')", "current_stage = 'None'", "aliases = 'x'", "name = 'Alpha' and name = 'alpha'", 7),
]


def test_searching_versions(both: Both, clock: Clock) -> None:
    def scenario(stage: Stage) -> Any:
        populated(stage, clock)
        return {repr(wanted): stage.attempt(stage.registry.search_model_versions, wanted) for wanted in VERSION_FILTERS}

    both(scenario)


MODEL_ORDERS: list[Any] = [
    [],
    ["name"],
    ["name DESC"],
    ["name asc", "timestamp"],
    ["timestamp DESC", "last_updated_timestamp"],
    ["name", "name DESC"],
    ["last_updated_timestamp", "name DESC"],
    ["creation_timestamp"],
    ["bad"],
    ["name  DESC"],
    ["name DESC NULLS"],
    [""],
]


def test_ordering_registered_models(both: Both, clock: Clock) -> None:
    def scenario(stage: Stage) -> Any:
        populated(stage, clock)
        return {str(order): stage.attempt(found, order) for order in MODEL_ORDERS for found in [of(stage)]}

    def of(stage: Stage) -> Callable[[Any], Any]:
        return lambda order: [model.name for model in stage.registry.search_registered_models(order_by=order)]

    both(scenario)


VERSION_ORDERS: list[Any] = [
    [],
    ["name"],
    ["name DESC", "version_number"],
    ["version_number"],
    ["version_number DESC", "name DESC"],
    ["name", "name"],
    ["bad"],
    ["run_id"],
    ["current_stage"],
    ["attribute.name DESC"],
    ["tags.t"],
]


def test_ordering_versions(both: Both, clock: Clock) -> None:
    def scenario(stage: Stage) -> Any:
        populated(stage, clock)
        return {str(order): stage.attempt(found, order) for order in VERSION_ORDERS for found in [of(stage)]}

    def of(stage: Stage) -> Callable[[Any], Any]:
        return lambda order: [(v.name, v.version) for v in stage.registry.search_model_versions(order_by=order)]

    both(scenario)


def test_pages_of_models_and_versions(both: Both, clock: Clock) -> None:
    def scenario(stage: Stage) -> Any:
        populated(stage, clock)
        store, seen = stage.registry, []
        for search in (store.search_registered_models, store.search_model_versions):
            token = None
            for _ in range(4):
                page = search(max_results=2, page_token=token)
                seen.append(page)
                token = page.token
            for most in (0, -1, 1001, 200_001, 1_000_000, None, "2"):
                seen.append(stage.attempt(search, max_results=most))
            seen.append(stage.attempt(search, page_token="bad"))
        for most in (0, -1, 1001, None):
            seen.append(stage.attempt(stage.client.search_registered_models, max_results=most or 0))
        return seen

    both(scenario)


def test_registering_through_the_fluent_interface(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        with mlflow.start_run() as run:
            mlflow.log_text("x", "model/MLmodel")
        uri = f"runs:/{run.info.run_id}/model"
        first = mlflow.register_model(uri, "m", tags={"a": "1"})
        second = mlflow.register_model(f"models:/m/{first.version}", "n")
        return [
            first,
            second,
            stage.attempt(mlflow.register_model, "runs:/absent/model", "m"),
            stage.attempt(mlflow.register_model, "models:/absent/1", "m"),
            mlflow.search_registered_models(),
            mlflow.search_model_versions(filter_string="name = 'm'"),
            stage.client.copy_model_version("models:/m/1", "copied"),
            stage.attempt(stage.client.copy_model_version, "models:/m/9", "copied"),
            stage.attempt(stage.client.copy_model_version, "runs:/x/m", "copied"),
            stage.client.get_model_version_download_uri("copied", "1"),
            mlflow.set_model_version_tag("m", "1", "k", "v"),
            stage.client.get_model_version("m", "1"),
        ]

    both(scenario)
