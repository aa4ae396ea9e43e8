"""Traces on a spool: what ``@mlflow.trace`` logs is kept in the store's log, in the form in which a server takes it.

Ids of traces are made by MLflow's client and stay. Spans are OTLP requests, sent as they are; a trace's other facts are
MLflow's ``TraceInfo`` as a dictionary, and each later change is a record. The tag ``mlflow.trace.spansLocation`` tells
MLflow's exporter that the spans are in the store, so that it writes no artifact.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

from mlflow.entities import Span, Trace, TraceData, TraceInfo
from mlflow.entities.assessment import Assessment
from mlflow.entities.trace_location import TraceLocation
from mlflow.entities.trace_state import TraceState
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.utils.search_utils import SearchTraceUtils
from mlflow.utils.validation import _validate_trace_tag

from mlferry.plugin import uri, versions
from mlferry.plugin.entities import shown_tags
from mlferry.plugin.models import ModelWrites
from mlferry.plugin.prompts import LINKED_PROMPTS, with_uids
from mlferry.plugin.runs import check_active
from mlferry.plugin.search import check_max_results, no_such
from mlferry_spool import records
from mlferry_spool.fold_store import TraceState as Folded
from mlferry_spool.limits import MAX_PAYLOAD_BYTES

__all__ = ["Traces", "assessed", "plain"]

_SPANS_LOCATION, _IN_STORE = "mlflow.trace.spansLocation", "TRACKING_STORE"
_ARTIFACTS = "mlflow.artifactLocation"
_MODEL_ID = "mlflow.modelId"

#: Bytes of spans in one record, its own fields left out.
_ROOM = MAX_PAYLOAD_BYTES - 4096


class Traces(ModelWrites):
    """The tracking store's methods about traces."""

    # -- writing -------------------------------------------------------------------------------------------------------

    def start_trace(self, trace_info: TraceInfo) -> TraceInfo:
        return self.log_trace_info(trace_info)

    def log_trace_info(self, trace_info: TraceInfo) -> TraceInfo:
        """Keep what is known of a trace; of several times the last counts."""
        experiment = self._experiment(trace_info.experiment_id)
        check_active("experiment", experiment.experiment_id, experiment.lifecycle == "deleted")
        info = plain(trace_info.to_dict())
        info["tags"] = {key: self._text(key, value) for key, value in (info.get("tags") or {}).items()}
        info.pop("assessments", None)
        self._change(trace_info.trace_id, None, info, experiment.name, experiment.experiment_id)
        for assessment in trace_info.assessments:  # those made while it was traced; each has a way of its own from here
            assessment.trace_id = trace_info.trace_id
            self._assess(assessment)
        return self._info(self._trace(trace_info.trace_id))

    def start_trace_v3(self, trace: Trace) -> TraceInfo:
        """``start_trace`` as MLflow before 3.2 calls it."""
        return self.start_trace(trace.info)

    def log_spans(self, location: str, spans: list[Span], tracking_uri: str | None = None) -> list[Span]:
        by_trace: dict[str, list[Span]] = {}
        for span in spans:
            by_trace.setdefault(span.trace_id, []).append(span)
        for trace_id, of_trace in by_trace.items():
            if trace_id not in self.catalogue.store().traces:
                experiment = self._experiment(location)
                self._change(trace_id, "locate", {}, experiment.name, experiment.experiment_id)
            for request in versions.otlp_requests(of_trace, _ROOM, self._with_uids):
                self.journal.put(None, records.Spans(versions.now_ms(), trace_id, request))
        return spans

    async def log_spans_async(self, location: str, spans: list[Span]) -> list[Span]:
        return self.log_spans(location, spans)

    def set_trace_tag(self, trace_id: str, key: str, value: str) -> None:
        key, value = _validate_trace_tag(key, value)
        self._trace(trace_id)
        self._change(trace_id, "set_tag", {"key": key, "value": self._text(key, value)})

    def _text(self, key: str, value: Any) -> str | None:
        """The value of a tag as the spool keeps it."""
        text = None if value is None else str(value)
        return self._with_uids(text) if key == LINKED_PROMPTS and text is not None else text

    def _with_uids(self, linked: str) -> str:
        return with_uids(linked, self.journal.registry)

    def delete_trace_tag(self, trace_id: str, key: str) -> None:
        folded = self.catalogue.store().traces.get(trace_id)
        if folded is None or not _is_there(folded) or key not in self._info(folded).tags:
            raise no_such(f"No trace tag with key '{key}' for trace with ID '{trace_id}'")
        self._change(trace_id, "delete_tag", {"key": key})

    def _delete_traces(
        self,
        experiment_id: str,
        max_timestamp_millis: int | None = None,
        max_traces: int | None = None,
        trace_ids: list[str] | None = None,
    ) -> int:
        infos = sorted(self._infos([experiment_id]), key=lambda info: int(info.request_time))
        if max_timestamp_millis is not None:
            infos = [info for info in infos if info.request_time <= max_timestamp_millis]
        if trace_ids is not None:
            infos = [info for info in infos if info.trace_id in trace_ids]
        chosen = infos[:max_traces]
        for info in chosen:
            self._change(info.trace_id, "delete", {})
        return len(chosen)

    def link_traces_to_run(self, trace_ids: list[str], run_id: str) -> None:
        if len(trace_ids or ()) > 100:
            raise MlflowException(
                f"Cannot link more than 100 traces to a run in a single request. Provided {len(trace_ids)} traces.",
                INVALID_PARAMETER_VALUE,
            )
        for trace_id in trace_ids or ():
            self._change(trace_id, "link", {"run_id": run_id})

    def _change(
        self, trace_id: str, operation: str | None, info: dict[str, Any], name: str | None = None, of: str | None = None
    ) -> None:
        self.journal.put(None, records.Trace(versions.now_ms(), trace_id, info, operation, name, of))

    # -- assessments ---------------------------------------------------------------------------------------------------

    def create_assessment(self, assessment: Assessment) -> Assessment:
        self._trace(assessment.trace_id)
        return self._assess(assessment)

    def _assess(self, assessment: Assessment) -> Assessment:
        now = versions.now_ms()
        assessment.assessment_id = assessment.assessment_id or f"a-{uuid.uuid4().hex}"
        assessment.create_time_ms = assessment.create_time_ms or now
        assessment.last_update_time_ms = assessment.last_update_time_ms or now
        self._change(str(assessment.trace_id), "assess", {"assessment": assessed(assessment)})
        return assessment

    def get_assessment(self, trace_id: str, assessment_id: str) -> Assessment:
        for assessment in self.get_trace_info(trace_id).assessments:
            if assessment.assessment_id == assessment_id:
                return assessment
        raise no_such(f"Assessment with ID '{assessment_id}' not found for trace '{trace_id}'")

    def update_assessment(
        self,
        trace_id: str,
        assessment_id: str,
        name: str | None = None,
        expectation: Any = None,
        feedback: Any = None,
        rationale: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Assessment:
        assessment = self.get_assessment(trace_id, assessment_id)
        given = {"name": name, "rationale": rationale, "expectation": expectation, "feedback": feedback}
        for key, value in given.items():
            if value is not None:
                setattr(assessment, key, value)
        if metadata is not None:
            assessment.metadata = {**(assessment.metadata or {}), **metadata}
        assessment.last_update_time_ms = versions.now_ms()
        self._change(trace_id, "assess", {"assessment": assessed(assessment)})
        return assessment

    def delete_assessment(self, trace_id: str, assessment_id: str) -> None:
        self.get_assessment(trace_id, assessment_id)
        self._change(trace_id, "assess", {"assessment": {"assessment_id": assessment_id}, "deleted": True})

    # -- reading -------------------------------------------------------------------------------------------------------

    def get_trace_info(self, trace_id: str) -> TraceInfo:
        return self._info(self._trace(trace_id))

    def get_trace(self, trace_id: str, *, allow_partial: bool = False) -> Trace:
        folded = self._trace(trace_id)
        return Trace(info=self._info(folded), data=TraceData(spans=versions.spans_of(folded.spans)))

    def batch_get_traces(self, trace_ids: list[str], location: Any = None, experiment_ids: Any = None) -> list[Trace]:
        known = self.catalogue.store().traces
        return [self.get_trace(trace_id) for trace_id in trace_ids if trace_id in known]

    def batch_get_trace_infos(
        self, trace_ids: list[str], location: Any = None, experiment_ids: Any = None
    ) -> list[TraceInfo]:
        known = self.catalogue.store().traces
        return [self.get_trace_info(trace_id) for trace_id in trace_ids if trace_id in known]

    def search_traces(
        self,
        experiment_ids: list[str] | None = None,
        filter_string: str | None = None,
        max_results: int = 100,
        order_by: list[str] | None = None,
        page_token: str | None = None,
        model_id: str | None = None,
        locations: list[str] | None = None,
        **of_others: Any,
    ) -> tuple[list[TraceInfo], str | None]:
        """``of_others``: what some versions of MLflow pass on for other stores, such as ``sql_warehouse_id``."""
        check_max_results(max_results)
        infos = self._infos(locations or experiment_ids or [])
        if model_id is not None:
            infos = [info for info in infos if info.trace_metadata.get(_MODEL_ID) == model_id]
        found = SearchTraceUtils.sort(SearchTraceUtils.filter(infos, filter_string), order_by)
        page, token = SearchTraceUtils.paginate(found, page_token, max_results)
        return page, token

    def _infos(self, experiment_ids: Iterable[str]) -> list[TraceInfo]:
        wanted = {str(experiment_id) for experiment_id in experiment_ids}
        infos = [self._info(folded) for folded in self.catalogue.store().traces.values() if _is_there(folded)]
        return [info for info in infos if str(info.experiment_id) in wanted]

    def _trace(self, trace_id: str | None) -> Folded:
        folded = self.catalogue.store().traces.get(trace_id or "")
        if folded is None or not _is_there(folded):
            raise no_such(f"Trace with ID '{trace_id}' not found.")
        return folded

    def _info(self, folded: Folded) -> TraceInfo:
        info: TraceInfo | None = None
        experiment_id = "0"
        for change in folded.changes:
            experiment_id = change.offline_experiment_id or experiment_id
            if change.operation is None:
                info = TraceInfo.from_dict(change.info)
        if info is None:
            info = _from_spans(folded, experiment_id)
        for change in folded.changes:
            _apply(info, change)
        info.tags = {
            **shown_tags(info.tags),
            _ARTIFACTS: uri.trace_artifacts(self.root, experiment_id, folded.trace_id),
        }
        if folded.spans or versions.STORES_SPANS:
            info.tags[_SPANS_LOCATION] = _IN_STORE
        return info


def _is_there(folded: Folded) -> bool:
    """Whether a trace was logged, and not deleted since."""
    there = False
    for _, record in folded.history:
        operation = None if isinstance(record, records.Spans) else record.operation
        there = operation in (None, "locate") or (there and operation != "delete")
    return there


def _apply(info: TraceInfo, change: records.Trace) -> None:
    match change.operation:
        case "set_tag":
            info.tags[change.info["key"]] = change.info["value"]
        case "delete_tag":
            info.tags.pop(change.info["key"], None)
        case "assess":
            told = change.info["assessment"]
            others = [known for known in info.assessments if known.assessment_id != told["assessment_id"]]
            info.assessments = others if change.info.get("deleted") else [*others, Assessment.from_dictionary(told)]


def _from_spans(folded: Folded, experiment_id: str) -> TraceInfo:
    """What is known of a trace whose start was not logged (yet)."""
    spans = versions.spans_of(folded.spans)
    begun = min((span.start_time_ns for span in spans), default=0)
    ended = max((span.end_time_ns or 0 for span in spans), default=0)
    return TraceInfo(
        trace_id=folded.trace_id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=begun // 1_000_000,
        execution_duration=max(ended - begun, 0) // 1_000_000,
        state=TraceState.IN_PROGRESS,
    )


def assessed(assessment: Assessment) -> dict[str, Any]:
    """An assessment as a record tells it: MLflow's own dictionary, in which every number would be a float."""
    told: dict[str, Any] = plain(assessment.to_dictionary())
    for kind in ("feedback", "expectation"):
        value = getattr(getattr(assessment, kind, None), "value", None)
        if "value" in told.get(kind, {}) and _fits(value):
            told[kind]["value"] = plain(value)
    return told


def _fits(value: Any) -> bool:
    """Whether a record can hold all its numbers."""
    if isinstance(value, dict):
        return all(_fits(part) for part in value.values())
    if isinstance(value, (list, tuple)):
        return all(_fits(part) for part in value)
    return not isinstance(value, int) or -(1 << 63) <= value < 1 << 63


def plain(told: Any) -> Any:
    """What JSON holds of it."""
    return json.loads(json.dumps(told, default=str))
