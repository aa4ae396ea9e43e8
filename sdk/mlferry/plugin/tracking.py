"""MLflow's tracking store on a spool: assembled from its rooms, and where each of MLflow's many methods is accounted for.

``runs``, ``experiments``, ``models``, ``traces`` write; ``search`` and ``trace_queries`` read. What none of them has needs
a server, and says so.
"""

from __future__ import annotations

from typing import Any

from mlflow.store.tracking.abstract_store import AbstractStore

from mlferry.plugin import uri, versions
from mlferry.plugin.journal import journal_for
from mlferry.plugin.spark import search_once_a_second
from mlferry.plugin.trace_queries import TraceQueries, ask_sql

__all__ = ["SpoolTrackingStore"]


class SpoolTrackingStore(TraceQueries, AbstractStore):  # type: ignore[misc]  # a location is optional in some versions
    """``mlflow.store.tracking.AbstractStore`` on the spool that ``store_uri`` names.

    Raises:
        BadSpoolUri: the URI names none.
    """

    def __init__(self, store_uri: str | None = None, artifact_root_uri: str | None = None) -> None:
        AbstractStore.__init__(self)
        TraceQueries.__init__(self)
        search_once_a_second()
        self.root = uri.root_of(store_uri or "spool:")
        self.journal = journal_for(self.root)
        self.catalogue = self.journal.catalogue

    def record_logged_model(self, run_id: str, mlflow_model: Any) -> None:
        """Obsolete in MLflow 3, whose tag ``mlflow.log-model.history`` is set by the caller."""
        self._writable(run_id)


if versions.TWO_PART_TRACES:
    from mlferry.plugin.traces_v2 import log_in_two_parts

    log_in_two_parts(SpoolTrackingStore)
ask_sql(SpoolTrackingStore, AbstractStore)
versions.refuse(SpoolTrackingStore, AbstractStore)
