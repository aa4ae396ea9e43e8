"""Payload bytes <-> typed records. Owns every kind of record and the checks on it; pure, like ``frames``.

Theory of operation. A record is a frozen dataclass whose fields, in order, are the elements of a msgpack array. A newer
writer may append fields: a reader ignores what it does not know, and a missing trailing field takes its default. Records
with many optional fields are msgpack maps instead (``AS_MAP``), under the same rule.

Everything read is foreign: types, ranges and lengths are checked field by field before an object exists, nothing is
allocated on the word of a header, and the answer to any bytes is a record, ``CorruptRecord`` or ``UnsupportedKind``.

Values are data. A record may carry a name, a path inside the run's artifacts or a digest; it never carries a place on the
reader's machine, an address, a user to act as or a secret.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

from mlferry_spool.checks import (
    binary,
    boolean,
    column,
    construct,
    digest,
    float64,
    holds,
    int64,
    list_of,
    map_of,
    narrow_column,
    number,
    optional,
    plain,
    text,
    unsigned,
)
from mlferry_spool.columns import Integers, check_length, cut, floats, integers

__all__ = [
    "RECORDS",
    "Artifact",
    "ArtifactDeleted",
    "BlobRef",
    "Dataset",
    "Dropped",
    "ExperimentOperation",
    "Heartbeat",
    "Inputs",
    "Kind",
    "Metrics",
    "ModelOutput",
    "ModelStart",
    "ModelUpdate",
    "NarrowSeries",
    "Open",
    "Outputs",
    "Params",
    "Record",
    "RegistryOperation",
    "RunEnd",
    "RunUpdate",
    "SegmentEnd",
    "Series",
    "Spans",
    "Tags",
    "TagsDeleted",
    "Trace",
]


class Kind(enum.IntEnum):
    """The kinds of format 1. 0 is never a kind; 64 to 127 may be skipped by a reader that does not know them."""

    OPEN = 1
    RUN_UPDATE = 2
    RUN_END = 3
    METRICS = 4
    SERIES = 5
    PARAMS = 6
    TAGS = 7
    TAGS_DELETED = 8
    ARTIFACT = 9
    ARTIFACT_DELETED = 10
    INPUTS = 11
    OUTPUTS = 12
    MODEL_START = 13
    MODEL_UPDATE = 14
    EXPERIMENT = 15
    REGISTRY = 16
    TRACE = 17
    SPANS = 18
    DROPPED = 19
    SEGMENT_END = 20
    SERIES_NARROW = 21
    HEARTBEAT = 64


# -- values inside records ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A text too long for a frame, kept in the run's blobs: its SHA-256 (32 bytes) and size in bytes."""

    sha256: bytes
    size: int


