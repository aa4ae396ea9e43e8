"""The runs of a spool as `mlferry ls` lists them: what a run says of itself, and how far it is delivered. Pure.

How it stands is the server's word where the server was told; else the run's own, which has no end while it is alive, or if
it died.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlferry_agent.contents import Contents
from mlferry_agent.status import RunStatus

__all__ = ["NO_END", "Listed", "as_number", "column", "listed"]

#: A run that nobody writes to any more, as far as can be seen from here, and that never said how it ended.
NO_END = "NO END"


@dataclass(frozen=True, slots=True)
class Listed:
    """One run. Times are Unix milliseconds. ``status``: MLflow's word, or ``NO_END``."""

    run_id: str
    experiment: str
    name: str
    status: str
    start_time: int | None
    end_time: int | None
    delivery: RunStatus
    contents: Contents

    def as_json(self) -> dict[str, Any]:
        state, delivery = self.contents.state, self.delivery
        return {
            "run_id": self.run_id,
            "server_run_id": delivery.server_run_id,
            "experiment": self.experiment,
            "name": self.name,
            "status": self.status,
            "live": delivery.live,
            "start_time": self.start_time,
            "end_time": self.end_time,
            "acknowledged": delivery.acknowledged,
            "pending": delivery.pending,
            "quarantined": len(delivery.quarantined),
            "params": state.params.values(),
            "tags": state.tags.values(),
            "metrics": {key: as_number(point.value) for key, point in state.metrics.items()},
        }


def listed(delivery: RunStatus, contents: Contents) -> Listed:
    """Put together what is known of one run."""
    state, opening = contents.state, contents.state.opening
    experiment = delivery.experiment_name or (opening.experiment_name if opening else None)
    return Listed(
        run_id=delivery.run_id,
        experiment=experiment or "Default",
        name=state.name.value or delivery.run_name or "",
        status=_status(delivery, contents),
        start_time=opening.start_time if opening else None,
        end_time=state.end_time.value,
        delivery=delivery,
        contents=contents,
    )


def _status(delivery: RunStatus, contents: Contents) -> str:
    own = contents.state.status.value
    if delivery.live:
        return "RUNNING"
    if not delivery.end_pending and delivery.status not in (None, "RUNNING", "SCHEDULED"):
        return str(delivery.status)
    return own if contents.ended or own != "RUNNING" else NO_END


def as_number(value: float) -> float | str:
    """A value as JSON can say it."""
    return value if math.isfinite(value) else str(value)


def column(name: str) -> Callable[[Listed], float | str | None] | None:
    """What a column shows of a run, by MLflow's name for it: ``metrics.KEY``, ``params.KEY``, ``tags.KEY``. None: no column
    is called that."""
    kind, _, key = name.partition(".")
    if not key or kind not in ("metrics", "params", "tags"):
        return None

    def value(run: Listed) -> float | str | None:
        state = run.contents.state
        if kind == "metrics":
            found = state.metrics.get(key)
            return None if found is None else found.value
        return (state.params if kind == "params" else state.tags).values().get(key)

    return value
