"""What a run's logs hold, for people: its state, and curves thinned to what a terminal can show.

Memory stays bounded by the number of names, whatever was logged: of each metric at most ``_SAMPLES`` points are kept,
every second one of them let go whenever there are more, beside what must be exact (count, last, least, greatest).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlferry_agent.discovery import RunLog
from mlferry_spool.codec import decode
from mlferry_spool.errors import SpoolError
from mlferry_spool.fold import RunState
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Metrics, Record, RunEnd, Series
from mlferry_spool.tailer import Entry

__all__ = ["Contents", "Curve", "read_contents"]

_SAMPLES = 4096


@dataclass(slots=True)
class Curve:
    """One metric. ``last``: the point that MLflow shows for the run, as (step, Unix milliseconds, value). ``least`` and
    ``greatest`` leave NaN out, and are None where nothing else was logged."""

    count: int = 0
    last: tuple[int, int, float] = (-(1 << 63), 0, math.nan)
    least: float | None = None
    greatest: float | None = None
    _samples: list[tuple[int, int, float]] = field(default_factory=list)
    _stride: int = 1

    def add(self, step: int, timestamp: int, value: float) -> None:
        """One point more."""
        if self.count % self._stride == 0:
            self._samples.append((step, timestamp, value))
            if len(self._samples) > _SAMPLES:
                del self._samples[1::2]
                self._stride *= 2
        self.count += 1
        self.last = max(self.last, (step, timestamp, value), key=lambda point: point[:2])
        if value == value:
            self.least = value if self.least is None else min(self.least, value)
            self.greatest = value if self.greatest is None else max(self.greatest, value)

    def points(self) -> list[tuple[float, float]]:
        """Some of its finite points as (x, value), in order, the last among them. x is the step; where all steps are the
        same, seconds since the first point."""
        points = sorted(point for point in {*self._samples, self.last} if math.isfinite(point[2]))
        if not points:
            return []
        if points[0][0] != points[-1][0]:
            return [(float(step), value) for step, _, value in points]
        first = min(timestamp for _, timestamp, _ in points)
        return sorted(((timestamp - first) / 1000, value) for _, timestamp, value in points)

    @property
    def is_by_time(self) -> bool:
        """Whether x is time, since its steps tell nothing."""
        steps = {step for step, _, _ in self._samples}
        return self.count > 1 and len(steps) == 1


class Contents:
    """A run as its logs tell it; ``refresh`` reads what is new. ``lost``: records that cannot be read."""

    def __init__(self, run: RunLog) -> None:
        self.run = run
        self.state = RunState(run.run_id)
        self.curves: dict[str, Curve] = {}
        self.lost = 0
        self.ended = False
        self._readers: dict[str, LogReader] = {}

    def refresh(self) -> int:
        """Read on; returns how many records were new. Raises nothing for what it finds."""
        found = 0
        try:
            writers = list(self.run.writers())
        except OSError:
            return 0
        for writer in writers:
            reader = self._readers.get(writer.name) or self._readers.setdefault(writer.name, LogReader(writer))
            found += self._read(reader)
        return found

    def _read(self, reader: LogReader) -> int:
        found = 0
        try:
            while events := reader.read():
                found += len(events)
                for event in events:
                    if isinstance(event, Entry):
                        self._take(reader.directory.name, event)
                    else:
                        self.lost += event.frames or 0
        except (SpoolError, OSError):
            self.lost += 1
        return found

    def _take(self, writer: str, entry: Entry) -> None:
        try:
            record = decode(entry.kind, entry.payload)
        except SpoolError:
            self.lost += 1
            return
        if record is not None:
            self.state.add(writer, entry.offset, record)
            self.ended |= isinstance(record, RunEnd)
            for key, step, timestamp, value in _points(record):
                self.curves.setdefault(key, Curve()).add(step, timestamp, value)


def _points(record: Record) -> Iterable[tuple[str, int, int, float]]:
    if isinstance(record, Metrics):
        return [(key, record.step, record.timestamp, value) for key, value in record.values.items()]
    if isinstance(record, Series):
        return [(record.key, step, timestamp, value) for value, step, timestamp in record.points()]
    return ()


def read_contents(run: RunLog) -> Contents:
    """Everything that a run's logs hold now."""
    contents = Contents(run)
    contents.refresh()
    return contents
