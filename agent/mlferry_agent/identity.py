"""Which run is which: a run that was made offline gets exactly one run on the server.

Why this is hard. MLflow makes run ids on the server, and ``runs/create`` repeated makes another run; and whether a create
whose answer never came was carried out, nobody can tell. So:

1. Before anything else the server is asked for a run that carries our tag (``mlferry.run_id``): an earlier life of this
   agent, another machine, or a bundle may have made it.
2. That we are about to create is written down first. An answer that does not come leads back to 1, after a wait.
3. A server that hung may carry out a create after we looked for it. Whoever doubted looks again at the end of the run and
   for some minutes after the create, keeps the run that it has, and deletes the others, which nothing was ever written to.

A run id that exists on the server (reserved there beforehand and given to the job) is adopted as it is.

Ids of experiments are small numbers, which a server that was restored from a backup, or replaced by an empty one, gives out
again. So what the ledger says of an experiment is believed for a few seconds only; then the server is asked whether it is
still the one (``_is_ours``), before a run goes into somebody else's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from mlferry_agent import encoding, requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.errors import RunDelayed, RunDeleted, RunGone, RunParked, Unencodable
from mlferry_agent.ledger import Ledger, RunRow
from mlferry_agent.limits import MAX_RUN_NAME_LENGTH
from mlferry_agent.planner import Target
from mlferry_agent.translation import RUN_ID_TAG
from mlferry_spool.introductions import now_ms
from mlferry_spool.records import Open

__all__ = ["Identity"]

_PARENT_TAG = "mlflow.parentRunId"
_DEFAULT_EXPERIMENT = "Default"
_DELETED = "the run was deleted on the server"

#: A server that hung may carry out a create for so long after we asked for it (milliseconds).
_LATEST_MS = 300_000

#: How deep runs may be nested before we suspect a circle.
#: Beyond: the parent further up is not made first, and is named by its offline id.
#: Test: tests/unit/agent/test_identity.py::test_parents_in_a_circle_are_delivered_all_the_same
_MAX_DEPTH = 32

#: Seconds for which an experiment is believed to be what it was: no server is replaced by another one in less.
_SAME_SERVER_S = 5.0


class Identity:
    """Finds or makes the server's side of experiments and runs.

    Args:
        opening_of: the OPEN record of a run in the spool.
        name_of: what an experiment of the spool, given by its offline id, is called now.
        recreates: what somebody deleted on the server is made again (a run), or restored (an experiment).
    """

    def __init__(
        self,
        ledger: Ledger,
        courier: Courier,
        opening_of: Callable[[str], Open | None],
        name_of: Callable[[str], str | None] = lambda offline_id: None,
        *,
        recreates: bool = False,
    ) -> None:
        self._ledger = ledger
        self._courier = courier
        self._opening_of = opening_of
        self._name_of = name_of
        self._recreates = recreates
        self._seen_at: dict[str, float] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def target(self, opening: Open, directory: str, depth: int = 0) -> Target:
        """The server's run for a spooled one; made if there is none.

        Raises:
            RunParked: it cannot be made, or was deleted there. RunDelayed: the server is unwell.
            GaveUp, Misconfigured: as ``Courier.ask``.
        """
        run_id = opening.run_id
        assert run_id is not None
        parent = await self._parent(opening, depth)
        async with self._locks.setdefault(run_id, asyncio.Lock()):
            row = self._ledger.run(run_id) or RunRow(run_id, directory, opening.run_name, opening.experiment_name)
            if row.server_run_id is None:
                row = await self._find_or_create(row, opening, parent)
            return Target(row.server_run_id or "", row.artifact_uri or "", opening.workspace)

    async def run(self, run_id: str) -> str:
        """The server's id of a run of the spool, which is made there if need be; any other id stays as it is.

        Raises: as ``target``, but for RunParked: then nobody knows the run by another id.
        """
        known = self._ledger.server_run_id(run_id)
        opening = self._opening_of(run_id) if known is None else None
        if opening is None or opening.run_id != run_id:
            return known or run_id
        try:
            return (await self.target(opening, "")).server_run_id
        except RunParked:
            return run_id

    async def loss(self, target: Target) -> RunGone | None:
        """What became of a run of which the server says that it is not there, or not active; None if it is both."""
        reply = await self._courier.ask(requests.get_run(target.server_run_id, target.workspace))
        if reply.verdict is Verdict.GONE:
            return RunGone("the server does not know the run any more")
        return RunDeleted(_DELETED) if _info(reply).get("lifecycle_stage") == "deleted" else None

    async def revive_experiment(self, experiment_id: str, workspace: str | None) -> None:
        """Restore an experiment that is deleted, and with it its runs, as MLflow does; forget one that is gone, so that it
        is found or made anew. Raises RunDelayed, GaveUp, Misconfigured: the server is unwell."""
        reply = await self._courier.ask(requests.get_experiment(experiment_id, workspace))
        _raise_if_unwell(reply)
        if reply.verdict is Verdict.GONE:
            with self._ledger.transaction():
                self._ledger.forget_experiment_id(experiment_id)
        elif _experiment(reply).get("lifecycle_stage") == "deleted":
            _raise_if_unwell(await self._courier.ask(requests.restore_experiment(experiment_id, workspace)))

    async def settle_doubt(self, row: RunRow, target: Target) -> None:
        """Delete runs that a create of ours made after we had stopped waiting for it."""
        if not row.in_doubt or row.experiment_id is None:
            return
        for info in await self._search(row.run_id, [row.experiment_id], target.workspace, only_bare=True):
            if info["run_id"] != row.server_run_id and _is_active(info):
                await self._courier.ask(requests.delete_run(str(info["run_id"]), target.workspace))
        if not 0 <= now_ms() - row.in_doubt < _LATEST_MS:
            self._put(replace(row, in_doubt=0))

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
        if sum(_is_active(one) for one in found) > 1:
            row = replace(row, in_doubt=now_ms())  # a life of which no ledger knows any more has doubted
        if info is None or (self._recreates and info.get("lifecycle_stage") == "deleted"):
            row, info = await self._create(row, opening, parent)
        if info.get("lifecycle_stage") == "deleted":
            raise RunDeleted(_DELETED)
        row = replace(row, server_run_id=str(info["run_id"]), artifact_uri=str(info.get("artifact_uri", "")))
        row = replace(row, experiment_id=str(info.get("experiment_id", experiment_id)), status=_word(info, "status"))
        return self._put(row)

    async def _create(self, row: RunRow, opening: Open, parent: str | None) -> tuple[RunRow, dict[str, Any]]:
        name = opening.run_name
        request = self._creation(row, opening, parent, name)
        attempts, doubted, restored = self._courier.attempts(), row.in_doubt, 0
        while True:
            row = self._put(replace(row, in_doubt=now_ms()), durable=True)
            reply = await self._courier.ask_once(request, attempts)
            info = _info(reply)
            if reply.verdict is Verdict.ACCEPTED and info:
                return (row if attempts.made else replace(row, in_doubt=doubted)), info
            _raise_if_unwell(reply)
            if reply.verdict not in (Verdict.RETRY, Verdict.ACCEPTED):
                if name is not None and len(name) > MAX_RUN_NAME_LENGTH:
                    name = name[:MAX_RUN_NAME_LENGTH]
                    request = self._creation(row, opening, parent, name)
                    continue
                lost = await self._no_creation(row, opening, reply)
                restored += lost is None
                if lost is None and restored < 3:
                    continue
                self._ledger.forget_experiment(opening.workspace, opening.experiment_name or _DEFAULT_EXPERIMENT)
                raise lost or RunDelayed(reply.reason)
            found = await self._search(row.run_id, [row.experiment_id or ""], opening.workspace)
            if found:
                return row, found[0]
            if 200 <= reply.answer.status < 300 and json_object(reply.answer.body) is not None:
                raise RunDelayed("the server says that it made the run, and shows none")

    async def _no_creation(self, row: RunRow, opening: Open, refused: Reply) -> RunParked | None:
        """Why a run cannot be created: mostly, because its experiment was deleted. None: it was, and another run of ours has
        had it restored by now."""
        reason = f"the server refuses to create the run: {refused.reason}"
        if refused.verdict is Verdict.GONE:
            found = await self._courier.ask(requests.get_experiment(row.experiment_id or "", opening.workspace))
            if _experiment(found).get("lifecycle_stage") == "deleted":
                return RunDeleted(reason)
            if found.verdict is Verdict.GONE and opening.experiment_id is None:  # else it may never have been there
                return RunGone(reason)
            if self._recreates and _experiment(found).get("lifecycle_stage") == "active":
                return None
        return RunParked(reason)

    def _creation(self, row: RunRow, opening: Open, parent: str | None, name: str | None) -> requests.Request:
        try:
            tags = [encoding.tag(RUN_ID_TAG, row.run_id)]
            if parent is not None:
                tags.append(encoding.tag(_PARENT_TAG, parent))
            return requests.create_run(
                row.experiment_id or "",
                opening.start_time or opening.opened,
                name,
                opening.user,
                tags,
                opening.workspace,
            )
        except Unencodable as error:
            raise RunParked(error.reason) from error

    async def _search(
        self, run_id: str, experiments: Sequence[str], workspace: str | None, *, only_bare: bool = False
    ) -> list[dict[str, Any]]:
        """Runs with our tag: active ones first, of these the ones that hold data, then the oldest. ``only_bare``: those
        that hold no data; a copy that somebody made of the run carries our tag too."""
        request = requests.search_runs_by_tag(experiments, RUN_ID_TAG, run_id, workspace)
        reply = await self._courier.ask(request)
        _raise_if_unwell(reply)
        if reply.verdict is not Verdict.ACCEPTED:
            raise RunParked(f"the server cannot be asked for the run: {reply.reason}")
        body = json_object(reply.answer.body) or {}
        runs: list[dict[str, Any]] = body.get("runs", [])  # type: ignore[assignment]
        runs = [run for run in runs if not (only_bare and _holds_data(run))]
        if self._recreates:
            runs = [run for run in runs if _is_active(run["info"])]
        return [run["info"] for run in sorted(runs, key=_rank)]

    async def _reserved(self, opening: Open) -> dict[str, Any] | None:
        """A run that exists on the server under this very id: reserved there and handed to the job. One that we may not see
        is somebody else's, and raises RunParked."""
        if not opening.resumed:
            return None
        reply = await self._courier.ask(requests.get_run(opening.run_id or "", opening.workspace))
        if reply.judgement.status == 403:
            raise RunParked(f"the server keeps the run from us: {reply.reason}")
        return _info(reply) or None

    async def _experiment(self, opening: Open) -> str:
        if opening.experiment_id is not None:
            return opening.experiment_id
        return await self.experiment(opening.workspace, opening.experiment_name, opening.offline_experiment_id)

    async def experiment(self, workspace: str | None, name: str | None, offline_id: str | None = None) -> str:
        """The server's id of an experiment: the one that an experiment of the spool became, else by its name.

        Raises:
            RunParked: the server refuses it, or has it deleted. RunDelayed, GaveUp, Misconfigured: it is unwell.
        """
        before = name
        name = (self._name_of(offline_id) if offline_id is not None else None) or name or _DEFAULT_EXPERIMENT
        async with self._locks.setdefault(f"experiment {workspace} {name}", asyncio.Lock()):
            placed = None if offline_id is None else self._ledger.experiment_of(offline_id)
            if placed is not None and await self._is_ours(placed[0], (name, before), workspace):
                return placed[0]
            known = self._ledger.experiment_id(workspace, name)
            if known is None or not await self._is_ours(known, (name,), workspace):
                known = await self._find_or_create_experiment(name, workspace)
                self._seen_at[known] = time.monotonic()
                with self._ledger.transaction():
                    self._ledger.put_experiment(workspace, name, known)
                    if placed is not None and offline_id is not None:
                        self._ledger.put_offline_experiment(offline_id, known)
            return known

    async def _is_ours(self, experiment_id: str, names: Sequence[str | None], workspace: str | None) -> bool:
        """Whether an experiment that the ledger knows is still what it was. One of another name was renamed there, if the
        server knows a run that we have put into it; else another one was given its id. Raises as ``experiment``."""
        if time.monotonic() - self._seen_at.get(experiment_id, -_SAME_SERVER_S) < _SAME_SERVER_S:
            return True
        reply = await self._courier.ask(requests.get_experiment(experiment_id, workspace))
        _raise_if_unwell(reply)
        if reply.verdict is not Verdict.GONE and (
            _experiment(reply).get("name") in names or await self._holds_ours(experiment_id, workspace)
        ):
            self._seen_at[experiment_id] = time.monotonic()
            return True
        with self._ledger.transaction():
            self._ledger.forget_experiment_id(experiment_id)
        return False

    async def _holds_ours(self, experiment_id: str, workspace: str | None) -> bool:
        """Whether the server knows the last run that we have put into an experiment."""
        run = self._ledger.run_in(experiment_id)
        if run is None or run.server_run_id is None:
            return False
        reply = await self._courier.ask(requests.get_run(run.server_run_id, workspace))
        _raise_if_unwell(reply)
        return reply.verdict is not Verdict.GONE

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
            experiment = _experiment(found)
            if experiment:
                return await self._active(name, experiment, workspace)
            # Once and then another look: it may have been made although the answer never came.
            made = await self._courier.ask_once(make, attempts)
            _raise_if_unwell(found)
            _raise_if_unwell(made)
            if made.verdict is Verdict.ACCEPTED:
                return str((json_object(made.answer.body) or {})["experiment_id"])
            if made.verdict not in (Verdict.ALREADY, Verdict.RETRY):
                raise RunParked(f"the server refuses the experiment {name!r}: {made.reason}")
            contradictions += made.verdict is Verdict.ALREADY
        raise RunParked(f"the experiment {name!r} is there and is not: {found.reason}")

    async def _active(self, name: str, experiment: dict[str, Any], workspace: str | None) -> str:
        """The experiment's id. A run cannot be made in a deleted one. Raises ``RunDeleted``."""
        experiment_id = str(experiment["experiment_id"])
        if experiment.get("lifecycle_stage") == "deleted":
            if not self._recreates:
                raise RunDeleted(
                    f"the experiment {name!r} is deleted on the server; restore it there, then `mlferry retry`"
                )
            await self.revive_experiment(experiment_id, workspace)
        return experiment_id

    def _put(self, row: RunRow, *, durable: bool = False) -> RunRow:
        with self._ledger.transaction(durable=durable):
            self._ledger.put_run(row)
        return row


