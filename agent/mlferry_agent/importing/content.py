"""What every kind of source is read into, before it is written to a spool. Plain values, in MLflow's terms.

Times are Unix milliseconds. Whatever can be large (points, files) is an iterator that is read once, while it is written.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlferry_agent.importing.foreign import File
from mlferry_spool.records import Dataset, ModelOutput

__all__ = [
    "Columns",
    "Experiment",
    "Model",
    "Points",
    "Registered",
    "Run",
    "RunsAlone",
    "Source",
    "Spanned",
    "Version",
    "allowed_key",
]


_INT64 = 1 << 63

#: What MLflow allows in the names of metrics, params and tags (mlflow ``utils.validation``), turned round.
_NOT_ALLOWED = re.compile(r"[^\w\-./: ]")


def allowed_key(name: str) -> str:
    """A name that another tool allows, as MLflow allows it: ``loss (%)`` becomes ``loss ___``."""
    return _NOT_ALLOWED.sub("_", name)


@dataclass(frozen=True, slots=True)
class Points:
    """Points of one metric as columns: little-endian float64 values, int64 steps and timestamps, one of each a point."""

    key: str
    values: bytes
    steps: bytes
    timestamps: bytes
    model_id: str | None = None
    dataset_name: str | None = None
    dataset_digest: str | None = None

    @classmethod
    def of(cls, key: str, points: Sequence[tuple[float, int, int]], *links: str | None) -> Points:
        """Points given as (value, step, timestamp); ``links``: model, and name and digest of the dataset."""
        values, steps, timestamps = zip(*points, strict=True) if points else ((), (), ())
        whole = f"<{len(points)}q"
        columns = struct.pack(f"<{len(points)}d", *values), struct.pack(whole, *steps), struct.pack(whole, *timestamps)
        return cls(key, *columns, *links)


class Columns:
    """Points of metrics as they come, 24 bytes each."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[array[float], array[int], array[int]]] = {}

    def add(self, key: str, value: float, step: int, timestamp: int) -> None:
        """Raises OverflowError: step or timestamp are no int64."""
        if not all(-_INT64 <= number < _INT64 for number in (step, timestamp)):
            raise OverflowError
        values, steps, timestamps = self._of.setdefault(key, (array("d"), array("q"), array("q")))
        values.append(value)
        steps.append(step)
        timestamps.append(timestamp)

    def points(self) -> Iterator[Points]:
        """A metric at a time."""
        for key, columns in self._of.items():
            for column in columns:
                if sys.byteorder == "big":
                    column.byteswap()
            values, steps, timestamps = columns
            yield Points(key, values.tobytes(), steps.tobytes(), timestamps.tobytes())


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment; one that the spool has under this name becomes the same."""

    name: str
    created: int
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """A LoggedModel with its files. ``status`` is MLflow's."""

    model_id: str
    experiment: str
    created: int
    name: str | None = None
    model_type: str | None = None
    source_run_id: str | None = None
    status: str = "PENDING"
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: Iterable[File] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """A run. ``end_time`` is None while it has none; ``status`` is MLflow's; ``models`` are those that it made.
    ``name_is_ours``: the source gives it no name, so that a run of the spool keeps the one it has."""

    run_id: str
    experiment: str
    start_time: int
    status: str
    end_time: int | None = None
    name: str | None = None
    name_is_ours: bool = False
    user: str | None = None
    parent_run_id: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    datasets: Sequence[Dataset] = ()
    input_models: Sequence[str] = ()
    outputs: Sequence[ModelOutput] = ()
    models: Sequence[Model] = ()
    points: Iterable[Points] = ()
    files: Iterable[File] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a registered model. ``uid`` names it for ever; ``number`` is the source's own."""

    number: int
    uid: str
    created: int
    source: str
    run_id: str | None = None
    run_link: str | None = None
    description: str | None = None
    stage: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered model; ``aliases`` name numbers of its versions."""

    name: str
    created: int
    description: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    versions: Sequence[Version] = ()
    aliases: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spanned:
    """A trace: MLflow's TraceInfo as a dictionary, its spans as OTLP requests, its files below the trace's own
    name, and the runs it is linked to."""

    trace_id: str
    experiment: str
    created: int
    info: Mapping[str, object]
    assessments: Sequence[Mapping[str, object]] = ()
    spans: Sequence[bytes] = ()
    files: Iterable[File] = ()
    runs: Sequence[str] = ()


class Source(Protocol):
    """Something to import. ``left_out`` counts what cannot be taken over, by reason, while it is read."""

    kind: str
    left_out: Counter[str]

    def __len__(self) -> int:
        """How many runs it has."""
        ...

    def runs(self) -> Iterator[Run]: ...

    def experiments(self) -> Iterator[Experiment]: ...

    def models(self) -> Iterator[Model]:
        """Those that no run of this source made."""
        ...

    def registered(self) -> Iterator[Registered]: ...

    def traces(self) -> Iterator[Spanned]: ...


class RunsAlone:
    """The rest of a source that knows of nothing but runs."""

    def experiments(self) -> Iterator[Experiment]:
        return iter(())

    def models(self) -> Iterator[Model]:
        return iter(())

    def registered(self) -> Iterator[Registered]:
        return iter(())

    def traces(self) -> Iterator[Spanned]:
        return iter(())
