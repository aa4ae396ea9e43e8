"""How a run stands, told from its logs once they were read to their end: its status, what is missing of it, and its mark."""

from __future__ import annotations

from collections.abc import Sequence

from mlferry_agent.closing import verdict
from mlferry_agent.database.marks import RunMark
from mlferry_agent.database.reading import WriterLog

__all__ = ["REPORT_TAGS", "Standing"]

#: Tags that tell what is missing.
REPORT_TAGS = ("mlferry.dropped", "mlferry.lost", "mlferry.quarantined")


class Standing:
    """Of a run with these logs, of which so many things were set aside."""

    def __init__(self, logs: Sequence[WriterLog], asides: int) -> None:
        self._logs, self._asides = logs, asides

    @property
    def lives(self) -> bool:
        """Whether it may go on."""
        return any(log.lives or log.stuck for log in self._logs)

    @property
    def missing(self) -> int:
        """Records that its program could not store, and those that damage took."""
        return sum(log.dropped + log.lost for log in self._logs)

    def end(self) -> tuple[str, int | None]:
        """MLflow's status and the end time. A run with a log that only a newer mlferry can read is not over."""
        if any(log.stuck or (log.opening is None and log.lives) for log in self._logs):
            return "RUNNING", None
        stands = verdict([facts for log in self._logs if (facts := log.facts()) is not None])
        return stands.status, stands.end_time

    def counts(self) -> dict[str, int]:
        """Of each tag that tells what is missing, as delivery sets them."""
        dropped, lost = sum(log.dropped for log in self._logs), sum(log.lost for log in self._logs)
        return dict(zip(REPORT_TAGS, (dropped, lost, self._asides), strict=True))

    def mark(self, *, is_over: bool) -> str | None:
        """The tag that tells how far the run was imported; None where there is too much to tell."""
        # What was set aside is looked at, and told, each time.
        cursors = {} if self._asides else {log.name: log.cursor for log in self._logs}
        return RunMark(cursors, is_over=is_over, records=sum(log.records for log in self._logs)).encoded()
