"""Records of one run, in whatever order their writers' logs are read -> the run's state. Pure.

Why order is explicit. A run has several writers, whose logs are read one after the other and not in the order of time. So
whatever the last (or first) of several records decides carries its place: the record's time, then the writer's id (which
sorts by time as well), then the offset in that writer's log. Folding the same records in any order gives the same state.

The rules are those of MLflow's SQL store: a param keeps its first value, a tag its last; of a metric the latest point is
the one with the highest (step, timestamp, value).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from mlferry_spool.records import (
    Artifact,
    ArtifactDeleted,
    Dataset,
    Dropped,
    Inputs,
    Metrics,
    ModelOutput,
    ModelStart,
    ModelUpdate,
    Open,
    Outputs,
    Params,
    Record,
    RunEnd,
    RunUpdate,
    Series,
    Tags,
    TagsDeleted,
)

__all__ = ["Latest", "ModelState", "Place", "Point", "RunState", "as_stored"]

T = TypeVar("T")

_LARGEST = sys.float_info.max


class Place(NamedTuple):
    """Where a record stands among all of its run's: Unix milliseconds, writer, offset in the writer's log."""

    time: int
    writer: str
    offset: int


class Point(NamedTuple):
    """One logged value of a metric, as MLflow's SQL store shows it. ``timestamp``: Unix milliseconds."""

    value: float
    timestamp: int
    step: int
    model_id: str | None = None
    dataset_name: str | None = None
    dataset_digest: str | None = None


#: The point of a metric that is shown for the run.
Latest = Point


def as_stored(value: float) -> float:
    """A value as MLflow's SQL store keeps it: infinities are the largest doubles, no zero is negative, NaN stays."""
    return math.copysign(_LARGEST, value) if math.isinf(value) else value + 0.0


def _rank(value: float) -> float:
    # In the SQL store a NaN stands as 0 beside a mark (mlflow ``sqlalchemy_store._update_latest_metrics_if_necessary``).
    return 0.0 if math.isnan(value) else as_stored(value)


class Register(Generic[T]):
    """Values by key, of which the last set (by place) counts; None: taken away."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Place, T | None]] = {}

    def set(self, key: str, value: T | None, place: Place) -> None:
        known = self._entries.get(key)
        if known is None or known[0] <= place:
            self._entries[key] = (place, value)

    def forget(self, keys: Iterable[str], place: Place) -> None:
        for key in keys:
            self.set(key, None, place)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> T | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[1]

    def values(self) -> dict[str, T]:
        """What stands, by key, in the order in which the keys first appeared."""
        return {key: value for key, (_, value) in self._entries.items() if value is not None}

    def gone(self) -> list[str]:
        """The keys of what was taken away."""
        return [key for key, (_, value) in self._entries.items() if value is None]

    def since(self, is_new: Callable[[Place], bool]) -> Register[T]:
        """Of what stands and what was taken away only what was said at a place that is new."""
        found: Register[T] = Register()
        found._entries = {key: entry for key, entry in self._entries.items() if is_new(entry[0])}
        return found


class Held(Generic[T]):
    """One value, of which the last set (by place) counts."""

    def __init__(self, value: T) -> None:
        self.value = value
        self.place = Place(-(1 << 63), "", -1)

    def set(self, value: T, place: Place) -> None:
        if self.place <= place:
            self.value, self.place = value, place


class FirstParams:
    """Params: of each the first value (by place) counts."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Place, str]] = {}

    def add(self, values: Mapping[str, str], place: Place) -> None:
        for key, value in values.items():
            known = self._entries.get(key)
            if known is None or place < known[0]:
                self._entries[key] = (place, value)

    def values(self) -> dict[str, str]:
        return {key: value for key, (_, value) in self._entries.items()}


class ModelState:
    """A LoggedModel: ``start`` is None while only changes to it were read. Times are Unix milliseconds."""

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        self.start: ModelStart | None = None
        self.status = Held("PENDING")
        self.updated = 0
        self.deleted = False
        self.params = FirstParams()
        self.tags: Register[str] = Register()
        self.artifacts: Register[Artifact] = Register()

    def begin(self, start: ModelStart, place: Place) -> None:
        self.start = start
        self.updated = max(self.updated, start.timestamp)
        self.params.add(start.params, place)
        for key, value in start.tags.items():
            self.tags.set(key, value, place)

    def change(self, update: ModelUpdate, place: Place) -> None:
        self.deleted |= update.deleted
        self.params.add(update.params, place)
        for key, value in update.tags.items():
            self.tags.set(key, value, place)
        self.tags.forget(update.tags_deleted, place)
        if update.status is not None:
            self.status.set(update.status, place)
            self.updated = max(self.updated, update.timestamp)
        if update.artifact_path is not None and update.artifact_sha256 is not None:
            file = Artifact(update.timestamp, update.artifact_path, update.artifact_sha256, update.artifact_size)
            self.artifacts.set(update.artifact_path, file, place)


