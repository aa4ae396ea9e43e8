"""Which runs of a spool fit a filter, in MLflow's own words and by MLflow's own code; for programs that must not import it.

``python -m mlferry.plugin.matching ROOT FILTER [ORDER]...`` prints the ids of the runs that fit, a line each, ordered as
MLflow orders them (the latest first, if no order is named). A filter that MLflow does not understand ends it with 2 and
MLflow's explanation on standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from mlferry.plugin.tracking import SpoolTrackingStore
from mlferry.plugin.uri import store_uri

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Print the ids; returns the exit code."""
    root, wanted, *order_by = words
    store = SpoolTrackingStore(store_uri(Path(root).absolute()))
    experiments = list(store.catalogue.experiments())
    try:
        runs, _ = store._search_runs(experiments, wanted, ViewType.ALL, None, order_by, None)
    except MlflowException as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    sys.stdout.writelines(f"{run.info.run_id}\n" for run in runs)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
