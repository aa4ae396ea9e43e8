"""What differs between the versions of MLflow that are supported, 3.0 and later, in one place."""

from __future__ import annotations

import importlib.util
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import NOT_IMPLEMENTED
from mlflow.store.tracking.abstract_store import AbstractStore

from mlferry.errors import NeedsServer
from mlferry.plugin.prompts import LINKED_PROMPTS, without_uids

__all__ = ["now_ms", "refuse", "unsupported", "validate_datasets", "validate_model_name", "workspace"]


#: Whether MLflow gives spans to the tracking store (3.4 and later); before that they are a file of the trace.
STORES_SPANS = hasattr(AbstractStore, "log_spans")

#: Whether MLflow begins and ends a trace by two calls (3.0 and 3.1).
TWO_PART_TRACES = "experiment_id" in inspect.signature(AbstractStore.start_trace).parameters

#: Whether MLflow's SQL store is here and keeps traces as the spool's records tell them; ``mlflow-skinny`` has none.
SQL_TRACES = hasattr(AbstractStore, "batch_get_trace_infos") and importlib.util.find_spec("sqlalchemy") is not None


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


def workspace() -> str | None:
    """The workspace that calls are made in; None before MLflow had them, and where none is set."""
    try:
        from mlflow.utils.workspace_context import get_request_workspace
    except ImportError:
        return None
    found = get_request_workspace()
    return str(found) if found else None


def validate_datasets(datasets: Any) -> None:
    """Raises MlflowException or TypeError, as MLflow's SQL store."""
    from mlflow.utils.validation import _validate_dataset_inputs

    if not isinstance(datasets, list):
        raise TypeError(f"Argument 'datasets' should be a list, got '{type(datasets)}'")
    _validate_dataset_inputs(datasets)


def unsupported(store: type, ours: type) -> list[str]:
    """Public methods of an abstract store of MLflow that ``ours`` leaves as they are there: abstract (its metaclass is
    declared in Python 2's way, so they would silently return None) or raising that they are not implemented."""
    missing = []
    for name in dir(store):
        method = getattr(store, name)
        if name.startswith("_") or not inspect.isfunction(method) or getattr(ours, name) is not method:
            continue
        refuses = any("NotImplemented" in word for word in method.__code__.co_names)
        if getattr(method, "__isabstractmethod__", False) or refuses:
            missing.append(name)
    return missing


def refuse(ours: type, store: type) -> type:
    """Have every unsupported method of ``store`` say in one sentence what to do instead."""
    for name in unsupported(store, ours):
        setattr(ours, name, _refusal(name))
    return ours


def _refusal(name: str) -> Any:
    def refused(self: object, *args: object, **kwargs: object) -> None:
        raise MlflowException(str(NeedsServer(name)), NOT_IMPLEMENTED)

    refused.__name__ = name
    refused.__doc__ = f"``{name}`` needs a server; see ``mlferry.errors.NeedsServer``."
    return refused


def validate_model_name(name: str | None) -> None:
    """Raises MlflowException where MLflow refuses a logged model's name; its first versions did not look."""
    try:
        from mlflow.utils.validation import _validate_logged_model_name
    except ImportError:
        return
    _validate_logged_model_name(name)


def init_repository(init: Any, artifact_uri: str, tracking_uri: str | None, registry_uri: str | None) -> None:
    """Initialise MLflow's ArtifactRepository, which learned of the other URIs over time."""
    known = inspect.signature(init).parameters
    given = {"tracking_uri": tracking_uri, "registry_uri": registry_uri}
    init(artifact_uri, **{name: value for name, value in given.items() if name in known})


def init_registry(init: Any, store_uri: str | None, tracking_uri: str | None) -> None:
    """Initialise MLflow's abstract registry store."""
    init(store_uri=store_uri, tracking_uri=tracking_uri)


def parse_model_uri(source: str) -> Any:
    """The parts of a ``models:/`` URI: ``name``, ``version``, ``stage``, ``alias``, ``model_id``."""
    from mlflow.store.artifact.utils.models import _parse_model_uri

    return _parse_model_uri(source)


def version_number(version: Any) -> int:
    """The number of a model version. Raises MlflowException or TypeError; what MLflow's own check answers differs."""
    from mlflow.utils.validation import _validate_model_version

    _validate_model_version(version)
    return int(version)


def already_registered(name: str, known_tags: Any, tags: Any) -> None:
    """Raises MlflowException in the words that tell models and prompts apart."""
    from mlflow.prompt.registry_utils import handle_resource_already_exist_error, has_prompt_tag

    handle_resource_already_exist_error(name, has_prompt_tag(known_tags), has_prompt_tag(tags))


def validate_reserved_alias(alias: str) -> None:
    """Raises MlflowException for an alias that MLflow keeps for itself; its first versions looked elsewhere."""
    try:
        from mlflow.utils.validation import _validate_model_alias_name_reserved
    except ImportError:
        return
    _validate_model_alias_name_reserved(alias)


def otlp_requests(spans: list[Any], room: int, linked: Callable[[str], str]) -> Iterator[bytes]:
    """Spans of one trace as OTLP export requests of at most ``room`` bytes; a span that is larger has one of its own.
    ``linked`` tells how the spool keeps linked prompts."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request, size = ExportTraceServiceRequest(), 0
    resource = _resource_of(spans)
    for span in spans:
        encoded = span.to_otel_proto()
        _link(encoded, linked)
        if size and size + encoded.ByteSize() > room:
            yield request.SerializeToString()
            request, size = ExportTraceServiceRequest(), 0
        if not size:
            of_resource = request.resource_spans.add()
            if resource is not None:
                of_resource.resource.CopyFrom(resource)
            scope = of_resource.scope_spans.add()
        scope.spans.append(encoded)
        size += encoded.ByteSize() + 16
    if size:
        yield request.SerializeToString()


def _resource_of(spans: list[Any]) -> Any:
    """What the spans' process said of itself (OpenTelemetry's resource); a server makes tags of the trace of it."""
    try:
        from mlflow.tracing.utils.otlp import resource_to_otel_proto
    except ImportError:
        return None
    resource = getattr(spans[0]._span, "resource", None) if spans else None
    return None if resource is None else resource_to_otel_proto(resource)


def _link(span: Any, linked: Callable[[str], str]) -> None:
    for attribute in span.attributes:
        if attribute.key == LINKED_PROMPTS and attribute.value.string_value:
            attribute.value.string_value = linked(attribute.value.string_value)


def spans_of(requests: list[bytes]) -> list[Any]:
    """The spans in OTLP export requests; of one that was sent twice the last counts."""
    from mlflow.entities import Span
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found: dict[bytes, Any] = {}
    knows_resources = "resource" in inspect.signature(Span.from_otel_proto).parameters
    for request in requests:
        parsed = ExportTraceServiceRequest.FromString(request)
        for resource in parsed.resource_spans:
            of = {"resource": resource.resource} if knows_resources else {}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    _link(span, without_uids)
                found |= {span.span_id: Span.from_otel_proto(span, **of) for span in scope.spans}
    return sorted(found.values(), key=lambda span: int(span.start_time_ns))


def filter_models(search: Any, models: list[Any], filter_string: str | None, datasets: list[Any] | None) -> list[Any]:
    """Logged models by MLflow's own filter, whose first version knew no datasets."""
    known = inspect.signature(search.filter_logged_models).parameters
    given = (models, filter_string, datasets) if len(known) > 2 else (models, filter_string)
    found: list[Any] = search.filter_logged_models(*given)
    return found