@dataclass(slots=True)
class RunState:
    """What the records of one run amount to. ``opening`` is the OPEN of the run's first writer; ``revision`` grows with
    every record."""

    run_id: str
    opening: Open | None = None
    name: Held[str | None] = field(default_factory=lambda: Held(None))
    status: Held[str] = field(default_factory=lambda: Held("RUNNING"))
    end_time: Held[int | None] = field(default_factory=lambda: Held(None))
    lifecycle: Held[str] = field(default_factory=lambda: Held("active"))
    params: FirstParams = field(default_factory=FirstParams)
    tags: Register[str] = field(default_factory=Register)
    datasets: dict[tuple[str, str], tuple[Place, Dataset]] = field(default_factory=dict)
    input_models: list[str] = field(default_factory=list)
    outputs: dict[str, ModelOutput] = field(default_factory=dict)
    artifacts: Register[Artifact] = field(default_factory=Register)
    deletions: list[tuple[Place, str]] = field(default_factory=list)
    models: dict[str, ModelState] = field(default_factory=dict)
    model_points: dict[str, list[tuple[str, Point]]] = field(default_factory=dict)
    dropped: int = 0
    lost: int = 0
    revision: int = 0
    #: Of each metric the record that holds its latest point: folding makes no object of a point.
    _latest: dict[str, Metrics] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Point]:
        """Of each metric the point that is shown for the run."""
        return {key: _point(record, record.values[key]) for key, record in self._latest.items()}

    def model(self, model_id: str) -> ModelState:
        return self.models.setdefault(model_id, ModelState(model_id))

    @property
    def deleted_at(self) -> int | None:
        """Unix milliseconds; None while the run is active."""
        return self.lifecycle.place.time if self.lifecycle.value == "deleted" else None

    def add(self, writer: str, offset: int, record: Record) -> None:
        """Fold one record in."""
        self.revision += 1
        match record:
            case Metrics():
                self.add_points(record)
            case Series():
                self._add_series(record)
            case Params():
                self.params.add(record.values, Place(record.timestamp, writer, offset))
            case Tags():
                for key, value in record.values.items():
                    self.tags.set(key, value, Place(record.timestamp, writer, offset))
            case TagsDeleted():
                self.tags.forget(record.keys, Place(record.timestamp, writer, offset))
            case Artifact():
                self.artifacts.set(record.path, record, Place(record.timestamp, writer, offset))
                self._take_away(record.path)
            case ArtifactDeleted():
                self.deletions.append((Place(record.timestamp, writer, offset), record.path.strip("/")))
                self._take_away()
            case Open() | RunUpdate() | RunEnd() | Dropped():
                self._live(record, writer, offset)
            case _:
                self._link(record, writer, offset)

    def _live(self, record: Open | RunUpdate | RunEnd | Dropped, writer: str, offset: int) -> None:
        match record:
            case Open():
                self._open(record)
            case RunUpdate():
                self._change(record, Place(record.timestamp, writer, offset))
            case RunEnd():
                said = record.end_time if record.timestamp is None else record.timestamp
                self.status.set(record.status, Place(said, writer, offset))
                self.end_time.set(record.end_time, Place(said, writer, offset))
            case Dropped():
                self.dropped += record.count

    def _open(self, record: Open) -> None:
        first = self.opening
        if first is None or (record.resumed, record.opened) < (first.resumed, first.opened):
            self.opening = record
            self.name.set(record.run_name, Place(record.start_time - 1, "", 0))

    def _change(self, record: RunUpdate, place: Place) -> None:
        if record.run_name is not None:
            self.name.set(record.run_name, place)
        if record.status is not None:
            self.status.set(record.status, place)
        if record.lifecycle is not None:
            self.lifecycle.set(record.lifecycle, place)
        if record.end_time is not None:
            self.end_time.set(record.end_time, place)

    def _link(self, record: Record, writer: str, offset: int) -> None:
        match record:
            case Inputs():
                self._use(record, Place(record.timestamp, writer, offset))
            case Outputs():
                for output in record.models:
                    self.outputs.setdefault(output.model_id, output)
            case ModelStart():
                self.model(record.model_id).begin(record, Place(record.timestamp, writer, offset))
            case ModelUpdate():
                self.model(record.model_id).change(record, Place(record.timestamp, writer, offset))

    def _use(self, record: Inputs, place: Place) -> None:
        for dataset in record.datasets:
            key = (dataset.name, dataset.digest)
            if key not in self.datasets or place < self.datasets[key][0]:
                self.datasets[key] = (place, dataset)
        self.input_models += [model_id for model_id in record.model_ids if model_id not in self.input_models]

    def _take_away(self, path: str | None = None) -> None:
        """Take what was deleted away, also where the deletion was read before what it deletes; ``path``: only that."""
        for place, deleted in self.deletions:
            known = [path] if path is not None else list(self.artifacts.values())
            below = [name for name in known if not deleted or f"{name}/".startswith(f"{deleted}/")]
            self.artifacts.forget(below, place)

    def add_points(self, record: Metrics) -> None:
        self._keep_latest(record)
        if record.model_id is not None:
            measured = self.model_points.setdefault(record.model_id, [])
            measured += [(key, _point(record, value)) for key, value in record.values.items()]

    def _keep_latest(self, record: Metrics) -> None:
        place, latest = (record.step, record.timestamp), self._latest
        for key, value in record.values.items():
            known = latest.get(key)
            if known is not None:
                known_place = (known.step, known.timestamp)
                if place < known_place or (place == known_place and _rank(value) <= _rank(known.values[key])):
                    continue
            latest[key] = record

    def _add_series(self, record: Series) -> None:
        links = (record.model_id, record.dataset_name, record.dataset_digest)
        points = [(step, timestamp, value) for value, step, timestamp in record.points()]
        if points:
            step, timestamp, value = max(points, key=_place_and_rank)
            self._keep_latest(Metrics(timestamp, step, {record.key: value}, *links))
        if record.model_id is not None:
            measured = self.model_points.setdefault(record.model_id, [])
            measured += [(record.key, Point(as_stored(value), time, step, *links)) for step, time, value in points]


def _place_and_rank(point: tuple[int, int, float]) -> tuple[int, int, float]:
    return point[0], point[1], _rank(point[2])


def _point(record: Metrics, value: float) -> Point:
    links = (record.model_id, record.dataset_name, record.dataset_digest)
    return Point(as_stored(value), record.timestamp, record.step, *links)
