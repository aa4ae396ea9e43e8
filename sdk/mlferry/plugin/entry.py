"""What MLflow's entry points name. Imported by every ``import mlflow`` on the machine, so it is small, needs the standard
library alone and cannot fail; all that matters waits in the functions.

It is imported before ``mlflow.tracking.fluent`` registers the function that ends active runs at exit, and functions run at
exit in reverse order: so the logs are closed here after the last run has ended.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any

__all__ = [
    "RESERVED",
    "SpoolContext",
    "artifact_repository",
    "close_logs",
    "registry_store",
    "tracking_store",
]

#: Ids that whoever started the program gave it: MLflow takes the run's out of the environment before it asks for the run.
RESERVED = {name: os.environ.get(name, "") for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")}


def tracking_store(store_uri: str, artifact_uri: str | None = None) -> Any:
    """The tracking store of a ``spool:`` URI."""
    from mlferry.plugin import tracking

    store: Any = tracking.SpoolTrackingStore
    return store(store_uri, artifact_uri)


def registry_store(store_uri: str, tracking_uri: str | None = None) -> Any:
    """The model registry of a ``spool:`` URI."""
    from mlferry.plugin import registry

    store: Any = registry.SpoolRegistryStore
    return store(store_uri, tracking_uri)


def artifact_repository(artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> Any:
    """The artifacts below a ``spool:`` URI."""
    from mlferry.plugin.artifacts import SpoolArtifactRepository

    return SpoolArtifactRepository(artifact_uri, tracking_uri, registry_uri)


class SpoolContext:
    """Tags that a run gets when it starts: MLflow's run context provider (``mlflow.tracking.context.abstract_context``)."""

    def in_context(self) -> bool:
        """Whether MLflow logs to a spool, on a cluster that says something of itself."""
        from mlferry.plugin.context import in_context

        return in_context()

    def tags(self) -> dict[str, str]:
        """See ``mlferry.plugin.context``."""
        from mlferry.plugin.context import tags

        return tags(os.environ)


def close_logs() -> None:
    """End the logs of this process, if it has any."""
    journal = sys.modules.get("mlferry.plugin.journal")
    if journal is not None:
        journal.close_all()


atexit.register(close_logs)
