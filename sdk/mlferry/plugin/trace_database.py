"""The traces of a spool in a database in memory, so that MLflow's own SQL code searches and counts them.

Traces are searched by what their spans, assessments and links say, in a language of some thousand lines that grows with
every MLflow. So their records are fed, as they come, to MLflow's SQL store on an SQLite database that no disk knows, and it
answers. Nothing that logs comes here: the database is made when traces are first asked for.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow.entities import Experiment, TraceInfo
from mlflow.entities.assessment import Assessment
from mlflow.entities.entity_type import EntityAssociationType
from mlflow.entities.model_registry import PromptVersion
from mlflow.store.db.base_sql_model import Base
from mlflow.store.db.utils import _get_managed_session_maker
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.store.tracking.dbmodels.models import SqlAssessments, SqlEntityAssociation, SqlExperiment, SqlTraceInfo
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool
from sqlalchemy.schema import CreateIndex, CreateTable

from mlferry.plugin import uri, versions
from mlferry.plugin.entities import shown_tags
from mlferry_spool.fold import Place
from mlferry_spool.fold_store import TraceState
from mlferry_spool.records import Spans, Trace

__all__ = ["TraceDatabase"]

_log = logging.getLogger(__name__)


#: Traces whose first spans go to MLflow's code in one call.
_TRACES_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The records of a trace before any but spans: how many, and where the last of them stands."""

    trace_id: str
    experiment_id: str
    requests: list[bytes]
    count: int
    last: Place


def _beginning(trace: TraceState) -> _Beginning | None:
    """None: a trace does not begin with spans."""
    experiment_id, requests = "0", []
    history = trace.history
    alike = [(isinstance(record, Spans) or record.operation == "locate") for _, record in history]
    count = alike.index(False) if False in alike else len(alike)
    for _, record in history[:count]:
        if isinstance(record, Spans):
            requests.append(record.otlp)
        else:
            experiment_id = record.offline_experiment_id or experiment_id
    return _Beginning(trace.trace_id, experiment_id, requests, count, history[count - 1][0]) if requests else None


