"""What is asked of traces, and what depends on the answer, by MLflow's own SQL code where it is installed.

Logging a trace stays as it is (``traces``): no database is in its way. With ``mlflow-skinny`` and the first versions of
MLflow, questions are answered by folding the records, as far as that goes.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mlflow.entities.assessment import Assessment

from mlferry.plugin import versions
from mlferry.plugin.prompts import uid_of
from mlferry.plugin.traces import Traces, assessed

if TYPE_CHECKING:
    from mlflow.entities.model_registry import PromptVersion

    from mlferry.plugin.trace_database import TraceDatabase

__all__ = ["TraceQueries", "ask_sql"]

_QUESTIONS = (
    "batch_get_trace_infos",
    "batch_get_traces",
    "calculate_trace_filter_correlation",
    "find_completed_sessions",
    "get_assessment",
    "get_trace",
    "get_trace_info",
    "query_trace_metrics",
    "search_traces",
)


class TraceQueries(Traces):
    """The tracking store's methods about traces, those that read by SQL where there is SQL (``ask_sql``)."""

    def __init__(self) -> None:
        super().__init__()
        self._database: tuple[int, TraceDatabase] | None = None

    def trace_database(self) -> TraceDatabase:
        """Every trace of the spool in a database of this process."""
        if self._database is None or self._database[0] != os.getpid():
            from mlferry.plugin.trace_database import TraceDatabase

            database = TraceDatabase(self.root, lambda: list(self.catalogue.store().traces.values()))
            self._database = os.getpid(), database
        return self._database[1]

    # -- changes that SQL checks -----------------------------------------------------------------------------------------

    def _delete_traces(self, experiment_id: str, *which: Any, **named: Any) -> int:
        if not versions.SQL_TRACES:
            return super()._delete_traces(experiment_id, *which, **named)
        database = self.trace_database()
        before = database.ids(experiment_id)
        count = int(database._delete_traces(experiment_id, *which, **named))
        for trace_id in sorted(before - database.ids(experiment_id)):
            self._change(trace_id, "delete", {})
        return count

    def create_assessment(self, assessment: Assessment) -> Assessment:
        if not versions.SQL_TRACES:
            return super().create_assessment(assessment)
        return self._assessed(self.trace_database().create_assessment(assessment))

    def update_assessment(self, trace_id: str, assessment_id: str, *changes: Any, **named: Any) -> Assessment:
        if not versions.SQL_TRACES:
            return super().update_assessment(trace_id, assessment_id, *changes, **named)
        return self._assessed(self.trace_database().update_assessment(trace_id, assessment_id, *changes, **named))

    def _assessed(self, assessment: Assessment) -> Assessment:
        self._change(str(assessment.trace_id), "assess", {"assessment": assessed(assessment)})
        return assessment

    def delete_assessment(self, trace_id: str, assessment_id: str) -> None:
        if not versions.SQL_TRACES:
            return super().delete_assessment(trace_id, assessment_id)
        database = self.trace_database()
        known = any(found.assessment_id == assessment_id for found in _assessments(database, trace_id))
        database.delete_assessment(trace_id, assessment_id)
        if known:
            self._change(trace_id, "assess", {"assessment": {"assessment_id": assessment_id}, "deleted": True})
        return None

    def link_prompts_to_trace(self, trace_id: str, prompt_versions: list[PromptVersion]) -> None:
        """Prompts that were used for a trace."""
        if not prompt_versions:
            return
        self._trace(trace_id)
        prompts = [self._prompt(prompt.name, int(prompt.version)) for prompt in prompt_versions]
        self._change(trace_id, "link_prompts", {"prompts": prompts})

    def _prompt(self, name: str, number: int) -> dict[str, Any]:
        """A version of a prompt as a record names it; by the uid of its creation, since the server numbers anew."""
        uid = uid_of(self.journal.registry, name, number)
        return {"name": name, "version": number, **({} if uid is None else {"uid": uid})}


def _assessments(database: TraceDatabase, trace_id: str) -> list[Assessment]:
    return [found for info in database.batch_get_trace_infos([trace_id]) for found in info.assessments]


def ask_sql(ours: type, store: type) -> None:
    """Have ``ours``, a tracking store of the kind ``store``, put its questions to the database, if there is SQL: those about
    traces, and those about what a spool never holds (scorers, evaluation datasets, ...), which MLflow's UI asks as well."""
    if not versions.SQL_TRACES:
        return
    others = [name for name in versions.unsupported(store, ours) if name.startswith(("get_", "list_", "search_"))]
    for name in {*_QUESTIONS, *others} - {"get_or_create_user_queue"}:
        setattr(ours, name, _question(name))


def _question(name: str) -> Any:
    def asked(self: TraceQueries, *args: Any, **named: Any) -> Any:
        database = self.trace_database()
        if name not in _QUESTIONS:
            for experiment_id in self.catalogue.experiments():
                database.hold_experiment(experiment_id)
        return getattr(database, name)(*args, **named)

    asked.__name__ = name
    asked.__doc__ = f"``{name}`` as MLflow's SQL store answers it."
    return asked
