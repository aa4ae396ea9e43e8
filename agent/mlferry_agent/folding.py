"""What a run in the spool amounts to: the state that a server must show once everything is delivered. Pure.

The rules are MLflow's own for a run that is logged online: a param keeps its first value; a tag its last; a metric point
that equals another in key, step, timestamp and value is that point; NaN is kept, infinities become the largest doubles and
-0.0 becomes 0.0 (mlflow ``sqlalchemy_store``); an artifact is what was last logged under its path.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass, field

from mlferry_agent.lanes import Action
from mlferry_agent.limits import MAX_PARAM_VALUE_LENGTH, MAX_TAG_VALUE_LENGTH
from mlferry_spool.records import Artifact, ArtifactDeleted, Inputs, Metrics, Params, Record, Series, Tags, TagsDeleted

__all__ = ["Folded", "Point", "as_stored"]

#: Value, timestamp and step of a stored point; NaN is the text, since it equals nothing.
Point = tuple[float | str, int, int]

#: What is in quarantine, as (offset, action, name).
SetAside = Collection[tuple[int, str, str]]


@dataclass(slots=True)
class Folded:
    """The expected state of one run. ``keys``: fold only these metrics (None: all)."""

    keys: Collection[str] | None = None
    metrics: dict[str, set[Point]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    artifacts: dict[str, tuple[int, Artifact | None]] = field(default_factory=dict)
    datasets: set[tuple[str, str]] = field(default_factory=set)

    def add(self, offset: int, record: Record, aside: SetAside) -> None:
        """Fold one record in; ``aside`` is what of its writer is in quarantine."""
        if isinstance(record, (Metrics, Series)):
            self._add_points(offset, record, aside)
        elif isinstance(record, Params):
            for key, value in record.values.items():
                if (offset, Action.PARAM.value, key) not in aside:
                    self.params.setdefault(key, value[:MAX_PARAM_VALUE_LENGTH])
        elif isinstance(record, Tags):
            for key, value in record.values.items():
                if (offset, Action.TAG.value, key) not in aside:
                    self._set_tag(key, record.timestamp, value[:MAX_TAG_VALUE_LENGTH])
        elif isinstance(record, TagsDeleted):
            for key in record.keys:
                self._set_tag(key, record.timestamp, None)
        elif isinstance(record, Inputs):
            named = {(item.name, item.digest) for item in record.datasets}
            self.datasets |= {item for item in named if (offset, Action.DATASET.value, item[0]) not in aside}
        elif isinstance(record, (Artifact, ArtifactDeleted)):
            self._add_artifact(offset, record, aside)

    def _add_points(self, offset: int, record: Metrics | Series, aside: SetAside) -> None:
        if isinstance(record, Series):
            points = [(record.key, value, step, timestamp) for value, step, timestamp in record.points()]
        else:
            points = [(key, value, record.step, record.timestamp) for key, value in record.values.items()]
        for key, value, step, timestamp in points:
            wanted = self.keys is None or key in self.keys
            if wanted and (offset, Action.METRIC.value, key) not in aside:
                self.metrics.setdefault(key, set()).add((as_stored(value), timestamp, step))

    def _set_tag(self, key: str, timestamp: int, value: str | None) -> None:
        if key not in self.tags or self.tags[key][0] <= timestamp:
            self.tags[key] = (timestamp, value)

    def _add_artifact(self, offset: int, record: Artifact | ArtifactDeleted, aside: SetAside) -> None:
        action = Action.UPLOAD if isinstance(record, Artifact) else Action.DELETE_ARTIFACT
        if (offset, action.value, record.path) in aside:
            return
        if record.path not in self.artifacts or self.artifacts[record.path][0] <= record.timestamp:
            self.artifacts[record.path] = (record.timestamp, record if isinstance(record, Artifact) else None)


def as_stored(value: float) -> float | str:
    """A metric value as an MLflow server with a SQL store gives it back."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return math.copysign(sys.float_info.max, value)
    return value + 0.0
