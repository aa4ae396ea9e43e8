"""Which run is which: a run that was made offline gets exactly one run on the server.

Why this is hard. MLflow makes run ids on the server, and ``runs/create`` repeated makes another run; and whether a create
whose answer never came was carried out, nobody can tell. So:

1. Before anything else the server is asked for a run that carries our tag (``mlferry.run_id``): an earlier life of this
   agent, another machine, or a bundle may have made it.
2. That we are about to create is written down first. An answer that does not come leads back to 1, after a wait.
3. A server that hung may carry out a create after we looked for it. Whoever doubted looks again at the end of the run,
   keeps the oldest of the runs with our tag, and deletes the others, which nothing was ever written to.

A run id that exists on the server (reserved there beforehand and given to the job) is adopted as it is.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mlferry_agent import encoding, requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.errors import RunParked, Unencodable
from mlferry_agent.ledger import Ledger, RunRow
from mlferry_agent.planner import Target
from mlferry_agent.translation import RUN_ID_TAG
from mlferry_spool.records import Open

__all__ = ["Identity"]

_PARENT_TAG = "mlflow.parentRunId"
_DEFAULT_EXPERIMENT = "Default"

#: How deep runs may be nested before we suspect a circle.
_MAX_DEPTH = 32


class Identity:
    """Finds or makes the server's side of experiments and runs. ``opening_of``: the OPEN record of a run in the spool."""

    def __init__(self, ledger: Ledger, courier: Courier, opening_of: Callable[[str], Open | None]) -> None:
        self._ledger = ledger
        self._courier = courier
        self._opening_of = opening_of
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def target(self, opening: Open, directory: str, depth: int = 0) -> Target:
        """The server's run for a spooled one; made if there is none.

        Raises:
            RunParked: it cannot be made, or was deleted there. GaveUp, Misconfigured: as ``Courier.ask``.
        """
        run_id = opening.run_id
        assert run_id is not None
        parent = await self._parent(opening, depth)
        async with self._locks[run_id]:
            row = self._ledger.run(run_id) or RunRow(run_id, directory, opening.run_name, opening.experiment_name)
            if row.server_run_id is None:
                row = await self._find_or_create(row, opening, parent)
            return Target(row.server_run_id or "", row.artifact_uri or "", opening.workspace)

    async def is_deleted(self, target: Target) -> bool:
        """Whether the server has the run no more, or marked as deleted."""
        reply = await self._courier.ask(requests.get_run(target.server_run_id, target.workspace))
        info = _info(reply)
        return reply.verdict is Verdict.GONE or info.get("lifecycle_stage") == "deleted"

    async def settle_doubt(self, row: RunRow, target: Target) -> None:
        """Delete runs that a create of ours made after we had stopped waiting for it."""
        if not row.in_doubt or row.experiment_id is None:
            return
        for info in await self._search(row.run_id, [row.experiment_id], target.workspace):
            if info["run_id"] != row.server_run_id and info.get("lifecycle_stage") == "active":
                await self._courier.ask(requests.delete_run(str(info["run_id"]), target.workspace))
        self._put(replace(row, in_doubt=False))

    async def _parent(self, opening: Open, depth: int) -> str | None:
        """The server's id of the parent run; its offline id where nobody knows it."""
        parent_id = opening.parent_run_id
        if parent_id is None:
            return None
        known = self._ledger.server_run_id(parent_id)
        parent = self._opening_of(parent_id) if known is None and depth < _MAX_DEPTH else None
        if parent is None or parent.run_id != parent_id or parent_id == opening.run_id:
            return known or parent_id
        try:
            return (await self.target(parent, "", depth + 1)).server_run_id
        except RunParked:  # the parent's trouble is not the child's
            return parent_id

    async def _find_or_create(self, row: RunRow, opening: Open, parent: str | None) -> RunRow:
        experiment_id = await self._experiment(opening)
        row = replace(row, experiment_id=experiment_id)
        found = await self._search(row.run_id, [experiment_id], opening.workspace)
        info = found[0] if found else await self._reserved(opening)
        if info is None:
            row, info = await self._create(row, opening, parent)
        if info.get("lifecycle_stage") == "deleted":
            raise RunParked("the run was deleted on the server")
        row = replace(row, server_run_id=str(info["run_id"]), artifact_uri=str(info.get("artifact_uri", "")))
        row = replace(row, experiment_id=str(info.get("experiment_id", experiment_id)), status=_word(info, "status"))
        return self._put(row)

    async def _create(self, row: RunRow, opening: Open, parent: str | None) -> tuple[RunRow, dict[str, Any]]:
        request = self._creation(row, opening, parent)
        attempts, doubted = self._courier.attempts(), row.in_doubt
        while True:
            row = self._put(replace(row, in_doubt=True))
            reply = await self._courier.ask_once(request, attempts)
            info = _info(reply)
            if reply.verdict is Verdict.ACCEPTED and info:
                return replace(row, in_doubt=doubted or attempts.made > 0), info
            if reply.verdict not in (Verdict.RETRY, Verdict.ACCEPTED):
                self._ledger.forget_experiment(opening.workspace, opening.experiment_name or _DEFAULT_EXPERIMENT)
                raise RunParked(f"the server refuses to create the run: {reply.reason}")
            found = await self._search(row.run_id, [row.experiment_id or ""], opening.workspace)
            if found:
                return row, found[0]

    def _creation(self, row: RunRow, opening: Open, parent: str | None) -> requests.Request:
        try:
            tags = [encoding.tag(RUN_ID_TAG, row.run_id)]
            if parent is not None:
                tags.append(encoding.tag(_PARENT_TAG, parent))
            return requests.create_run(
                row.experiment_id or "",
                opening.start_time or opening.opened,
                opening.run_name,
                opening.user,
                tags,
                opening.workspace,
            )
        except Unencodable as error:
            raise RunParked(error.reason) from error

    async def _search(self, run_id: str, experiments: Sequence[str], workspace: str | None) -> list[dict[str, Any]]:
        """Runs with our tag, oldest first, living ones before deleted ones."""
        request = requests.search_runs_by_tag(experiments, RUN_ID_TAG, run_id, workspace)
        reply = await self._courier.ask(request)
        if reply.verdict is not Verdict.ACCEPTED:
            raise RunParked(f"the server cannot be asked for the run: {reply.reason}")
        body = json_object(reply.answer.body) or {}
        infos: list[dict[str, Any]] = [run["info"] for run in body.get("runs", [])]  # type: ignore[attr-defined]
        return sorted(
            infos, key=lambda info: (info.get("lifecycle_stage") == "deleted", info["start_time"], info["run_id"])
        )

    async def _reserved(self, opening: Open) -> dict[str, Any] | None:
        """A run that exists on the server under this very id: reserved there and handed to the job."""
        if not opening.resumed:
            return None
        reply = await self._courier.ask(requests.get_run(opening.run_id or "", opening.workspace))
        return _info(reply) or None

    async def _experiment(self, opening: Open) -> str:
        if opening.experiment_id is not None:
            return opening.experiment_id
        name = opening.experiment_name or _DEFAULT_EXPERIMENT
        async with self._locks[f"experiment {opening.workspace} {name}"]:
            known = self._ledger.experiment_id(opening.workspace, name)
            if known is None:
                known = await self._find_or_create_experiment(name, opening.workspace)
                with self._ledger.transaction():
                    self._ledger.put_experiment(opening.workspace, name, known)
            return known

    async def _find_or_create_experiment(self, name: str, workspace: str | None) -> str:
        try:
            look, make = (
                requests.get_experiment_by_name(name, workspace),
                requests.create_experiment(name, workspace=workspace),
            )
        except Unencodable as error:
            raise RunParked(error.reason) from error
        attempts, contradictions = self._courier.attempts(), 0
        while contradictions < 3:
            found = await self._courier.ask(look)
            experiment = (json_object(found.answer.body) or {}).get("experiment")
            if found.verdict is Verdict.ACCEPTED and isinstance(experiment, dict):
                return _active(name, experiment)
            # Once and then another look: it may have been made although the answer never came.
            made = await self._courier.ask_once(make, attempts)
            if made.verdict is Verdict.ACCEPTED:
                return str((json_object(made.answer.body) or {})["experiment_id"])
            if made.verdict not in (Verdict.ALREADY, Verdict.RETRY):
                raise RunParked(f"the server refuses the experiment {name!r}: {made.reason}")
            contradictions += made.verdict is Verdict.ALREADY
        raise RunParked(f"the experiment {name!r} is there and is not: {found.reason}")

    def _put(self, row: RunRow) -> RunRow:
        with self._ledger.transaction():
            self._ledger.put_run(row)
        return row


def _info(reply: Reply) -> dict[str, Any]:
    """The run's info in an answer of runs/get or runs/create; empty if there is none."""
    if reply.verdict is not Verdict.ACCEPTED:
        return {}
    run = (json_object(reply.answer.body) or {}).get("run")
    info = run.get("info") if isinstance(run, dict) else None
    return info if isinstance(info, dict) else {}


def _active(name: str, experiment: dict[str, Any]) -> str:
    """The experiment's id. Raises ``RunParked`` for a deleted one: a run cannot be made in it."""
    if experiment.get("lifecycle_stage") == "deleted":
        raise RunParked(f"the experiment {name!r} is deleted on the server; restore it there, then `mlferry retry`")
    return str(experiment["experiment_id"])


def _word(info: dict[str, Any], name: str) -> str | None:
    value = info.get(name)
    return value if isinstance(value, str) else None
