"""mlferry's own functions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

IMPORT = "import mlferry"
ENVIRONMENT = {"MLFERRY_QUIET": "true"}
COUNTED = "`mlferry_spool`, the library that the agent reads spools with"


def start(directory: Path) -> Any:
    os.environ["MLFERRY_DIR"] = str(directory / "spool")
    import mlferry

    mlferry.start_run()
    return mlferry.log_metric, mlferry.log_metrics


def finish() -> None:
    import mlferry

    mlferry.end_run()


def count(directory: Path) -> int:
    from mlferry_spool.catalogue import Catalogue

    catalogue = Catalogue(directory / "spool")
    return sum(len(catalogue.history(run.run_id, "loss")) for run in catalogue.runs())
