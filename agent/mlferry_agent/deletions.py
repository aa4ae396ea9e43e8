"""What becomes of a run that somebody deleted on the server: as the operator chose (``--deleted``).

Owns what is done in the ledger and about the experiment; the next delivery of the run then does the rest. To recreate is to
forget: the run is looked for and made as if it had never been delivered, so whatever is cut short in between comes out the
same when it is repeated.
"""

from __future__ import annotations

from mlferry_agent.config import OnDeleted
from mlferry_agent.errors import RunGone
from mlferry_agent.identity import Identity
from mlferry_agent.ledger import Ledger

__all__ = ["Deletions"]


class Deletions:
    """Carries out one policy, ``recreate`` or ``drop``."""

    def __init__(self, ledger: Ledger, identity: Identity, policy: OnDeleted) -> None:
        self._ledger = ledger
        self._identity = identity
        self._policy = policy

    async def settle(self, run_id: str, loss: RunGone) -> None:
        """Prepare for delivering the run once more.

        Raises:
            RunDelayed, GaveUp, Misconfigured: the server is unwell; nothing has changed.
        """
        if self._policy == "drop":
            with self._ledger.transaction():
                self._ledger.give_up(run_id, loss.reason)
            return
        row = self._ledger.run(run_id)
        if row is not None and row.experiment_id is not None:
            await self._identity.revive_experiment(row.experiment_id, self._ledger.workspace(run_id))
        self._ledger.forget(run_id)
