"""Everything that one MLflow store holds, as plain values, read through MLflow's own client.

The same reading serves a server and a spool (any tracking URI), so that what a script left in a spool can be compared
with what arrived. Nothing is judged or left out here: ids and times are as the store gave them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

Fields = dict[str, Any]


@dataclass(slots=True)
class Snapshot:
    """What a store holds: each entity is a tree of dictionaries and lists whose leaves are plain values or file bytes."""

    experiments: list[Fields] = field(default_factory=list)
    runs: list[Fields] = field(default_factory=list)
    models: list[Fields] = field(default_factory=list)
    registered: list[Fields] = field(default_factory=list)
    traces: list[Fields] = field(default_factory=list)

    def names(self) -> set[str]:
        """Names of its experiments and registered models, to pass as ``but`` when the next script is looked at."""
        return {entity["name"] for entity in (*self.experiments, *self.registered)}


def take(uri: str, *, but: Set[str] = frozenset()) -> Snapshot:
    """Read the store at the tracking URI ``uri``, without the experiments and registered models named in ``but``."""
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiments = [e for e in _all(client.search_experiments, view_type=ViewType.ALL) if e.name not in but]
    ids = [experiment.experiment_id for experiment in experiments]
    if not ids:
        return Snapshot()
    return Snapshot(
        experiments=[_plain(experiment) for experiment in experiments],
        runs=[_run(client, uri, run) for run in _all(client.search_runs, ids, run_view_type=ViewType.ALL)],
        models=[_model(uri, model) for model in _all(client.search_logged_models, experiment_ids=ids)],
        registered=[_registered(client, m) for m in _all(client.search_registered_models) if m.name not in but],
        traces=[_trace(trace) for trace in _all(client.search_traces, locations=ids)],
    )


def _all(search: Callable[..., Any], *words: Any, **told: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*words, **told, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _plain(entity: Any) -> Fields:
    """The public properties of an MLflow entity."""
    return {name: _value(value) for name, value in entity}


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _value(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(part) for part in value]
    return value if isinstance(value, (str, int, float, bytes, type(None))) else _of_object(value)


def _of_object(value: Any) -> Any:
    if hasattr(value, "to_dictionary"):
        return _value(value.to_dictionary())
    if hasattr(type(value), "__iter__"):
        return _plain(value)
    return str(value)


def _run(client: MlflowClient, uri: str, run: Any) -> Fields:
    history = (point for key in run.data.metrics for point in client.get_metric_history(run.info.run_id, key))
    links = ("key", "value", "step", "timestamp", "model_id", "dataset_name", "dataset_digest")
    return {
        **_plain(run.info),
        "params": dict(run.data.params),
        "tags": dict(run.data.tags),
        "latest": dict(run.data.metrics),
        "points": [{name: getattr(point, name, None) for name in links} for point in history],
        "datasets": [_dataset(one) for one in (run.inputs.dataset_inputs if run.inputs else [])],
        "model_inputs": [one.model_id for one in (run.inputs.model_inputs if run.inputs else [])],
        "model_outputs": [one.to_dictionary() for one in (run.outputs.model_outputs if run.outputs else [])],
        "files": _files(run.info.artifact_uri, uri),
    }


def _dataset(one: Any) -> Fields:
    return {**one.dataset.to_dictionary(), "tags": {tag.key: tag.value for tag in one.tags}}


def _model(uri: str, model: Any) -> Fields:
    metrics = [metric.to_dictionary() for metric in model.metrics or []]
    told = {key: _value(value) for key, value in model.to_dictionary().items() if key != "metrics"}
    return {**told, "points": metrics, "files": _files(model.artifact_location, uri)}


def _registered(client: MlflowClient, model: Any) -> Fields:
    versions = _all(client.search_model_versions, f"name = '{model.name}'")
    told = {name: value for name, value in _plain(model).items() if name != "latest_versions"}
    complete = (client.get_model_version(model.name, version.version) for version in versions)
    return {**told, "versions": {str(version.version): _plain(version) for version in complete}}


def _trace(trace: Any) -> Fields:
    spans = [_span(span) for span in trace.data.spans]
    return {**_value(trace.info.to_dict()), "spans": spans}


def _span(span: Any) -> Fields:
    told = ("name", "span_id", "parent_id", "span_type", "start_time_ns", "end_time_ns", "inputs", "outputs")
    fields = {name: _value(getattr(span, name)) for name in told}
    status = {"status": str(span.status.status_code), "status_message": span.status.description}
    events = [{"name": event.name, "attributes": _value(event.attributes)} for event in span.events]
    return {**fields, **status, "events": events, "attributes": _value(dict(span.attributes))}


def _files(location: str, uri: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="oracle-") as folder:
        repository = get_artifact_repository(location, tracking_uri=uri)
        if not repository.list_artifacts(None):
            return {}
        root = Path(repository.download_artifacts("", folder))
        found = (path for path in sorted(root.rglob("*")) if path.is_file())
        return {str(path.relative_to(root)): path.read_bytes() for path in found}
