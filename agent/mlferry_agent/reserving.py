"""Makes a run on the server before its job begins where there is no network; `mlferry prepare`.

The job logs into it by its id (``MLFLOW_RUN_ID``), and delivery finds it by that. Until then it says SCHEDULED. To create a
run is not idempotent, so this one carries a tag of its own, by which it is looked for whenever an answer was lost.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlferry_agent import encoding, requests
from mlferry_agent.answers import Verdict, json_object
from mlferry_agent.courier import Courier, Reply
from mlferry_agent.errors import NotReserved, Unencodable

__all__ = ["Reservation", "Wanted", "reserve"]

_TAG = "mlferry.prepared"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the run shall be."""

    experiment: str = "Default"
    name: str | None = None
    user: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """The server's ids."""

    run_id: str
    experiment_id: str
    name: str


async def reserve(courier: Courier, wanted: Wanted) -> Reservation:
    """Make the run, and its experiment if there is none of this name.

    Raises:
        NotReserved: the server refuses it. GaveUp, Misconfigured: as ``Courier.ask``.
    """
    try:
        experiment_id = await _experiment(courier, wanted.experiment)
        info = await _run(courier, wanted, experiment_id)
        run_id = str(info["run_id"])
        done = await courier.ask(requests.update_run(run_id, "SCHEDULED"))
    except Unencodable as error:
        raise NotReserved(error.reason) from error
    if done.verdict is not Verdict.ACCEPTED:
        raise NotReserved(f"run {run_id} is there, and is not ours to change: {done.reason}")
    return Reservation(run_id, experiment_id, str(info.get("run_name", "")))


async def _experiment(courier: Courier, name: str) -> str:
    look, make = requests.get_experiment_by_name(name), requests.create_experiment(name)
    attempts = courier.attempts()
    while True:
        found = await courier.ask(look)
        if found.verdict is Verdict.ACCEPTED:
            experiment = _object(found, "experiment")
            if experiment.get("lifecycle_stage") == "deleted":
                raise NotReserved(
                    f"the experiment {name!r} is deleted on the server; restore it there, or name another"
                )
            return str(experiment["experiment_id"])
        # Once and then another look: it may have been made although the answer never came, or by somebody else.
        made = await courier.ask_once(make, attempts)
        if made.verdict is Verdict.ACCEPTED:
            return str((json_object(made.answer.body) or {})["experiment_id"])
        if made.verdict not in (Verdict.ALREADY, Verdict.RETRY):
            raise NotReserved(f"the server refuses the experiment {name!r}: {made.reason}")


async def _run(courier: Courier, wanted: Wanted, experiment_id: str) -> dict[str, object]:
    mark = uuid.uuid4().hex
    told = {**wanted.tags, _TAG: mark}
    if wanted.parent is not None:
        told["mlflow.parentRunId"] = wanted.parent
    tags = [encoding.tag(key, value) for key, value in told.items()]
    now = time.time_ns() // 1_000_000
    make = requests.create_run(experiment_id, now, wanted.name, wanted.user, tags)
    attempts = courier.attempts()
    while True:
        made = await courier.ask_once(make, attempts)
        if made.verdict is Verdict.ACCEPTED:
            return _info(_object(made, "run"))
        if made.verdict is not Verdict.RETRY:
            raise NotReserved(f"the server refuses the run: {made.reason}")
        found = await courier.ask(requests.search_runs_by_tag([experiment_id], _TAG, mark))
        runs = (json_object(found.answer.body) or {}).get("runs") if found.verdict is Verdict.ACCEPTED else None
        if isinstance(runs, list) and runs:
            return _info(runs[0])


def _object(reply: Reply, name: str) -> dict[str, object]:
    found = (json_object(reply.answer.body) or {}).get(name)
    return found if isinstance(found, dict) else {}


def _info(run: Mapping[str, object]) -> dict[str, object]:
    info = run.get("info")
    return info if isinstance(info, dict) else {}
