"""The requests about experiments, logged models, registered models and traces: one builder an endpoint, as ``requests``.

Endpoints and bodies: MLflow's service.proto and model_registry_service.proto. Which of them may be repeated and which makes
another entity each time is told by ``models``, ``registrations`` and ``tracing``, which use them.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from mlferry_agent import encoding
from mlferry_agent.encoding import Entity
from mlferry_agent.errors import Unencodable
from mlferry_agent.requests import API, SPANS, Request

__all__ = [
    "MODEL_STATUS",
    "assess",
    "create_model",
    "create_version",
    "delete_model",
    "delete_model_tag",
    "delete_traces",
    "experiment",
    "finalize_model",
    "get_model",
    "get_registered_model",
    "link_prompts",
    "link_traces",
    "log_model_inputs",
    "log_model_params",
    "log_outputs",
    "registry",
    "search_models_by_tag",
    "search_versions_by_tag",
    "set_model_tags",
    "start_trace",
    "trace",
    "upload_spans",
]

_MODELS = API + "logged-models"
_TRACES = "/api/3.0/mlflow/traces"

#: The words of LoggedModelStatus as REST has them.
MODEL_STATUS = {
    "PENDING": "LOGGED_MODEL_PENDING",
    "READY": "LOGGED_MODEL_READY",
    "FAILED": "LOGGED_MODEL_UPLOAD_FAILED",
    "UPLOAD_FAILED": "LOGGED_MODEL_UPLOAD_FAILED",
}


def _json(method: str, path: str, body: Entity, workspace: str | None) -> Request:
    return Request(method, path, body=encoding.dumps(body), workspace=workspace)


def _pairs(texts: Mapping[str, str]) -> list[Entity]:
    return [{"key": encoding.text(key, "key"), "value": encoding.text(value, "value")} for key, value in texts.items()]


# -- logged models --------------------------------------------------------------------------------------------------------


def create_model(
    experiment_id: str,
    name: str | None,
    model_type: str | None,
    source_run_id: str | None,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    workspace: str | None = None,
) -> Request:
    """A new logged model, and another one whenever it is repeated. At most 100 params: more by ``log_model_params``."""
    body: Entity = {"experiment_id": experiment_id, "params": _pairs(params), "tags": _pairs(tags)}
    for key, value in (("name", name), ("model_type", model_type), ("source_run_id", source_run_id)):
        if value is not None:
            body[key] = encoding.text(value, key)
    return _json("POST", _MODELS, body, workspace)


def search_models_by_tag(experiment_id: str, key: str, value: str, workspace: str | None = None) -> Request:
    """Logged models of an experiment that carry a tag. Raises Unencodable: quotes in it."""
    _check_quotes(key + value)
    body: Entity = {"experiment_ids": [experiment_id], "filter": f"tags.`{key}` = '{value}'", "max_results": 50}
    return _json("POST", f"{_MODELS}/search", body, workspace)


def get_model(model_id: str, workspace: str | None = None) -> Request:
    """A logged model; GONE where it is deleted."""
    return Request("GET", f"{_MODELS}/{_part(model_id)}", workspace=workspace)


def finalize_model(model_id: str, status: str, workspace: str | None = None) -> Request:
    """Set a model's status; repeatable."""
    if status not in MODEL_STATUS:
        raise Unencodable(f"{status!r} is no status of a logged model")
    body: Entity = {"model_id": model_id, "status": MODEL_STATUS[status]}
    return _json("PATCH", f"{_MODELS}/{_part(model_id)}", body, workspace)


def log_model_params(model_id: str, params: Mapping[str, str], workspace: str | None = None) -> Request:
    """Params of a model; 400 when one is there already."""
    return _json(
        "POST", f"{_MODELS}/{_part(model_id)}/params", {"model_id": model_id, "params": _pairs(params)}, workspace
    )


def set_model_tags(model_id: str, tags: Mapping[str, str], workspace: str | None = None) -> Request:
    """Tags of a model; the last value counts."""
    return _json("PATCH", f"{_MODELS}/{_part(model_id)}/tags", {"model_id": model_id, "tags": _pairs(tags)}, workspace)


def delete_model_tag(model_id: str, key: str, workspace: str | None = None) -> Request:
    """Take a tag off a model."""
    return Request("DELETE", f"{_MODELS}/{_part(model_id)}/tags/{_part(key)}", workspace=workspace)


def delete_model(model_id: str, workspace: str | None = None) -> Request:
    """Mark a model as deleted."""
    return Request("DELETE", f"{_MODELS}/{_part(model_id)}", workspace=workspace)


