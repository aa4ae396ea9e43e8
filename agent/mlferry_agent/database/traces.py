"""Traces with their spans and assessments, by MLflow's own store: their ids are the client's own and stay.

The logs of all writers are merged by time, a window of each at a time, since spans may be many. What was told of a trace
before stands in a tag of the trace, as a place in each log that speaks of it. A trace that the spool deletes and the
database does not have is passed over; its assessments carry the id that they had offline, as in delivery.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlferry_agent import encoding
from mlferry_agent.database.files import Source
from mlferry_agent.database.marks import MARK_TAG, RunMark
from mlferry_agent.database.reading import WriterLog
from mlferry_agent.database.runs import Surroundings
from mlferry_agent.discovery import STORE
from mlferry_agent.errors import NoPlace, RecordRefused, RunParked, UndeliverableName, Unencodable
from mlferry_agent.otlp import change_attributes
from mlferry_agent.rewriting import LINKED_PROMPTS, rewrite_prompts, rewrite_tag
from mlferry_agent.tracing import ASSESSMENT_ID_KEY
from mlferry_spool.blobs import Blob
from mlferry_spool.errors import SpoolError
from mlferry_spool.fold_store import StoreState
from mlferry_spool.records import Artifact, Record, Spans, Trace
from mlferry_spool.tailer import Cursor

__all__ = ["Traces"]

_ARTIFACTS, _EXPERIMENT_ID = "mlflow.artifactLocation", "mlflow.experimentId"

_REFUSALS = (RecordRefused, RunParked, Unencodable, UndeliverableName, NoPlace, SpoolError, OSError)
_MISSHAPEN = (TypeError, ValueError, KeyError, AttributeError, RecursionError)

Merged = tuple[int, str, int, WriterLog, Record]


class Traces:
    """Tells a database's store the traces of the spool."""

    def __init__(self, around: Surroundings, store: StoreState) -> None:
        self._around, self._state, self._places = around, store, around.places
        self._store, self._report = around.database.store, around.report
        self._marks: dict[str, RunMark | None] = {}
        self._told: dict[str, dict[str, Cursor]] = {}
        self._failed: set[str] = set()

    def carry(self, logs: Iterable[WriterLog]) -> None:
        """Bring every trace to what the spool has of it; what cannot be is set aside."""
        if not self._state.traces:
            return
        for _, _, offset, log, record in heapq.merge(*map(_records, logs), key=lambda one: one[:3]):
            trace_id = _trace_of(record)
            mark = self._mark(trace_id)
            if mark is None or offset < mark.cursor(log.name).offset:
                self._report.there["trace records"] += 1
            elif self._try(trace_id, log, record):
                self._report.rows["trace records"] += 1
            self._told.setdefault(trace_id, {})[log.name] = Cursor(offset + 1)
        for trace_id, places in self._told.items():
            self._keep_mark(trace_id, places)

    def _mark(self, trace_id: str) -> RunMark | None:
        """What an earlier import told of a trace; None for one that is nothing any more, there and here."""
        if trace_id not in self._marks:
            tags = self._tags(trace_id)
            state = self._state.traces.get(trace_id)
            is_gone = (
                tags is None and state is not None and bool(state.changes) and state.changes[-1].operation == "delete"
            )
            self._marks[trace_id] = None if is_gone else RunMark.decoded((tags or {}).get(MARK_TAG))
        return self._marks[trace_id]

    def _tags(self, trace_id: str) -> Mapping[str, str] | None:
        try:
            found: Mapping[str, str] = self._store.get_trace_info(trace_id).tags
        except Exception as error:
            if type(error).__name__ != "MlflowException":
                raise
            return None
        return found

    def _keep_mark(self, trace_id: str, places: Mapping[str, Cursor]) -> None:
        told = RunMark(places).encoded()
        before = self._marks.get(trace_id)
        if before is None or trace_id in self._failed or told is None or told == before.encoded():
            return
        if self._tags(trace_id) is not None:
            self._store.set_trace_tag(trace_id, MARK_TAG, told)

    def _try(self, trace_id: str, log: WriterLog, record: Record) -> bool:
        try:
            self._tell(log, record)
        except _REFUSALS as error:
            reason = getattr(error, "reason", None) or str(error)
        except _MISSHAPEN as error:
            reason = f"its details are not those of a trace ({type(error).__name__}: {error!s:.200})"
        except Exception as error:
            if type(error).__name__ not in ("MlflowException", "ParseError", "DecodeError"):
                raise
            if _is_gone(record, error):
                return True
            reason = f"{error!s:.300}"
        else:
            return True
        self._failed.add(trace_id)
        self._report.set_apart(STORE, "trace", trace_id, reason)
        return False

    def _tell(self, log: WriterLog, record: Record) -> None:
        if isinstance(record, Spans):
            self._spans(record)
        elif isinstance(record, Trace):
            self._change(record)
        elif isinstance(record, Artifact):
            self._file(log, record)

    def _experiment(self, trace_id: str) -> tuple[str, str | None]:
        """The database's id of a trace's experiment, and the spool's."""
        state = self._state.traces.get(trace_id)
        for change in state.changes if state is not None else ():
            if change.offline_experiment_id is not None or change.experiment_name is not None:
                place = self._places.experiment(change.offline_experiment_id, change.experiment_name)
                return str(place.experiment_id), change.offline_experiment_id
        return str(self._places.experiment(None, None).experiment_id), None

    def _spans(self, record: Spans) -> None:
        from mlflow.entities.span import Span
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        experiment_id, offline_id = self._experiment(record.trace_id)

        def named(name: str, text: str) -> str | None:
            if name == _EXPERIMENT_ID and text == offline_id:
                return experiment_id
            return rewrite_prompts(text, self._places.ids.version) if name == LINKED_PROMPTS else None

        request = ExportTraceServiceRequest()
        request.ParseFromString(change_attributes(record.otlp, named))
        spans = [
            Span.from_otel_proto(span, resource=of.resource) if _takes_resource() else Span.from_otel_proto(span)
            for of in request.resource_spans
            for scope in of.scope_spans
            for span in scope.spans
        ]
        if any(span.trace_id != record.trace_id for span in spans):
            raise RecordRefused("its spans are another trace's")
        self._store.log_spans(experiment_id, spans)

    def _change(self, record: Trace) -> None:
        info, trace_id = record.info, record.trace_id
        match record.operation:
            case None:
                self._store.start_trace(self._info(record))
            case "locate":
                self._experiment(trace_id)
            case "set_tag":
                for key, text in self._texts({str(info.get("key")): info.get("value")}).items():
                    self._store.set_trace_tag(trace_id, key, text)
            case "delete_tag":
                self._store.delete_trace_tag(trace_id, str(info.get("key")))
            case "link":
                self._store.link_traces_to_run([trace_id], self._places.run(str(info.get("run_id"))))
            case "link_prompts":
                self._link_prompts(record)
            case "assess":
                self._assess(record)
            case "delete":
                self._store.delete_traces(self._experiment(trace_id)[0], trace_ids=[trace_id])
            case other:
                raise RecordRefused(f"{other!r} is no operation on a trace")

    def _info(self, record: Trace) -> Any:
        from google.protobuf.json_format import ParseDict
        from mlflow.entities.trace_info import TraceInfo
        from mlflow.protos.service_pb2 import TraceInfoV3

        place = {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": self._experiment(record.trace_id)[0]},
        }
        info = {**record.info, "trace_id": record.trace_id, "trace_location": place}
        info.pop("assessments", None)
        milliseconds = info.pop("execution_duration_ms", None)
        if isinstance(milliseconds, int):
            info["execution_duration"] = f"{milliseconds // 1000}.{milliseconds % 1000:03}s"
        for part in ("tags", "trace_metadata"):
            info[part] = self._texts(dict(info.get(part) or {}))
        return TraceInfo.from_proto(ParseDict(info, TraceInfoV3(), ignore_unknown_fields=True))

    def _texts(self, texts: Mapping[str, Any]) -> dict[str, str]:
        told = {
            key: "" if value is None else str(value)
            for key, value in texts.items()
            if key not in (_ARTIFACTS, MARK_TAG)
        }
        return {key: encoding.text(rewrite_tag(key, value, self._places.ids), key) for key, value in told.items()}

    def _link_prompts(self, record: Trace) -> None:
        from mlflow.entities.model_registry import PromptVersion

        def number(told: Mapping[str, Any]) -> int:
            found = self._places.ids.version(str(told["uid"])) if told.get("uid") else str(told["version"])
            if found is None:
                raise RecordRefused("the version that this is about is not in the database")
            return int(found)

        version: Any = PromptVersion
        used = [version(str(told["name"]), number(told), template="") for told in record.info["prompts"]]
        self._store.link_prompts_to_trace(record.trace_id, used)

    def _assess(self, record: Trace) -> None:
        """An assessment is new, or in the place of the one that it was before."""
        from google.protobuf.json_format import ParseDict
        from mlflow.entities.assessment import Assessment
        from mlflow.protos.assessments_pb2 import Assessment as ProtoAssessment

        told = dict(record.info.get("assessment") or {})
        offline_id = str(told.pop("assessment_id", ""))
        there = self._store.get_trace_info(record.trace_id).assessments
        known = _ours(there, offline_id)
        if record.info.get("deleted"):
            if known is not None:
                self._store.delete_assessment(record.trace_id, known)
            return
        metadata = {str(key): str(value) for key, value in dict(told.get("metadata") or {}).items()}
        told |= {"metadata": {**metadata, ASSESSMENT_ID_KEY: offline_id}, "trace_id": record.trace_id}
        if told.get("overrides"):
            told["overrides"] = _ours(there, str(told["overrides"])) or told["overrides"]
        made = Assessment.from_proto(ParseDict(told, ProtoAssessment(), ignore_unknown_fields=True))
        made.trace_id = record.trace_id
        if known is not None and any(one.overrides == known for one in there):
            parts = {"expectation": made.expectation, "feedback": made.feedback}
            parts |= {"name": made.name, "rationale": made.rationale, "metadata": made.metadata}
            told_of = {name: part for name, part in parts.items() if part is not None}
            self._store.update_assessment(record.trace_id, known, **told_of)
            return
        if known is not None:
            self._store.delete_assessment(record.trace_id, known)
        self._store.create_assessment(made)

    def _file(self, log: WriterLog, record: Artifact) -> None:
        """A file of a trace, ``traces/<trace id>/...``: its spans, as MLflow kept them before 3.4."""
        _, trace_id, path = f"{record.path}//".split("/", 2)
        location = str(self._store.get_trace_info(trace_id).tags.get(_ARTIFACTS, ""))
        source = Source((log.directory.parent,), Blob(record.sha256, record.size))
        self._around.artifacts.put(location, path.rstrip("/"), source, self._places.ids)


def _records(log: WriterLog) -> Iterator[Merged]:
    for offset, record in log.read():
        if isinstance(record, (Trace, Spans, Artifact)):
            yield record.timestamp, log.name, offset, log, record


def _trace_of(record: Record) -> str:
    return f"{record.path}//".split("/", 2)[1] if isinstance(record, Artifact) else str(getattr(record, "trace_id", ""))


def _ours(there: Iterable[Any], offline_id: str) -> str | None:
    """The database's id of an assessment of ours."""
    of_ours = (one for one in there if (one.metadata or {}).get(ASSESSMENT_ID_KEY) == offline_id)
    return next((str(one.assessment_id) for one in of_ours), None)


def _is_gone(record: Record, error: Exception) -> bool:
    """Whether something that should be deleted is not there any more."""
    deletes = isinstance(record, Trace) and record.operation in ("delete", "delete_tag")
    return deletes and str(getattr(error, "error_code", "")) == "RESOURCE_DOES_NOT_EXIST"


def _takes_resource() -> bool:
    """Whether this MLflow wants to know where spans came from; older ones do not."""
    import inspect

    from mlflow.entities.span import Span

    return "resource" in inspect.signature(Span.from_otel_proto).parameters
