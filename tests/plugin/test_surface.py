"""Every function that MLflow gives its users is tried on a spool, needs a server and says so, or is listed here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tests.plugin.differential import Stage

from mlferry.plugin import versions

pytestmark = pytest.mark.skipif(not versions.SQL_TRACES, reason="the list is that of today's MLflow")

#: Of no store: settings of the process, decorators, types, what MLflow keeps for notebooks and Databricks.
NOT_OF_A_STORE = re.compile(
    r"(ActiveModel|ActiveRun|Image|LazyLoader|MlflowClient|MlflowException|RunOperations|flavors?|"
    r"autolog|doctor|login|run|evaluate|validate_evaluation_results|import_checkpoints|get_current_active_span|"
    r"is_tracking_uri_set|set_registry_uri|set_telemetry_client|maybe_hint_\w+|"
    r"\w+_workspaces?|get_workspace_store_uri)"
)

#: What a server alone does, by the names of its client's methods.
ON_SERVERS = re.compile(r"\w*(mcp|webhook|dataset|unlink_traces|get_online_trace)\w*")


def public(of: Any) -> Iterator[str]:
    for name in dir(of):
        thing = inspect.getattr_static(of, name)
        is_code = isinstance(thing, (staticmethod, classmethod)) or inspect.isroutine(thing) or inspect.isclass(thing)
        if not name.startswith("_") and is_code:
            yield name


def test_every_function_is_tried_or_accounted_for() -> None:
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))
    tried = set(re.findall(r"\w+", texts))
    left = {name for name in (*public(mlflow), *public(MlflowClient)) if name not in tried}
    assert sorted(name for name in left if not NOT_OF_A_STORE.fullmatch(name) and not ON_SERVERS.fullmatch(name)) == []


CALLS: list[Callable[[MlflowClient], Any]] = [
    lambda client: client.create_webhook("hook", "https://example.org/hook", events=["registered_model.created"]),
    lambda client: client.get_webhook("absent"),
    lambda client: client.update_webhook("absent", name="other"),
    lambda client: client.delete_webhook("absent"),
    lambda client: client.test_webhook("absent"),
    lambda client: client.unlink_traces_from_run(["tr-1"], "absent"),
    lambda client: client.create_mcp_server("org/server"),
    lambda client: client.set_mcp_server_tag("org/server", "k", "v"),
    lambda client: client.delete_mcp_server("org/server"),
    lambda client: client.create_dataset("examples", "0"),
    lambda client: client.delete_dataset("d-absent"),
    lambda client: client.set_dataset_tags("d-absent", {"k": "v"}),
    lambda client: client.add_dataset_to_experiments("d-absent", ["0"]),
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_what_a_server_alone_does_is_refused_in_one_sentence(spool: Stage, number: int) -> None:
    mlflow.set_tracking_uri(spool.uri)
    with pytest.raises(MlflowException, match="a spool is none") as caught:
        CALLS[number](spool.client)
    assert "\n" not in str(caught.value)
