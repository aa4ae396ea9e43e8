"""The world of one day: jobs that log, an agent that is killed, a server that fails; and at the end, whether all came right.

What must hold. While the day goes on: no run is closed of which a process lives, and after its end a run is told nothing
but what came after it. In the evening, with the server well and every process over: each run, point, param, tag, dataset,
artifact, model and version that was logged stands on the server once; ends are the worst of each last attempt; what the
server refuses, and only that, is in quarantine; and spool, ledger and server agree on the counts.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fakes.tracking import FakeRun
from tests.simulation.agents import Agents
from tests.simulation.days import Action, Day
from tests.simulation.jobs import Job
from tests.simulation.loop import VirtualLoop, in_virtual_time
from tests.simulation.network import Server, Trouble
from tests.simulation.writers import Process

from mlferry_agent import feeds, lanes
from mlferry_agent.status import survey
from mlferry_agent.terms import Terms
from mlferry_spool.layout import new_run_directory, store_directory
from mlferry_spool.liveness import Machine
from mlferry_spool.records import Open, RegistryOperation, RunEnd

__all__ = ["live_through"]

_STALE_AFTER_S, _ON_ITS_WAY_S = 60.0, 1.0
_NAMES = ("experiment one", "experiment two")
_REGISTERED = "a registered model"

#: Where files cost no disk.
_MEMORY = Path("/dev/shm")


class World:
    """Everything that a day happens to."""

    def __init__(self, root: Path, day: Day, loop: VirtualLoop) -> None:
        self.root, self.day, self.loop = root, day, loop
        self.rng = random.Random(day.seed)
        self.server = Server(loop, self.rng)
        self.agents = Agents(root, self.server, loop, self.rng)
        self.jobs: list[Job] = []
        self.store: Process | None = None
        self.versions: dict[str, tuple[Job, str]] = {}
        self.alias: str | None = None
        self.boot = 0
        self.moved_at = -_STALE_AFTER_S
        self.found: list[str] = []
        self._salt = 0
        self.server.on_end = self._on_end

    # -- the day ----------------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        self._start_job(random.Random(self.day.seed))
        for action in self.day.actions:
            rng = random.Random(action.seed)
            done = _VERBS[action.verb](self, action, rng)
            if done is not None:
                await done
            await asyncio.sleep(0.5)
        await self._evening()

    async def _evening(self) -> None:
        """All is well again, every process comes to its end, and the agent has all the time that it needs."""
        self.server.be_well()
        if self.loop.clock_offset_s:
            self.server.catch_up()
        self.loop.clock_offset_s = 0.0
        for job in self.jobs:
            for process in job.alive:
                process.show()
                self._end(job, process, random.Random(self.day.seed))
        await self.agents.stop()
        self._undo_deletions()
        self.agents.start(self._terms())
        for _ in range(40):
            await asyncio.sleep(20)
            if self.agents.is_idle and not (apart := self._apart()):
                break
        else:
            self.found += apart if self.agents.is_idle else ["the agent never comes to rest", *self._apart()]
        await self.agents.stop()

    def _undo_deletions(self) -> None:
        """The operator who keeps what others delete has it restored, and tries again."""
        if self.day.deleted != "quarantine":
            return
        ledger = self.agents.ledger
        for run in self.server.runs.values():
            if run.run_id in self.server.deleted_by_hand:
                run.deleted = False
        for row in ledger.runs():
            if row.parked is not None:
                ledger.retry(row.run_id)

    def _terms(self) -> Terms:
        machine = Machine("node1", "machine-1", f"boot-{self.boot}")
        return Terms(_STALE_AFTER_S, not self.day.is_shared, machine, self.day.deleted)  # type: ignore[arg-type]

    # -- jobs -------------------------------------------------------------------------------------------------------------

    def _job(self, action: Action) -> Job:
        return self.jobs[action.number % len(self.jobs)]

    def _process(self, action: Action, rng: random.Random) -> Process | None:
        alive = self._job(action).alive
        return rng.choice(alive) if alive else None

    def _start_job(self, rng: random.Random) -> None:
        if len(self.jobs) == 4:
            return
        run_id = f"{len(self.jobs):032x}"
        parent = rng.choice(self.jobs).run_id if self.jobs and rng.random() < 0.5 else None
        directory = new_run_directory(self.root, run_id, self.now_ms)
        self.jobs.append(Job(run_id, rng.choice(_NAMES), directory, parent))
        self._requeue(self.jobs[-1], rng)

    def _requeue(self, job: Job, rng: random.Random) -> None:
        """A new attempt, when nothing of the one before lives."""
        if not job.alive and len(job.attempts) < 4:
            job.attempts.append([])
            self._add_rank(job, rng)

    def _add_rank(self, job: Job, rng: random.Random) -> None:
        attempt = job.attempts[-1]
        if len(attempt) == 3 or (attempt and not job.alive):
            return
        is_here = not self.day.is_shared or rng.random() < 0.5
        node, boot = ("1", f"boot-{self.boot}") if is_here else ("2", "boot of another")
        number = f"{len(job.attempts)}-{len(attempt)}"
        opening = Open(
            writer_id=f"w-{len(self.jobs)}-{number}",
            run_id=job.run_id,
            experiment_name=job.experiment,
            start_time=self.now_ms,
            parent_run_id=job.parent_run_id,
            attempt=str(len(job.attempts)),
            rank=len(attempt),
            host=f"node{node}",
            machine_id=f"machine-{node}",
            boot_id=boot,
            opened=self.now_ms,
            locked=True,
        )
        self._salt += 100
        attempt.append(Process(job.directory, opening, self._salt, self.loop.true_ns, is_here=is_here))

    @property
    def now_ms(self) -> int:
        return self.loop.true_ns() // 1_000_000

    def log(self, action: Action, rng: random.Random) -> None:
        process = self._process(action, rng)
        if process is not None:
            self._job(action).log(process, rng, self.now_ms)

    def rotate(self, action: Action, rng: random.Random) -> None:
        process = self._process(action, rng)
        if process is not None:
            process.rotate()

    def end_job(self, action: Action, rng: random.Random) -> None:
        for process in self._job(action).alive:
            self._end(self._job(action), process, rng)

    def _end(self, job: Job, process: Process, rng: random.Random) -> None:
        status = rng.choice(("FINISHED", "FINISHED", "FAILED", "KILLED", "RUNNING", None))
        if status is None:
            process.die(torn=rng.randrange(30))
            return
        process.end(None if status == "RUNNING" else RunEnd(self.now_ms, status))
        job.statuses[process.opening.writer_id] = status

    def kill_process(self, action: Action, rng: random.Random) -> None:
        process = self._process(action, rng)
        if process is not None:
            process.die(torn=rng.randrange(30))

    async def requeue(self, action: Action, rng: random.Random) -> None:
        await asyncio.sleep(1)
        self._requeue(self._job(action), rng)

    def register(self, action: Action, rng: random.Random) -> None:
        """A version of a registered model, made of a run or of a model of it."""
        job, uid, now = self._job(action), f"uid-{len(self.versions)}", self.now_ms
        if self.store is None:
            opening = Open(writer_id="w-store", role="guest")
            self.store = Process(store_directory(self.root), opening, 1, self.loop.true_ns)
            self.store.put(RegistryOperation(now, "create_registered_model", _REGISTERED))
        source = f"models:/{rng.choice(job.models).model_id}" if job.models else f"runs:/{job.run_id}/model"
        details = {"source": source, "run_id": job.run_id}
        self.store.put(RegistryOperation(now, "create_model_version", _REGISTERED, uid, details))
        told = {"alias": "best", "uid": uid}
        self.store.put(RegistryOperation(now, "set_registered_model_alias", _REGISTERED, None, told))
        self.versions[uid], self.alias = (job, source), uid
        self.store.sync()

    def hide(self, action: Action, rng: random.Random) -> None:
        process = self._process(action, rng)
        if process is not None and self.day.is_shared:
            process.hide()

    def show(self, action: Action, rng: random.Random) -> None:
        for process in self._job(action).alive:
            process.show()

    # -- the agent, the machine, the server -------------------------------------------------------------------------------

    def start_agent(self, action: Action, rng: random.Random) -> None:
        self.agents.start(self._terms())

    def sync(self, action: Action, rng: random.Random) -> None:
        self.agents.start(self._terms(), once=True)

    async def kill_agent(self, action: Action, rng: random.Random) -> None:
        await self.agents.kill(action.number % 250 + 1)

    async def stop_agent(self, action: Action, rng: random.Random) -> None:
        await self.agents.stop()

    async def wait(self, action: Action, rng: random.Random) -> None:
        await asyncio.sleep(rng.choice((0.1, 1, 5, 20, 90)))

    def trouble(self, action: Action, rng: random.Random) -> None:
        self.server.trouble(action.number % 12, rng.choice(list(Trouble)))

    async def outage(self, action: Action, rng: random.Random) -> None:
        self.server.outage = rng.choice((Trouble.BEFORE, Trouble.GATEWAY, Trouble.PAGE, Trouble.BUSY, Trouble.STRANGER))
        await asyncio.sleep(rng.choice((1, 30, 300)))
        self.server.outage = None

    async def power_cut(self, action: Action, rng: random.Random) -> None:
        await self.agents.lose_power()
        self.boot += 1
        for job in self.jobs:
            for process in job.alive:
                if process.is_here:
                    process.show()
                    job.lose(process.lose_power())

    def note_synced(self, action: Action, rng: random.Random) -> None:
        self.agents.note_synced()
        for process in self._job(action).alive:
            process.show()
            process.sync()

    async def lose_ledger(self, action: Action, rng: random.Random) -> None:
        self.server.catch_up()  # that a create may still come is what the ledger knew
        await self.agents.lose_ledger()

    def move_clock(self, action: Action, rng: random.Random) -> None:
        self.server.catch_up()  # how long ago we doubted cannot be told any more
        self.moved_at = self.loop.time()
        self.loop.clock_offset_s = rng.choice((-86_400.0, 30 * 86_400.0, 0.0))

    def delete_on_server(self, action: Action, rng: random.Random) -> None:
        job = self._job(action)
        self.server.catch_up()  # whoever deletes one of two twins has the other adopted
        active = self.server.runs_of(job.run_id)
        for run in active if len(active) == 1 else ():
            if not job.is_deleted_by_hand:
                run.deleted = job.is_deleted_by_hand = True
                self.server.deleted_by_hand.add(run.run_id)

    def meddle_on_server(self, action: Action, rng: random.Random) -> None:
        active = self.server.runs_of(self._job(action).run_id)
        for run in active if len(active) == 1 else ():
            run.tags["theirs"] = "1"
            run.points.add(("theirs", 1, 1, "1.0"))
            run.name = "their name"

    # -- what must hold ---------------------------------------------------------------------------------------------------

    def _on_end(self, run: FakeRun, status: str) -> None:
        """The server was told that a run is over."""
        job = self._find(run.tags["mlferry.run_id"])
        clock_is_trusted = self.loop.time() - self.moved_at > _STALE_AFTER_S
        for process in job.alive:
            ages = [(self.loop.wall_ns() - sign) / 1e9 for sign in process.signs]
            # While the request was on its way anything may have begun.
            known = [age - self.loop.clock_offset_s > _ON_ITS_WAY_S for age in ages]
            if any(
                was_known and (process.is_here or (clock_is_trusted and age <= _STALE_AFTER_S))
                for was_known, age in zip(known, ages, strict=True)
            ):
                self.found.append(f"{run.run_id} was told {status} while {process.opening.writer_id} lives")

    def _apart(self) -> list[str]:
        return [*self._runs_apart(), *self._models_apart(), *self._versions_apart(), *self._counts_apart()]

    def _runs_apart(self) -> list[str]:
        found = []
        for job in self.jobs:
            there = [run for run in self.server.runs.values() if run.tags.get("mlferry.run_id") == job.run_id]
            active = [run for run in there if not run.deleted]
            by_hand = [run for run in there if run.run_id in self.server.deleted_by_hand]
            stray = [run for run in there if run.deleted and run not in by_hand and _holds_data(run)]
            found += [f"{job.run_id}: a run with data was deleted" for _ in stray]
            if not active and by_hand and self.day.deleted != "quarantine":
                continue  # nobody had anything to say to it any more, or it was dropped
            if len(active) != 1:
                found.append(f"{job.run_id}: {len(active)} runs")
                continue
            found += [f"{job.run_id}: {what}" for what in [*job.apart(active[0]), *self._parent_apart(job, active[0])]]
        return found

    def _parent_apart(self, job: Job, run: FakeRun) -> list[str]:
        told = run.tags.get("mlflow.parentRunId")
        parent = self.server.runs.get(told or "")
        named = None if parent is None else parent.tags.get("mlferry.run_id")
        if told is not None and told == job.parent_run_id and self._find(told).is_deleted_by_hand:
            return []  # it was not there when the child was made
        return [] if named == job.parent_run_id else [f"parent {told}"]

    def _find(self, run_id: str) -> Job:
        return next(job for job in self.jobs if job.run_id == run_id)

    def _models_apart(self) -> list[str]:
        found = []
        for job in self.jobs:
            active = self.server.runs_of(job.run_id)
            for model in job.models if active else ():
                there = [
                    one for one in self.server.models.values() if one.tags.get("mlferry.model_id") == model.model_id
                ]
                if len(there) != 1:
                    found.append(f"{len(there)} models {model.model_id}")
                    continue
                tags = {key: value for key, value in there[0].tags.items() if not key.startswith("mlferry.")}
                state = (there[0].params, tags, there[0].artifacts, there[0].status)
                if state != (model.params, model.tags, model.artifacts, "LOGGED_MODEL_READY"):
                    found.append(f"model {model.model_id}: {state}")
                if there[0].model_id not in self.server.outputs.get(active[0].run_id, ()):
                    found.append(f"model {model.model_id} is no output of its run")
        return found

    def _versions_apart(self) -> list[str]:
        found, versions = [], self.server.registered.get(_REGISTERED, {}).values()
        for uid, (job, _source) in self.versions.items():
            there = [one for one in versions if one.tags.get("mlferry.version_uid") == uid]
            if len(there) != 1:
                found.append(f"{len(there)} versions for {uid}")
            elif job.is_deleted_by_hand:
                continue  # where its run was made unknown before it, the version names it as the spool does
            elif self.server.runs[there[0].run_id].tags.get("mlferry.run_id") != job.run_id:
                found.append(f"version {uid} names the run {there[0].run_id}")
            elif uid == self.alias and self.server.aliases.get((_REGISTERED, "best")) != str(there[0].number):
                found.append(f"the alias is {self.server.aliases}")
        return found

    def _counts_apart(self) -> list[str]:
        """Spool and ledger, as ``mlferry status`` tells them."""
        refused = {job.run_id: job.refused for job in self.jobs}
        found = []
        for status in survey(self.root, self.agents.ledger):
            names = {entry.name for entry in status.quarantined}
            due = refused.get(status.run_id, set())
            if status.given_up_why is None and names != due:
                found.append(f"{status.run_id}: {status.quarantined} in quarantine instead of {sorted(due)}")
            if (
                status.is_pending
                or status.troubles
                or status.lost
                or (status.parked and self.day.deleted == "quarantine")
            ):
                found.append(f"{status.run_id}: pending {status.pending}, parked {status.parked}, {status.troubles}")
        return found


def _holds_data(run: FakeRun) -> bool:
    return bool(run.points or run.params or run.artifacts)


_VERBS: dict[str, Callable[[World, Action, random.Random], Coroutine[Any, Any, None] | None]] = {
    "log": World.log,
    "rotate": World.rotate,
    "start a job": lambda world, action, rng: world._start_job(rng),
    "add a rank": lambda world, action, rng: world._add_rank(world._job(action), rng),
    "end a job": World.end_job,
    "kill a process": World.kill_process,
    "requeue": World.requeue,
    "register": World.register,
    "start the agent": World.start_agent,
    "sync": World.sync,
    "kill the agent": World.kill_agent,
    "stop the agent": World.stop_agent,
    "wait": World.wait,
    "trouble": World.trouble,
    "outage": World.outage,
    "power cut": World.power_cut,
    "note what is synced": World.note_synced,
    "lose the ledger": World.lose_ledger,
    "move the clock": World.move_clock,
    "delete on the server": World.delete_on_server,
    "meddle on the server": World.meddle_on_server,
    "hide": World.hide,
    "show": World.show,
}


@contextmanager
def _small_bounds() -> Iterator[None]:
    """Lanes are full, and series come in parts, where logs are as short as these."""
    bounds = {feeds: {"_PART_POINTS": 2}, lanes: {"_MOST_RECORDS": 6, "_MOST_PIECES": 10}}
    with ExitStack() as stack:
        for module, values in bounds.items():
            stack.enter_context(mock.patch.multiple(module, **values))
        yield


@contextmanager
def _errors_alone() -> Iterator[None]:
    """Of what an agent says on such a day."""
    log = logging.getLogger("mlferry.agent")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def live_through(day: Day) -> list[str]:
    """Everything that is not as it must be; an empty list is the proof."""
    root = Path(tempfile.mkdtemp(dir=_MEMORY if _MEMORY.is_dir() else None, prefix="mlferry-day-"))
    worlds: list[World] = []

    async def whole(loop: VirtualLoop) -> None:
        worlds.append(World(root, day, loop))
        await worlds[0].live()

    try:
        with _small_bounds(), _errors_alone():
            in_virtual_time(whole)
    except Exception as error:
        return [*(worlds[0].found if worlds else []), "".join(traceback.format_exception(error))[-2000:]]
    finally:
        shutil.rmtree(root)
        for process in [process for world in worlds for job in world.jobs for process in job.alive]:
            process.die()
    return worlds[0].found
