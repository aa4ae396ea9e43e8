"""What a thing of the spool is called on the server, and the other way round: what `mlferry id` answers from the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from mlferry_agent.ledger import Ledger

__all__ = ["Names", "look_up"]


@dataclass(frozen=True, slots=True)
class Names:
    """The two names of one thing. ``server_id`` is None for what was not delivered yet."""

    kind: str
    offline_id: str
    server_id: str | None
    name: str | None = None


def look_up(ledger: Ledger, given: str) -> list[Names]:
    """Everything that has this id on either side, or the beginning of it; empty if nothing has."""
    found = [
        *(Names("run", row.run_id, row.server_run_id, row.run_name) for row in ledger.runs()),
        *(Names("model", row.model_id, row.server_model_id) for row in ledger.models()),
        *(Names("experiment", offline_id, experiment_id) for offline_id, experiment_id in ledger.all_experiments()),
        *(Names("model version", row.uid, row.version, row.name) for row in ledger.all_versions()),
    ]
    exact = [names for names in found if given in (names.offline_id, names.server_id)]
    return exact or [names for names in found if _begins(names, given)]


def _begins(names: Names, given: str) -> bool:
    """Numbers of experiments and versions are never meant by their beginning."""
    if names.kind in ("experiment", "model version") or len(given) < 4:
        return False
    return names.offline_id.startswith(given) or (names.server_id or "").startswith(given)