class TraceDatabase(SqlAlchemyStore):  # type: ignore[misc]
    """MLflow's SQL store, holding the traces of the spool at ``root`` and nothing else. Thread-safe; not for a forked child.

    Args:
        traces: gives every trace of the spool as it is now.
    """

    def __init__(self, root: Path, traces: Callable[[], list[TraceState]]) -> None:
        AbstractStore.__init__(self)
        self.db_uri, self.db_type = "sqlite://", "sqlite"
        self.artifact_root_uri = uri.store_uri(root)
        one_connection = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
        self.engine: Any = sqlalchemy.create_engine("sqlite://", **one_connection)
        self.read_engine: Any = None
        self._make_tables()
        self._root, self._traces = root, traces
        self._sessions = _get_managed_session_maker(sessionmaker(bind=self.engine), self.db_type)
        self._tells_reads = "read_only" in inspect.signature(self._sessions).parameters
        self._lock, self._depth = threading.RLock(), 0
        self._fed: dict[str, tuple[int, Place]] = {}
        self._experiments: set[str] = set()

    @contextlib.contextmanager
    def ManagedSessionMaker(self, read_only: bool = True) -> Iterator[Any]:
        """A session on what the spool holds now; one at a time."""
        with self._lock:
            if not self._depth:
                self._follow()
            self._depth += 1
            try:
                with self._sessions(**({"read_only": read_only} if self._tells_reads else {})) as session:
                    yield session
            finally:
                self._depth -= 1

    def _make_tables(self) -> None:
        """MLflow's tables as they are today, without its migrations; an index of no column is one of its own mistakes."""
        with self.engine.begin() as connection:
            for table in Base.metadata.sorted_tables:
                connection.execute(CreateTable(table))
                for index in table.indexes:
                    if len(index.columns):
                        connection.execute(CreateIndex(index))

    # -- from the spool ------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        self._depth += 1
        try:
            traces = self._traces()
            self._feed_spans([trace for trace in traces if trace.trace_id not in self._fed])
            for trace in traces:
                count, last = self._fed.get(trace.trace_id, (0, None))
                if trace.size != count:
                    self._catch_up(trace, count, last)
        finally:
            self._depth -= 1

    def _feed_spans(self, traces: list[TraceState]) -> None:
        """The spans with which new traces begin, many traces at once: each call of MLflow's code costs milliseconds."""
        by_experiment: dict[str, list[_Beginning]] = {}
        for trace in traces:
            beginning = _beginning(trace)
            if beginning is not None:
                by_experiment.setdefault(beginning.experiment_id, []).append(beginning)
        for experiment_id, beginnings in by_experiment.items():
            self.hold_experiment(experiment_id)
            for first in range(0, len(beginnings), _TRACES_AT_ONCE):
                self._feed_beginnings(experiment_id, beginnings[first : first + _TRACES_AT_ONCE])

    def _feed_beginnings(self, experiment_id: str, beginnings: list[_Beginning]) -> None:
        try:
            spans = [span for beginning in beginnings for span in versions.spans_of(beginning.requests)]
            self.log_spans(experiment_id, spans)
        except Exception as error:  # one of them is not as SQL wants it; they are applied one by one then
            _log.debug("Spans of %s traces are not shown at once: %s", len(beginnings), error)
            return
        self._fed |= {beginning.trace_id: (beginning.count, beginning.last) for beginning in beginnings}

    def _catch_up(self, trace: TraceState, count: int, last: Place | None) -> None:
        """Apply what is new of a trace; all of it anew, if a record of another process belongs before what was applied."""
        history = trace.history
        if count and history[count - 1][0] != last:
            self._forget(trace.trace_id)
            count = 0
        experiment_id = "0"
        for number, (_, record) in enumerate(history):
            if isinstance(record, Trace):
                experiment_id = record.offline_experiment_id or experiment_id
            if number >= count:
                self._apply(record, experiment_id)
        self._fed[trace.trace_id] = len(history), history[-1][0]

    def _apply(self, record: Trace | Spans, experiment_id: str) -> None:
        try:
            self.hold_experiment(experiment_id)
            if isinstance(record, Spans):
                self.log_spans(experiment_id, versions.spans_of([record.otlp]))
            else:
                self._change(record)
        except Exception as error:  # what SQL refuses is not shown, and hides nothing else
            _log.debug("A record of trace %s is not shown: %s", record.trace_id, error)

    def _change(self, record: Trace) -> None:
        trace_id, info = record.trace_id, record.info
        match record.operation:
            case None:
                self.start_trace(TraceInfo.from_dict({**info, "tags": shown_tags(info.get("tags") or {})}))
            case "set_tag":
                [(key, value)] = shown_tags({info["key"]: info["value"]}).items()
                self.set_trace_tag(trace_id, key, value)
            case "delete_tag":
                self.delete_trace_tag(trace_id, info["key"])
            case "link":
                self.link_traces_to_run([trace_id], info["run_id"])
            case "link_prompts":
                make: Any = PromptVersion  # an abstract class by oversight
                prompts = [make(prompt["name"], int(prompt["version"]), "") for prompt in info["prompts"]]
                self.link_prompts_to_trace(trace_id, prompts)
            case "assess" if info.get("deleted"):
                self.delete_assessment(trace_id, info["assessment"]["assessment_id"])
            case "assess":
                self._assess(trace_id, Assessment.from_dictionary(info["assessment"]))
            case "delete":
                with self.ManagedSessionMaker(read_only=False) as session:
                    session.query(SqlTraceInfo).filter(SqlTraceInfo.request_id == trace_id).delete()

    def _assess(self, trace_id: str, assessment: Assessment) -> None:
        """A new assessment, or the new state of one that is known."""
        assessment.trace_id = trace_id
        with self.ManagedSessionMaker(read_only=False) as session:
            known = session.get(SqlAssessments, assessment.assessment_id)
            if known is not None:
                told = SqlAssessments.from_mlflow_entity(assessment)
                for kept in ("valid", "overrides", "experiment_id", "trace_timestamp_ms"):
                    setattr(told, kept, getattr(known, kept))
                session.merge(told)
        if known is None:
            super().create_assessment(assessment)

    def _forget(self, trace_id: str) -> None:
        with self.ManagedSessionMaker(read_only=False) as session:
            session.query(SqlTraceInfo).filter(SqlTraceInfo.request_id == trace_id).delete()
            of_trace: Any = SqlEntityAssociation.source_type == EntityAssociationType.TRACE
            session.query(SqlEntityAssociation).filter(of_trace, SqlEntityAssociation.source_id == trace_id).delete()

    # -- what MLflow's code asks of the rest of a store ----------------------------------------------------------------

    def get_experiment(self, experiment_id: str) -> Experiment:
        if experiment_id not in self._experiments:
            return super().get_experiment(experiment_id)  # type: ignore[no-any-return]  # raises
        return Experiment(experiment_id, experiment_id, uri.experiment_artifacts(self._root, experiment_id), "active")

    def _check_experiment_is_active(self, experiment: Experiment) -> None:
        """It was when the trace was logged."""

    def hold_experiment(self, experiment_id: str) -> None:
        """Have MLflow's code find this experiment."""
        if experiment_id not in self._experiments and experiment_id.isdecimal():
            with self.ManagedSessionMaker(read_only=False) as session:
                row = {"experiment_id": int(experiment_id), "name": experiment_id, "lifecycle_stage": "active"}
                session.execute(sqlalchemy.insert(SqlExperiment), [row])
            self._experiments.add(experiment_id)

    # -- for the store -------------------------------------------------------------------------------------------------

    def ids(self, experiment_id: str) -> set[str]:
        """The traces of an experiment."""
        with self.ManagedSessionMaker() as session:
            rows = session.query(SqlTraceInfo.request_id).filter(SqlTraceInfo.experiment_id == int(experiment_id))
            return {trace_id for (trace_id,) in rows}