def _long_text(value: Any) -> str | BlobRef:
    if type(value) is dict:
        return BlobRef(digest(value.get("sha256")), unsigned(value.get("size")))
    return text(value)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as MLflow describes it (``mlflow.entities.Dataset``) with its input tags."""

    name: str = holds(text)
    digest: str = holds(text)
    source_type: str = holds(text)
    source: str | BlobRef = holds(_long_text)
    schema: str | BlobRef | None = holds(optional(_long_text), None)
    profile: str | BlobRef | None = holds(optional(_long_text), None)
    tags: dict[str, str] = holds(map_of(text), dict)


def _dataset(value: Any) -> Dataset:
    if type(value) is not list:
        raise ValueError("a dataset is a list")
    return construct(Dataset, value)


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """A logged model that the run put out, and at which step."""

    model_id: str = holds(text)
    step: int = holds(int64, 0)


def _model_output(value: Any) -> ModelOutput:
    if type(value) is not list:
        raise ValueError("a model output is a list")
    return construct(ModelOutput, value)


# -- records --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """First in every segment: who writes, on which machine, into which run. Losing a segment loses no identity.

    ``role``: ``primary`` (its end is the run's end), ``helper`` (a forked child: its death says nothing about the run),
    ``guest`` (somebody who adds to a run that others answer for: neither its life nor its death says anything).
    ``offline_experiment_id`` names an experiment of this spool, ``experiment_id`` one of the server.
    ``attempt`` is shared by the ranks of one launch. ``locked``: ``writer.lock`` is held while the writer lives.
    Times are Unix milliseconds. ``user``, ``host`` are information, never acted upon.
    """

    AS_MAP: ClassVar[bool] = True

    writer_id: str = holds(text)
    run_id: str | None = holds(optional(text), None)
    experiment_name: str | None = holds(optional(text), None)
    experiment_id: str | None = holds(optional(text), None)
    run_name: str | None = holds(optional(text), None)
    user: str | None = holds(optional(text), None)
    start_time: int = holds(int64, 0)
    parent_run_id: str | None = holds(optional(text), None)
    resumed: bool = holds(boolean, False)
    workspace: str | None = holds(optional(text), None)
    role: str = holds(text, "primary")
    attempt: str | None = holds(optional(text), None)
    rank: int | None = holds(optional(int64), None)
    host: str = holds(text, "")
    machine_id: str = holds(text, "")
    boot_id: str = holds(text, "")
    pid: int = holds(int64, 0)
    opened: int = holds(int64, 0)
    locked: bool = holds(boolean, False)
    heartbeat_s: float = holds(float64, 30.0)
    program: str = holds(text, "")
    offline_experiment_id: str | None = holds(optional(text), None)


@dataclass(frozen=True, slots=True)
class RunUpdate:
    """A change to the run itself. ``lifecycle``: ``deleted`` or ``active``; ``end_time``: Unix milliseconds, of a run that
    has one without having ended."""

    AS_MAP: ClassVar[bool] = True

    timestamp: int = holds(int64)
    run_name: str | None = holds(optional(text), None)
    status: str | None = holds(optional(text), None)
    lifecycle: str | None = holds(optional(text), None)
    end_time: int | None = holds(optional(int64), None)


@dataclass(frozen=True, slots=True)
class RunEnd:
    """The run ended as far as this writer knows: Unix milliseconds and MLflow's status. ``timestamp``: when that was said,
    where the end is a time that a user gave."""

    end_time: int = holds(int64)
    status: str = holds(text)
    timestamp: int | None = holds(optional(int64), None)


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metric points of one timestamp (Unix milliseconds) and step; float64 values, bit-exact, or integers for them."""

    timestamp: int = holds(int64)
    step: int = holds(int64)
    values: dict[str, float] = holds(map_of(number))
    model_id: str | None = holds(optional(text), None)
    dataset_name: str | None = holds(optional(text), None)
    dataset_digest: str | None = holds(optional(text), None)


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one metric as columns: little-endian float64 values, int64 steps and timestamps (Unix milliseconds)."""

    key: str = holds(text)
    values: bytes = holds(binary)
    steps: Integers = holds(column)
    timestamps: Integers = holds(column)
    model_id: str | None = holds(optional(text), None)
    dataset_name: str | None = holds(optional(text), None)
    dataset_digest: str | None = holds(optional(text), None)

    def __post_init__(self) -> None:
        if len(self.values) % 8:
            raise ValueError("the columns of a series have one length")
        for numbers in (self.steps, self.timestamps):
            check_length(numbers, len(self))
            if isinstance(numbers, tuple) and len(numbers) == 3 and not isinstance(self, NarrowSeries):
                raise ValueError("a narrow column makes another kind of series")

    def __len__(self) -> int:
        return len(self.values) // 8

    def points(self) -> Iterator[tuple[float, int, int]]:
        """(value, step, timestamp) of each point, in the order logged."""
        steps, timestamps = integers(self.steps, len(self)), integers(self.timestamps, len(self))
        return zip(floats(self.values), steps, timestamps, strict=False)

    def parts(self, length: int) -> Iterator[Series]:
        """The same points in order, in series of at most so many."""
        for start in range(0, len(self), length):
            end = min(start + length, len(self))
            steps, timestamps = (cut(column, start, end, len(self)) for column in (self.steps, self.timestamps))
            yield replace(self, values=self.values[8 * start : 8 * end], steps=steps, timestamps=timestamps)


@dataclass(frozen=True, slots=True)
class NarrowSeries(Series):
    """A series of which steps or timestamps stay near a line: 1, 2 or 4 bytes each instead of 8 (see ``columns``).

    A kind of its own, so that a reader from before it waits for an upgrade instead of taking it for damage.
    """

    steps: Integers = holds(narrow_column)
    timestamps: Integers = holds(narrow_column)


@dataclass(frozen=True, slots=True)
class Params:
    """Write-once texts."""

    timestamp: int = holds(int64)
    values: dict[str, str] = holds(map_of(text))


@dataclass(frozen=True, slots=True)
class Tags:
    """Texts of which the last one logged counts."""

    timestamp: int = holds(int64)
    values: dict[str, str] = holds(map_of(text))


@dataclass(frozen=True, slots=True)
class TagsDeleted:
    """Tags taken away."""

    timestamp: int = holds(int64)
    keys: tuple[str, ...] = holds(list_of(text))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of the run's artifacts: its path there (``/`` between parts), and the blob that holds its bytes."""

    timestamp: int = holds(int64)
    path: str = holds(text)
    sha256: bytes = holds(digest)
    size: int = holds(unsigned)


@dataclass(frozen=True, slots=True)
class ArtifactDeleted:
    """A file or directory of the run's artifacts taken away."""

    timestamp: int = holds(int64)
    path: str = holds(text)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Datasets and models that the run used."""

    timestamp: int = holds(int64)
    datasets: tuple[Dataset, ...] = holds(list_of(_dataset))
    model_ids: tuple[str, ...] = holds(list_of(text), ())


@dataclass(frozen=True, slots=True)
class Outputs:
    """Logged models that the run put out."""

    timestamp: int = holds(int64)
    models: tuple[ModelOutput, ...] = holds(list_of(_model_output))


@dataclass(frozen=True, slots=True)
class ModelStart:
    """A LoggedModel is created (``mlflow.entities.LoggedModel``)."""

    AS_MAP: ClassVar[bool] = True

    timestamp: int = holds(int64)
    model_id: str = holds(text)
    name: str | None = holds(optional(text), None)
    model_type: str | None = holds(optional(text), None)
    source_run_id: str | None = holds(optional(text), None)
    experiment_name: str | None = holds(optional(text), None)
    params: dict[str, str] = holds(map_of(text), dict)
    tags: dict[str, str] = holds(map_of(text), dict)
    offline_experiment_id: str | None = holds(optional(text), None)


@dataclass(frozen=True, slots=True)
class ModelUpdate:
    """A change to a LoggedModel; ``status`` is MLflow's, artifacts of the model are ``artifact`` entries."""

    AS_MAP: ClassVar[bool] = True

    timestamp: int = holds(int64)
    model_id: str = holds(text)
    status: str | None = holds(optional(text), None)
    params: dict[str, str] = holds(map_of(text), dict)
    tags: dict[str, str] = holds(map_of(text), dict)
    tags_deleted: tuple[str, ...] = holds(list_of(text), ())
    deleted: bool = holds(boolean, False)
    artifact_path: str | None = holds(optional(text), None)
    artifact_sha256: bytes | None = holds(optional(digest), None)
    artifact_size: int = holds(unsigned, 0)


@dataclass(frozen=True, slots=True)
class ExperimentOperation:
    """An experiment of this spool is changed; ``name`` is the one it has before that. ``operation`` with its ``details``:
    ``create`` (``tags``, ``artifact_location``), ``rename`` (``new_name``), ``delete``, ``restore``, ``set_tag`` (``key``,
    ``value``), ``delete_tag`` (``key``)."""

    AS_MAP: ClassVar[bool] = True

    timestamp: int = holds(int64)
    operation: str = holds(text)
    name: str = holds(text)
    details: dict[str, Any] = holds(map_of(plain), dict)
    offline_experiment_id: str | None = holds(optional(text), None)


@dataclass(frozen=True, slots=True)
class RegistryOperation:
    """An operation on a registered model or one of its versions; ``uid`` names what a create makes."""

    AS_MAP: ClassVar[bool] = True

    timestamp: int = holds(int64)
    operation: str = holds(text)
    name: str = holds(text)
    uid: str | None = holds(optional(text), None)
    details: dict[str, Any] = holds(map_of(plain), dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """A change to a trace. ``operation``: none (it starts; ``info`` is MLflow's TraceInfo as a dictionary), ``locate``
    (only its experiment), ``set_tag`` (``key``, ``value``), ``delete_tag`` (``key``), ``assess`` (``assessment``,
    ``deleted``), ``link`` (``run_id``), ``link_prompts`` (``prompts``: ``name`` and ``version`` each) or ``delete``."""

    AS_MAP: ClassVar[bool] = True

    timestamp: int = holds(int64)
    trace_id: str = holds(text)
    info: dict[str, Any] = holds(map_of(plain), dict)
    operation: str | None = holds(optional(text), None)
    experiment_name: str | None = holds(optional(text), None)
    offline_experiment_id: str | None = holds(optional(text), None)


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans of a trace: serialised OpenTelemetry ``ExportTraceServiceRequest`` bytes."""

    timestamp: int = holds(int64)
    trace_id: str = holds(text)
    otlp: bytes = holds(binary)


@dataclass(frozen=True, slots=True)
class Dropped:
    """What could not be stored between two times (Unix milliseconds): how many records, of which kinds, and why."""

    first: int = holds(int64)
    last: int = holds(int64)
    count: int = holds(unsigned)
    reason: str = holds(text)
    kinds: dict[str, int] = holds(map_of(unsigned), dict)


@dataclass(frozen=True, slots=True)
class SegmentEnd:
    """Last in a segment that was ended in order. ``next_segment``: offset of the one that follows; None: the log ends."""

    next_segment: int | None = holds(optional(unsigned), None)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A quiet writer lives (Unix milliseconds)."""

    timestamp: int = holds(int64)


Record: TypeAlias = (
    Open
    | RunUpdate
    | RunEnd
    | Metrics
    | Series
    | Params
    | Tags
    | TagsDeleted
    | Artifact
    | ArtifactDeleted
    | Inputs
    | Outputs
    | ModelStart
    | ModelUpdate
    | ExperimentOperation
    | RegistryOperation
    | Trace
    | Spans
    | Dropped
    | SegmentEnd
    | Heartbeat
    | NarrowSeries
)

RECORDS: dict[Kind, type[Record]] = {
    Kind.OPEN: Open,
    Kind.RUN_UPDATE: RunUpdate,
    Kind.RUN_END: RunEnd,
    Kind.METRICS: Metrics,
    Kind.SERIES: Series,
    Kind.PARAMS: Params,
    Kind.TAGS: Tags,
    Kind.TAGS_DELETED: TagsDeleted,
    Kind.ARTIFACT: Artifact,
    Kind.ARTIFACT_DELETED: ArtifactDeleted,
    Kind.INPUTS: Inputs,
    Kind.OUTPUTS: Outputs,
    Kind.MODEL_START: ModelStart,
    Kind.MODEL_UPDATE: ModelUpdate,
    Kind.EXPERIMENT: ExperimentOperation,
    Kind.REGISTRY: RegistryOperation,
    Kind.TRACE: Trace,
    Kind.SPANS: Spans,
    Kind.DROPPED: Dropped,
    Kind.SEGMENT_END: SegmentEnd,
    Kind.HEARTBEAT: Heartbeat,
    Kind.SERIES_NARROW: NarrowSeries,
}
