"""What a spool cannot do, and what there is never any of: answers in a sentence, or as an empty database gives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.abstract_store import AbstractStore as AbstractRegistry
from mlflow.store.tracking.abstract_store import AbstractStore
from tests.plugin.differential import Scenario, Stage

from mlferry.plugin import registry, tracking, versions

Both = Callable[[Scenario], Any]

REFUSED = "a spool is none"

#: What trains, logs or reads back reaches none of these: they run a service, or label and judge traces by one.
ONLY_ON_SERVERS = (
    *("budget", "dataset", "endpoint", "gateway", "guardrail", "issue", "label_schema", "mcp_", "online_scor"),
    *("review_queue", "scorer", "user_queue", "webhook", "archive_traces", "unlink_traces"),
)


def refused(ours: type, store: type) -> list[str]:
    found = [name for name, method in inspect.getmembers(ours, inspect.isfunction) if not name.startswith("_")]
    return [name for name in found if hasattr(store, name) and "needs a server" in (getattr(ours, name).__doc__ or "")]


@pytest.mark.parametrize(
    ("ours", "store"),
    [(tracking.SpoolTrackingStore, AbstractStore), (registry.SpoolRegistryStore, AbstractRegistry)],
)
def test_nothing_is_silently_left_out(ours: type, store: type) -> None:
    """A method of an abstract class that nobody wrote would answer None."""
    assert versions.unsupported(store, ours) == []
    assert [name for name in refused(ours, store) if not any(word in name for word in ONLY_ON_SERVERS)] == []


def test_what_needs_a_server_says_what_to_do(spool: Stage) -> None:
    names = refused(tracking.SpoolTrackingStore, AbstractStore)
    assert len(names) > 20
    for name in names:
        with pytest.raises(MlflowException, match="MLFLOW_TRACKING_URI set to the server's address") as caught:
            getattr(spool.store, name)()
        assert caught.value.error_code == "NOT_IMPLEMENTED"
        assert REFUSED in str(caught.value) and name in str(caught.value)


def test_users_meet_the_sentence_and_no_trace_of_mlflows_inside(spool: Stage) -> None:
    mlflow.set_tracking_uri(spool.uri)
    from mlflow.genai import datasets

    calls: list[Callable[[], Any]] = [
        lambda: datasets.create_dataset(name="examples"),
        lambda: spool.client.create_webhook("hook", "https://example.org/hook", events=["registered_model.created"]),
    ]
    for call in calls:
        with pytest.raises(MlflowException, match=REFUSED) as caught:
            call()
        assert "Traceback" not in str(caught.value)


@pytest.mark.skipif(not versions.SQL_TRACES, reason="needs MLflow's SQL store of today")
def test_what_a_spool_never_holds_is_absent_as_in_an_empty_database(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        store, experiment = stage.store, stage.experiment()
        return [
            stage.attempt(store.search_datasets, [experiment]),
            stage.attempt(store.get_dataset, "d-absent"),
            stage.attempt(store.list_scorers, experiment),
            stage.attempt(store.list_scorers, "absent"),
            stage.attempt(store.get_scorer, experiment, "absent"),
            stage.attempt(store.get_online_scoring_configs, []),
            stage.attempt(store.list_gateway_endpoints),
            stage.attempt(store.list_secret_infos),
            stage.attempt(store.get_gateway_endpoint, "absent"),
            stage.attempt(store.search_issues, experiment),
            stage.attempt(store.list_review_queues, experiment),
            stage.attempt(stage.registry.list_webhooks),
        ]

    both(scenario)
