"""Traces of an MLflow database -> a file, a JSON object a line; by a process of its own, the one module that needs MLflow.

How MLflow keeps a trace changes from release to release (parts of its metadata have become columns, spans have moved from
files into the database), so it is read by MLflow's own store, of the release that has just migrated the database. The agent
starts this as a command and reads the file, and never imports it.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["main"]

_PAGE, _AT_ONCE = 500, 50

#: Bytes of spans in one request: a record holds 1 MiB.
_ROOM = 900_000

_LOCATION = "mlflow.trace.spansLocation"


def main(database: str, out: str) -> None:
    """Write every trace of the experiments that are in use."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{database}", str(Path(database).parent / "no-artifacts"))
    with Path(out).open("x", encoding="ascii") as file:
        for experiment in _pages(store.search_experiments):
            infos = list(_pages(store.search_traces, locations=[experiment.experiment_id]))
            for start in range(0, len(infos), _AT_ONCE):
                for told in _told(store, infos[start : start + _AT_ONCE], experiment.name):
                    file.write(json.dumps(told) + "\n")


def _pages(search: Any, **what: Any) -> Iterator[Any]:
    token = None
    while True:
        found = search(**what, max_results=_PAGE, page_token=token)
        page, token = found if isinstance(found, tuple) else (found, found.token)
        yield from page
        if not token:
            return


def _told(store: Any, infos: list[Any], experiment: str) -> Iterator[dict[str, Any]]:
    in_store = [info.trace_id for info in infos if (info.tags or {}).get(_LOCATION) == "TRACKING_STORE"]
    spans = {trace.info.trace_id: trace.data.spans for trace in store.batch_get_traces(in_store)} if in_store else {}
    for info in infos:
        plain = info.to_dict()
        yield {
            "trace_id": info.trace_id,
            "experiment": experiment,
            "created": int(info.request_time),
            "assessments": plain.pop("assessments", None) or [],
            "info": plain,
            "spans": [b64encode(request).decode() for request in _requests(spans.get(info.trace_id, []))],
        }


def _requests(spans: list[Any]) -> Iterator[bytes]:
    """Spans as OTLP export requests; a span that is larger than a record has one of its own, and is refused there."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request, size = ExportTraceServiceRequest(), 0
    for span in spans:
        encoded = span.to_otel_proto()
        if size and size + encoded.ByteSize() > _ROOM:
            yield request.SerializeToString()
            request, size = ExportTraceServiceRequest(), 0
        if not size:
            scope = request.resource_spans.add().scope_spans.add()
        scope.spans.append(encoded)
        size += encoded.ByteSize() + 16
    if size:
        yield request.SerializeToString()


if __name__ == "__main__":
    main(*sys.argv[1:])