def log_outputs(run_id: str, outputs: Sequence[tuple[str, int]], workspace: str | None = None) -> Request:
    """Models (id, step) that a run put out; 400 when one is there already."""
    models = [{"model_id": model_id, "step": encoding.milliseconds(step, "step")} for model_id, step in outputs]
    return _json("POST", API + "runs/outputs", {"run_id": run_id, "models": models}, workspace)


def log_model_inputs(run_id: str, model_ids: Sequence[str], workspace: str | None = None) -> Request:
    """Models that a run used; repeatable."""
    body: Entity = {"run_id": run_id, "models": [{"model_id": model_id} for model_id in model_ids]}
    return _json("POST", API + "runs/log-inputs", body, workspace)


# -- experiments and the registry -----------------------------------------------------------------------------------------


def experiment(operation: str, body: Entity, workspace: str | None = None) -> Request:
    """``experiments/<operation>``: update, delete, restore, set-experiment-tag, delete-experiment-tag."""
    return _json("POST", API + f"experiments/{operation}", body, workspace)


def registry(method: str, operation: str, body: Entity, workspace: str | None = None) -> Request:
    """``registered-models/...`` and ``model-versions/...``."""
    return _json(method, API + operation, body, workspace)


def create_version(
    name: str, source: str, details: Mapping[str, Any], tags: Mapping[str, str], workspace: str | None = None
) -> Request:
    """A new version of a registered model, and another one whenever it is repeated."""
    body: Entity = {"name": name, "source": encoding.text(source, "source"), "tags": _pairs(tags)}
    for key in ("run_id", "run_link", "description", "model_id"):
        if details.get(key):
            body[key] = encoding.text(details[key], key)
    return registry("POST", "model-versions/create", body, workspace)


def search_versions_by_tag(name: str, key: str, value: str, workspace: str | None = None) -> Request:
    """Versions of a registered model that carry a tag. Raises Unencodable: quotes in it."""
    _check_quotes(name + key + value)
    query = (("filter", f"name = '{name}' and tags.`{key}` = '{value}'"), ("max_results", "50"))
    return Request("GET", API + "model-versions/search", query, workspace=workspace)


def get_registered_model(name: str, workspace: str | None = None) -> Request:
    """A registered model; GONE where there is none."""
    return Request("GET", API + "registered-models/get", (("name", name),), workspace=workspace)


# -- traces ---------------------------------------------------------------------------------------------------------------


def start_trace(info: Entity, workspace: str | None = None) -> Request:
    """A trace's information; repeatable, since its id is the client's."""
    return _json("POST", _TRACES, {"trace": {"trace_info": info}}, workspace)


def upload_spans(otlp: bytes, experiment_id: str, workspace: str | None = None) -> Request:
    """Spans as an OTLP export request; repeatable."""
    headers = (("content-type", "application/x-protobuf"), ("x-mlflow-experiment-id", experiment_id))
    return Request("POST", SPANS, body=otlp, workspace=workspace, headers=headers)


def assess(trace_id: str, assessment: Entity, workspace: str | None = None) -> Request:
    """A new assessment of a trace, and another one whenever it is repeated."""
    return _json("POST", f"{_TRACES}/{_part(trace_id)}/assessments", {"assessment": assessment}, workspace)


def trace(method: str, path: str, body: Entity | None = None, workspace: str | None = None) -> Request:
    """Any other request about traces, below ``/api/3.0/mlflow/traces``; ``path`` is encoded."""
    encoded = None if body is None else encoding.dumps(body)
    return Request(method, f"{_TRACES}{path}", body=encoded, workspace=workspace)


def link_traces(body: Entity, workspace: str | None = None) -> Request:
    """Link traces (``trace_ids``) to a run (``run_id``); repeatable."""
    return _json("POST", API + "traces/link-to-run", body, workspace)


def link_prompts(body: Entity, workspace: str | None = None) -> Request:
    """Link prompt versions (``prompt_versions``) to a trace (``trace_id``); repeatable."""
    return _json("POST", API + "traces/link-prompts", body, workspace)


def delete_traces(body: Entity, workspace: str | None = None) -> Request:
    """Delete traces (``request_ids``) of an experiment; those that are gone do not count."""
    return _json("POST", API + "traces/delete-traces", body, workspace)


def _part(text: str) -> str:
    return urllib.parse.quote(encoding.text(text, "id"), safe="")


def _check_quotes(text: str) -> None:
    if set("`'\"\\") & set(text):
        raise Unencodable("quotes have no escape in MLflow's filters")
