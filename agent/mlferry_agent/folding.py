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
from mlferry_agent.rows import quarantine_name
from mlferry_spool.records import (
    Artifact,
    ArtifactDeleted,
    Inputs,
    Metrics,
    ModelStart,
    ModelUpdate,
    Outputs,
    Params,
    Record,
    Series,
    Tags,
    TagsDeleted,
)

__all__ = ["Files", "Folded", "FoldedModel", "Point", "as_stored"]

#: Value, timestamp and step of a stored point; NaN is the text, since it equals nothing.
Point = tuple[float | str, int, int]

#: What is in quarantine, as (offset, action, name).
SetAside = Collection[tuple[int, str, str]]

#: By path: when it was last logged, and as what; None: it was deleted.
Files = dict[str, tuple[int, Artifact | None]]


@dataclass(slots=True)
class FoldedModel:
    """The expected state of one logged model. ``status``: when it was said, and MLflow's word."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    status: tuple[int, str] = (0, "PENDING")
    deleted: bool = False
    files: Files = field(default_factory=dict)

    def add(self, record: ModelStart | ModelUpdate) -> None:
        for key, value in record.params.items():
            self.params.setdefault(key, value)
        for key, value in record.tags.items():
            _set_tag(self.tags, key, record.timestamp, value)
        if isinstance(record, ModelStart):
            return
        for key in record.tags_deleted:
            _set_tag(self.tags, key, record.timestamp, None)
        if record.status is not None and record.timestamp >= self.status[0]:
            self.status = (record.timestamp, record.status)
        self.deleted |= record.deleted
        if record.artifact_path is not None and record.artifact_sha256 is not None:
            path = record.artifact_path
            file = Artifact(record.timestamp, path, record.artifact_sha256, record.artifact_size)
            if path not in self.files or self.files[path][0] <= record.timestamp:
                self.files[path] = (record.timestamp, file)


@dataclass(slots=True)
class Folded:
    """The expected state of one run. ``keys``: fold only these metrics (None: all). ``spared``: points that may be there and
    need not: a server stores a point before it refuses its link to a model."""

    keys: Collection[str] | None = None
    metrics: dict[str, set[Point]] = field(default_factory=dict)
    spared: dict[str, set[Point]] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    artifacts: Files = field(default_factory=dict)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    models: dict[str, FoldedModel] = field(default_factory=dict)
    outputs: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)

    def add(self, offset: int, record: Record, aside: SetAside) -> None:
        """Fold one record in; ``aside`` is what of its writer is in quarantine."""
        if isinstance(record, (Metrics, Series)):
            self._add_points(offset, record, aside)
        elif isinstance(record, Params):
            for key, value in record.values.items():
                if not _is_aside(aside, offset, Action.PARAM, key):
                    self.params.setdefault(key, value[:MAX_PARAM_VALUE_LENGTH])
        elif isinstance(record, Tags):
            for key, value in record.values.items():
                if not _is_aside(aside, offset, Action.TAG, key):
                    _set_tag(self.tags, key, record.timestamp, value[:MAX_TAG_VALUE_LENGTH])
        elif isinstance(record, TagsDeleted):
            for key in (key for key in record.keys if not _is_aside(aside, offset, Action.DELETE_TAG, key)):
                _set_tag(self.tags, key, record.timestamp, None)
        elif isinstance(record, Inputs):
            named = {(item.name, item.digest) for item in record.datasets}
            self.datasets |= {item for item in named if not _is_aside(aside, offset, Action.DATASET, item[0])}
            if not _is_aside(aside, offset, Action.MODEL_LINK, "inputs"):
                self.inputs.update(record.model_ids)
        elif isinstance(record, Outputs):
            if not _is_aside(aside, offset, Action.MODEL_LINK, "outputs"):
                self.outputs.update(output.model_id for output in record.models)
        elif isinstance(record, (ModelStart, ModelUpdate)):
            self._add_to_model(offset, record, aside)
        elif isinstance(record, (Artifact, ArtifactDeleted)):
            self._add_artifact(offset, record, aside)

    def _add_points(self, offset: int, record: Metrics | Series, aside: SetAside) -> None:
        if isinstance(record, Series):
            points = [(record.key, value, step, timestamp) for value, step, timestamp in record.points()]
        else:
            points = [(key, value, record.step, record.timestamp) for key, value in record.values.items()]
        for key, value, step, timestamp in points:
            if self.keys is None or key in self.keys:
                folded = self.spared if _is_aside(aside, offset, Action.METRIC, key) else self.metrics
                folded.setdefault(key, set()).add((as_stored(value), timestamp, step))

    def _add_to_model(self, offset: int, record: ModelStart | ModelUpdate, aside: SetAside) -> None:
        action, name = Action.MODEL, record.model_id
        if isinstance(record, ModelUpdate) and record.artifact_path is not None:
            action, name = Action.MODEL_FILE, f"{name}/{record.artifact_path}"
        if not _is_aside(aside, offset, action, name):
            self.models.setdefault(record.model_id, FoldedModel()).add(record)

    def _add_artifact(self, offset: int, record: Artifact | ArtifactDeleted, aside: SetAside) -> None:
        action = Action.UPLOAD if isinstance(record, Artifact) else Action.DELETE_ARTIFACT
        if _is_aside(aside, offset, action, record.path):
            return
        if record.path not in self.artifacts or self.artifacts[record.path][0] <= record.timestamp:
            self.artifacts[record.path] = (record.timestamp, record if isinstance(record, Artifact) else None)


def _is_aside(aside: SetAside, offset: int, action: Action, name: str) -> bool:
    return (offset, action.value, quarantine_name(name)) in aside


def _set_tag(tags: dict[str, tuple[int, str | None]], key: str, timestamp: int, value: str | None) -> None:
    if key not in tags or tags[key][0] <= timestamp:
        tags[key] = (timestamp, value)


def as_stored(value: float) -> float | str:
    """A metric value as an MLflow server with a SQL store gives it back."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return math.copysign(sys.float_info.max, value)
    return value + 0.0
