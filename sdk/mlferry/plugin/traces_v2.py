"""Traces as MLflow 3.0 and 3.1 log them: begun and ended by two calls, under an id that the store makes, their spans a file.

What is kept is what later versions tell of a whole trace, said once more when it ends; so delivery and reading know no
difference.
"""

from __future__ import annotations

import uuid
from typing import Any

from mlflow.entities import TraceInfo

from mlferry.plugin.traces import Traces

__all__ = ["log_in_two_parts"]


def start_trace(
    self: Traces, experiment_id: str, timestamp_ms: int, request_metadata: dict[str, str], tags: dict[str, str]
) -> Any:
    """A trace begins."""
    from mlflow.entities.trace_info_v2 import TraceInfoV2
    from mlflow.entities.trace_status import TraceStatus

    parts = (uuid.uuid4().hex, experiment_id, timestamp_ms, None, TraceStatus.IN_PROGRESS, request_metadata, tags)
    begun = TraceInfoV2(*parts)
    begun.tags = self.log_trace_info(begun.to_v3()).tags
    return begun


def end_trace(
    self: Traces,
    request_id: str,
    timestamp_ms: int,
    status: Any,
    request_metadata: dict[str, str],
    tags: dict[str, str],
) -> TraceInfo:
    """A trace is over. Raises MlflowException: the spool has no such trace."""
    info = self.get_trace_info(request_id)
    info.execution_duration, info.state = timestamp_ms - info.request_time, status.to_state()
    info.trace_metadata = {**info.trace_metadata, **request_metadata}
    info.tags = {**info.tags, **tags}
    return self.log_trace_info(info)


def get_trace_info(self: Traces, request_id: str, should_query_v3: bool = False) -> TraceInfo:
    """A trace, in the form of later versions, which MLflow's client understands."""
    return Traces.get_trace_info(self, request_id)


def set_trace_tag(self: Traces, request_id: str, key: str, value: str) -> None:
    Traces.set_trace_tag(self, request_id, key, value)


def delete_trace_tag(self: Traces, request_id: str, key: str) -> None:
    Traces.delete_trace_tag(self, request_id, key)


def _delete_traces(
    self: Traces,
    experiment_id: str,
    max_timestamp_millis: int | None = None,
    max_traces: int | None = None,
    request_ids: list[str] | None = None,
) -> int:
    return Traces._delete_traces(self, experiment_id, max_timestamp_millis, max_traces, request_ids)


def log_in_two_parts(ours: type[Traces]) -> None:
    """Have a tracking store take traces as these versions log them."""
    for method in (start_trace, end_trace, get_trace_info, set_trace_tag, delete_trace_tag, _delete_traces):
        setattr(ours, method.__name__, method)