def _raise_if_unwell(reply: Reply) -> None:
    """An answer 500, or nonsense, after as many attempts as it gets, says more about the server than about the run."""
    if reply.verdict is Verdict.SUSPECT and not 400 <= reply.judgement.status < 500:
        raise RunDelayed(reply.reason)


def _is_active(info: dict[str, Any]) -> bool:
    return info.get("lifecycle_stage") != "deleted"


def _rank(run: dict[str, Any]) -> tuple[bool, bool, int, str]:
    info = run["info"]
    return not _is_active(info), not _holds_data(run), info["start_time"], info["run_id"]


def _holds_data(run: dict[str, Any]) -> bool:
    data = run.get("data") or {}
    return bool(data.get("metrics") or data.get("params"))


def _info(reply: Reply) -> dict[str, Any]:
    """The run's info in an answer of runs/get or runs/create; empty if there is none."""
    if reply.verdict is not Verdict.ACCEPTED:
        return {}
    run = (json_object(reply.answer.body) or {}).get("run")
    info = run.get("info") if isinstance(run, dict) else None
    return info if isinstance(info, dict) else {}


def _experiment(reply: Reply) -> dict[str, Any]:
    """The experiment in an answer; empty if there is none."""
    if reply.verdict is not Verdict.ACCEPTED:
        return {}
    found = (json_object(reply.answer.body) or {}).get("experiment")
    return found if isinstance(found, dict) else {}


def _word(info: dict[str, Any], name: str) -> str | None:
    value = info.get(name)
    return value if isinstance(value, str) else None
