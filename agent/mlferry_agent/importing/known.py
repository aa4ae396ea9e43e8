"""What the spool holds of a run already, so that an import adds only what is new. It only reads.

Points are kept as bytes, 24 a point, and looked at one metric at a time: a set of tuples of them would not fit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from mlferry_agent.importing.content import Points
from mlferry_spool.codec import decode
from mlferry_spool.errors import CorruptRecord
from mlferry_spool.fold import RunState
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Metrics, Series
from mlferry_spool.tailer import Entry

__all__ = ["Known"]

_POINT = struct.Struct("<dqq")

#: Key, model, and name and digest of the dataset.
_Metric: TypeAlias = tuple[str, str | None, str | None, str | None]


class Known:
    """A run of the spool, as its logs (``writers``: their directories) tell it; without any, one that is not there.

    Raises:
        SpoolError: a log of it cannot be read. OSError: the disk.
    """

    def __init__(self, run_id: str, writers: Iterable[Path] = ()) -> None:
        self.state = RunState(run_id)
        self._points: dict[_Metric, bytearray] = {}
        for directory in writers:
            self._read(directory)

    def _read(self, directory: Path) -> None:
        reader = LogReader(directory)
        while events := reader.read():
            for event in events:
                if isinstance(event, Entry):
                    self._take(directory.name, event)

    def _take(self, writer: str, entry: Entry) -> None:
        try:
            record = decode(entry.kind, entry.payload)
        except CorruptRecord:
            return
        if isinstance(record, (Metrics, Series)):
            self._add_points(record)
        elif record is not None:
            self.state.add(writer, entry.offset, record)

    def _add_points(self, record: Metrics | Series) -> None:
        links = (record.model_id, record.dataset_name, record.dataset_digest)
        if isinstance(record, Series):
            held = self._points.setdefault((record.key, *links), bytearray())
            for value, step, timestamp in record.points():
                held += _POINT.pack(value, step, timestamp)
            return
        for key, value in record.values.items():
            held = self._points.setdefault((key, *links), bytearray())
            held += _POINT.pack(value, record.step, record.timestamp)

    def new_points(self, points: Points) -> Points:
        """Those that are not there yet, bit by bit; each once."""
        held = self._points.get((points.key, points.model_id, points.dataset_name, points.dataset_digest), b"")
        known = {bytes(held[at : at + 24]) for at in range(0, len(held), 24)}
        size, values, steps, timestamps = len(points.values), points.values, points.steps, points.timestamps
        chunks = (values[at : at + 8] + steps[at : at + 8] + timestamps[at : at + 8] for at in range(0, size, 8))
        new = [chunk for chunk in dict.fromkeys(chunks) if chunk not in known]
        return Points(
            points.key,
            b"".join(chunk[:8] for chunk in new),
            b"".join(chunk[8:16] for chunk in new),
            b"".join(chunk[16:] for chunk in new),
            points.model_id,
            points.dataset_name,
            points.dataset_digest,
        )
