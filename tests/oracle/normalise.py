"""Two executions of one script made comparable: ids become names of what they mean, times become "during the script".

An id is random, but what it stands for is not: it is replaced wherever it occurs (fields, tags, URIs, the bytes of files) by
a name such as ``<run 1>``, the first run by start. An id that nothing in the store carries stays as it is and is seen as a
difference: that is how an offline id that leaked to the server is found. A time is only forgiven when it lies within the
script's own execution; a time that delivery made up lies outside and is seen.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.oracle.snapshot import Fields, Snapshot

Flat = dict[str, Any]

#: Names that MLflow makes up for runs and logged models without one: "bold-gull-512".
_MADE_UP = re.compile(r"\b[a-z]+-[a-z]+-\d{1,4}\b")
_MODEL_CREATED = re.compile(rb"utc_time_created: '?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?'?")
_HISTORY_CREATED = re.compile(r'"utc_time_created": ?"[^"]*"')
_EXPERIMENT = re.compile(r"(mlflow-artifacts:/|spool:[^\s\"']*?/artifacts/)(\d+)(?=[/\"']|$)")
#: Fields that hold the id of an experiment: it is a small number on a server, so it cannot be looked for elsewhere.
_EXPERIMENT_IDS = ("/experiment_id", "/mlflow.experimentId")
#: An image with a key is kept under a name with a UUID.
_IMAGE = re.compile(r"(\+timestamp\+\d+\+)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_ID = re.compile(rb"(?:m-|tr-|a-)?[0-9a-f]{32}|0x[0-9a-f]{16}|\b[0-9a-f]{16}\b")


@dataclass(frozen=True, slots=True)
class Window:
    """When a script was executed, Unix milliseconds."""

    start: int
    end: int

    def time(self, value: Any) -> Any:
        """``"<during the script>"`` for a time in milliseconds, nanoseconds or RFC 3339 within it; else the value itself."""
        if isinstance(value, str) and _RFC3339.fullmatch(value):
            moment = datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp() * 1000
            return "<during the script>" if self.start - 1 <= moment <= self.end else value
        if isinstance(value, int) and not isinstance(value, bool):
            for unit in (1, 1_000_000):
                if self.start <= value // unit <= self.end:
                    return "<during the script>"
        return value


def flat(snapshot: Snapshot, window: Window, *, server: str = "") -> Flat:
    """Every leaf by its path, such as ``runs/1/tags/mlflow.user``, in terms that two executions share."""
    ordered = _ordered(snapshot)
    for trace in ordered["traces"]:
        trace.get("assessments", []).sort(key=lambda one: (one["assessment_name"], one["create_time"]))
    names = _names(ordered)
    for run in ordered["runs"]:  # the SQL store gives them back in no order
        run["model_inputs"].sort(key=lambda model_id: names.get(model_id.encode(), model_id))
        run["model_outputs"].sort(key=lambda one: names.get(one["model_id"].encode(), one["model_id"]))
    leaves = (leaf for kind, found in ordered.items() for leaf in _entities(kind, found))
    known = {one["experiment_id"]: f"<experiment {one['name']}>" for one in ordered["experiments"]}
    return {
        _text(path, names, server): known.get(value, value)
        if path.endswith(_EXPERIMENT_IDS)
        else _leaf(value, names, window, server)
        for path, value in leaves
    }


def _ordered(snapshot: Snapshot) -> dict[str, list[Fields]]:
    """Each kind in an order that does not depend on ids: by time, then by content with all ids masked."""
    times = {"runs": "start_time", "models": "creation_timestamp_ms", "traces": "request_time"}
    ordered = {}
    for kind in ("experiments", "runs", "models", "registered", "traces"):
        ranked = [
            (str(entity.get(times.get(kind, "name"))), _masked(entity), entity) for entity in getattr(snapshot, kind)
        ]
        if kind == "models":  # the server's clock made their times, and delivery need not follow the order of creation
            started = {run["run_id"]: f"{number:06}" for number, run in enumerate(ordered["runs"])}
            ranked = [(masked, started.get(model["source_run_id"], "") + time, model) for time, masked, model in ranked]
        ordered[kind] = [entity for _, _, entity in sorted(ranked, key=lambda one: one[:2])]
    return ordered


def _masked(entity: Fields) -> str:
    kept = {
        name: entity[name] for name in ("name", "run_name", "params", "latest", "files", "model_type") if name in entity
    }
    text = json.dumps(kept, sort_keys=True, default=lambda value: value.decode("latin-1"))
    return _MADE_UP.sub(
        "", re.sub(r"\d{10,}|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+", "", _ID.sub(b"", text.encode()).decode())
    )


def _names(ordered: dict[str, list[Fields]]) -> dict[bytes, str]:
    names: dict[bytes, str] = {}
    for kind, key in (("runs", "run_id"), ("models", "model_id"), ("traces", "trace_id")):
        for number, entity in enumerate(ordered[kind], 1):
            names[entity[key].encode()] = f"<{kind.removesuffix('s')} {number}>"
    for trace in ordered["traces"]:
        for number, one in enumerate(trace.get("assessments", []), 1):
            names[one["assessment_id"].encode()] = f"<assessment {number} of {names[trace['trace_id'].encode()]}>"
        bare = trace["trace_id"].removeprefix("tr-").encode()
        names[bare] = names[trace["trace_id"].encode()]
        for number, span in enumerate(
            sorted(trace["spans"], key=lambda span: (span["start_time_ns"], span["name"])), 1
        ):
            names[span["span_id"].encode()] = f"<span {number}>"
    return names


def _entities(kind: str, found: list[Fields]) -> Iterator[tuple[str, Any]]:
    yield f"{kind}/count", len(found)
    for number, entity in enumerate(found, 1):
        place = f"{kind}/{entity['name'] if kind in ('experiments', 'registered') else number}"
        entity = {name: value for name, value in entity.items() if not (kind == "runs" and name == "run_uuid")}
        yield from _leaves(place, entity)


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if place.endswith("/points"):
        yield from _points(place, value)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(f"{place}/{name}", part)
    elif isinstance(value, list):
        yield f"{place}/count", len(value)
        for number, part in enumerate(value, 1):
            yield from _leaves(f"{place}/{number}", part)
    else:
        yield place, "<some time>" if place.endswith("/execution_duration_ms") and value > 0 else value


def _points(place: str, points: list[Fields]) -> Iterator[tuple[str, Any]]:
    """Equal points of one millisecond are one point to the server, and the millisecond is chance: so the same value at the
    same step counts once."""
    seen: Counter[str] = Counter()
    once = {(one["key"], one["step"], repr(one["value"])): one for one in reversed(points)}
    for point in sorted(once.values(), key=lambda one: (one["key"], one["step"], one["timestamp"], repr(one["value"]))):
        at = f"{place}/{point['key']}@{point['step']}"
        seen[at] += 1
        yield from _leaves(
            f"{at}#{seen[at]}", {name: part for name, part in point.items() if name not in ("key", "step")}
        )


def _leaf(value: Any, names: dict[bytes, str], window: Window, server: str) -> Any:
    if isinstance(value, bytes):
        return _bytes(value, names)
    if isinstance(value, str):
        return _text(window.time(value), names, server)
    return repr(value) if isinstance(value, float) else window.time(value)


def _text(text: str, names: dict[bytes, str], server: str) -> str:
    text = text.replace(server, "<server>") if server else text
    text = _IMAGE.sub(r"\1<uuid>", text)
    text = _HISTORY_CREATED.sub('"utc_time_created": "<time>"', _EXPERIMENT.sub(r"\1<experiment>", text))
    return _MADE_UP.sub(
        "<made-up name>", _named(text.encode("utf-8", "surrogatepass"), names).decode("utf-8", "replace")
    )


def _bytes(data: bytes, names: dict[bytes, str]) -> bytes:
    created = _MODEL_CREATED.sub(b"utc_time_created: <time>", _named(data, names))
    return re.sub(rb"(mlflow-artifacts:/)\d+(?=/)", rb"\1<experiment>", created)


def _named(data: bytes, names: dict[bytes, str]) -> bytes:
    return _ID.sub(lambda found: names.get(found[0], found[0].decode()).encode(), data)
