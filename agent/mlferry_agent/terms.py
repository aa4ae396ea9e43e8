"""What the agent was told of its surroundings, as far as a delivery must know it. Plain values."""

from __future__ import annotations

from dataclasses import dataclass

from mlferry_agent.config import OnDeleted
from mlferry_spool.liveness import Machine, this_machine

__all__ = ["Terms"]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a delivery needs to know of its surroundings. ``local_disk``: no other machine writes to this spool.
    ``deleted``: what becomes of a run that somebody deleted on the server."""

    stale_after_s: float = 900.0
    local_disk: bool = True
    machine: Machine = this_machine()  # noqa: RUF009 - cached, the same for the life of the process
    deleted: OnDeleted = "quarantine"

    @property
    def patience_s(self) -> float:
        """Seconds that damage must persist before it is believed: pages of network file systems arrive out of order."""
        return 0.0 if self.local_disk else 10.0
