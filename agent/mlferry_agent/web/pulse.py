"""How fast records are acknowledged: the last ten minutes in buckets, counted as they come and not while none do."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

__all__ = ["BUCKET_S", "Pulse"]

BUCKET_S = 5
_BUCKETS = 120

#: The rate that is told is one over so many buckets, the present one left out.
_RECENT = 12


class Pulse:
    """Counts acknowledged records. ``records``: all since the agent started."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.records = 0
        self.started_at = time.time()
        self._clock = clock
        self._began = int(clock() // BUCKET_S)
        self._buckets: deque[tuple[int, int]] = deque(maxlen=_BUCKETS + 1)

    def add(self, run_id: str, records: int) -> None:
        """``records`` more of a run are acknowledged."""
        self.records += records
        bucket = int(self._clock() // BUCKET_S)
        if self._buckets and self._buckets[-1][0] == bucket:
            records += self._buckets.pop()[1]
        self._buckets.append((bucket, records))

    def history(self) -> list[int]:
        """Records a bucket, oldest first, as far as there is any; without the bucket that is not over yet."""
        now = int(self._clock() // BUCKET_S)
        counts = dict(self._buckets)
        return [counts.get(bucket, 0) for bucket in range(max(self._began, now - _BUCKETS), now)]

    def per_second(self) -> float:
        """Over the last minute."""
        recent = self.history()[-_RECENT:]
        return sum(recent) / (len(recent) * BUCKET_S) if recent else 0.0
