"""Experiments of the spool -> experiments of the server: one each, whoever needs it first.

An experiment is placed under the name that it has in the end, so that a rename which the spool already knows never shows a
second experiment on the server. Whether it is deleted is no operation to repeat but a state to reach, and the last thing to
say: no run can be made in an experiment that is deleted, so it is restored for as long as runs of it wait to be delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlferry_agent import encoding, requests
from mlferry_agent import entity_requests as entities
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.errors import RecordRefused, RunParked
from mlferry_agent.identity import Identity
from mlferry_agent.ledger import Ledger
from mlferry_agent.models import settled
from mlferry_spool.fold_store import DEFAULT_EXPERIMENT_ID, ExperimentState, candidate_ids
from mlferry_spool.records import ExperimentOperation

__all__ = ["Experiments"]

_DONE = (Verdict.ACCEPTED, Verdict.ALREADY)


class Experiments:
    """Finds, makes and changes the server's side of experiments. ``states_of``: the spool's experiments by offline id."""

    def __init__(
        self,
        ledger: Ledger,
        courier: Courier,
        identity: Identity,
        states_of: Callable[[], dict[str, ExperimentState]],
    ) -> None:
        self._ledger = ledger
        self._courier = courier
        self._identity = identity
        self._states_of = states_of

    async def place(self, offline_id: str | None, name: str | None, workspace: str | None) -> str:
        """The server's id of an experiment, which is made there if need be.

        Raises:
            RecordRefused: the server refuses it or has it deleted. RunDelayed, GaveUp, Misconfigured: it is unwell.
        """
        state = None if offline_id is None else self._states_of().get(offline_id)
        placed = None if offline_id is None else self._ledger.experiment_of(offline_id)
        if placed is None and state is not None and state.created is not None:
            await self._make(state, workspace)
        try:
            found = await self._identity.experiment(workspace, name or (state.name if state else None), offline_id)
        except RunParked as error:
            raise RecordRefused(error.reason) from error
        if offline_id is not None and placed is None:
            self._put(offline_id, found, "active")
        return found

    async def known(self, experiment_id: str, workspace: str | None) -> str:
        """The server's id of an experiment of the spool; any other id is the server's own. Raises as ``place``."""
        there = experiment_id in self._states_of()
        return await self.place(experiment_id, None, workspace) if there else experiment_id

    async def _make(self, state: ExperimentState, workspace: str | None) -> None:
        """Create it as it was created; a name that is taken, or an answer that is lost, is for the look-up after this."""
        location = state.artifact_location
        if location is not None and location.startswith("spool:"):
            location = None
        if location is None or self._ledger.experiment_id(workspace, state.name) is not None:
            return
        settled(await self._courier.ask(requests.create_experiment(state.name, (), location, workspace)))

    async def apply(self, record: ExperimentOperation, workspace: str | None) -> None:
        """Deliver an EXPERIMENT record, but for its lifecycle. Raises as ``place``."""
        offline_id = record.offline_experiment_id or next(candidate_ids(record.name))
        experiment_id = await self.place(offline_id, record.name, workspace)
        details = record.details
        match record.operation:
            case "create":
                for key, value in dict(details.get("tags") or {}).items():
                    await self._tag(experiment_id, key, str(value), workspace)
            case "rename":
                await self._rename(offline_id, experiment_id, str(details.get("new_name")), workspace)
            case "set_tag":
                await self._tag(experiment_id, str(details.get("key")), str(details.get("value")), workspace)
            case "delete_tag":
                body: dict[str, Any] = {"experiment_id": experiment_id, "key": str(details.get("key"))}
                reply = await self._courier.ask(entities.experiment("delete-experiment-tag", body, workspace))
                settled(reply, gone_is_done=True)
            case "delete" | "restore":
                pass  # a state to reach: see ``settle``
            case other:
                raise RecordRefused(f"{other!r} is no operation on an experiment")

    async def _tag(self, experiment_id: str, key: str, value: str, workspace: str | None) -> None:
        body = {"experiment_id": experiment_id, **encoding.experiment_tag(key, value)}
        settled(await self._courier.ask(entities.experiment("set-experiment-tag", body, workspace)))

    async def _rename(self, offline_id: str, experiment_id: str, name: str, workspace: str | None) -> None:
        state = self._states_of().get(offline_id)
        name = encoding.experiment_name(state.name if state is not None else name)
        reply = await self._courier.ask(
            entities.experiment("update", {"experiment_id": experiment_id, "new_name": name}, workspace)
        )
        if reply.verdict is not Verdict.ACCEPTED:
            raise RecordRefused(reply.reason)

    async def settle(self, workspace: str | None, awaits: Callable[[str], bool]) -> None:
        """Delete what the spool deleted, unless it ``awaits`` runs; restore what it restored, or what runs wait for.

        Raises:
            RecordRefused: the server refuses it. RunDelayed, GaveUp, Misconfigured: it is unwell.
        """
        for offline_id, state in self._states_of().items():
            placed = self._ledger.experiment_of(offline_id)
            if placed is None or offline_id == DEFAULT_EXPERIMENT_ID:
                continue
            wanted = "active" if state.lifecycle != "active" and awaits(offline_id) else state.lifecycle
            if wanted != placed[1]:
                experiment_id = await self.place(offline_id, state.name, workspace)
                await self._turn(experiment_id, wanted, workspace)
                self._put(offline_id, experiment_id, wanted)

    async def _turn(self, experiment_id: str, lifecycle: str, workspace: str | None) -> None:
        if lifecycle == "active":
            settled(await self._courier.ask(requests.restore_experiment(experiment_id, workspace)))
            return
        reply = await self._courier.ask(entities.experiment("delete", {"experiment_id": experiment_id}, workspace))
        if not _is_deleted(reply):
            settled(reply, gone_is_done=True)

    def _put(self, offline_id: str, experiment_id: str, lifecycle: str) -> None:
        with self._ledger.transaction():
            self._ledger.put_offline_experiment(offline_id, experiment_id, lifecycle)


def _is_deleted(reply: Reply) -> bool:
    """Whether a delete was refused because somebody else was faster."""
    told = json_object(reply.answer.body) or {}
    return reply.verdict is not Verdict.ACCEPTED and "active" in str(told.get("message", ""))
