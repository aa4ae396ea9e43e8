"""An MLflow server in memory: what the agent relies on of the real one, and failures on demand.

Owns runs, params, tags, points, inputs and artifacts with the semantics of a SQL store: ids are the server's, a create is
not idempotent, params are write-once, points are one by (key, timestamp, step, value), deleted runs take nothing, batches
have limits. It is a ``courier.Sender``; nothing here opens a socket or looks at a clock.

``fault`` decides for each request how it goes wrong: not at all (None), with an answer of its own, or by a ``Fault``.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import unquote

from mlferry_agent.answers import Answer
from mlferry_agent.errors import Unreachable
from mlferry_agent.requests import API, ARTIFACTS, SERVER_INFO, VERSION, Request

__all__ = ["FakeRun", "FakeTracking", "Fault", "refusal", "said"]


class Fault(enum.Enum):
    """How a request is lost."""

    BEFORE = "the connection breaks before the server reads it"
    AFTER = "the server acts on it, and the answer is lost"
    LATE = "the answer is lost, and the server acts on it a few requests later"


@dataclass
class FakeRun:
    """A run as the server stores it."""

    run_id: str
    experiment_id: str
    start_time: int
    name: str
    status: str = "RUNNING"
    end_time: int | None = None
    deleted: bool = False
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: set[tuple[str, int, int, str]] = field(default_factory=set)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    artifacts: dict[str, str] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        info = {
            "run_id": self.run_id,
            "experiment_id": self.experiment_id,
            "run_name": self.name,
            "status": self.status,
            "start_time": self.start_time,
            "lifecycle_stage": "deleted" if self.deleted else "active",
            "artifact_uri": f"mlflow-artifacts:/{self.experiment_id}/{self.run_id}/artifacts",
        }
        data = {
            "params": [{"key": key, "value": value} for key, value in self.params.items()],
            "tags": [{"key": key, "value": value} for key, value in self.tags.items()],
            "metrics": [{"key": key} for key in {point[0] for point in self.points}],
        }
        return {"info": info, "data": data}


class FakeTracking:
    """``heard``: every request the server acted on, as (endpoint, body). ``in_flight`` and ``most_in_flight`` count.

    ``crowd``: the first files are answered only when so many are on their way together, however slow the machine is.
    """

    def __init__(self, fault: Callable[[Request], Fault | Answer | None] = lambda request: None) -> None:
        self.fault = fault
        self.runs: dict[str, FakeRun] = {}
        self.experiments: dict[str, str] = {"Default": "0"}
        self.deleted_experiments: set[str] = set()
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.in_flight = self.most_in_flight = 0
        self.crowd = 0
        self._crowded = asyncio.Event()
        self._late: list[tuple[int, Request]] = []

    # -- a courier's sender ---------------------------------------------------------------------------------------------

    async def send(self, request: Request) -> Answer:
        if request.method == "PUT" and request.path.startswith(ARTIFACTS):  # a file that is sent from memory
            return await self._carry(request, lambda: self._store(request, request.body or b""))
        return await self._carry(request, lambda: self._answer(request))

    async def upload(self, request: Request, file: BinaryIO, size: int) -> Answer:
        file.seek(0)
        data = file.read()
        assert len(data) == size
        return await self._carry(request, lambda: self._store(request, data))

    async def _gather(self) -> None:
        if self.in_flight >= self.crowd:
            self._crowded.set()
        await asyncio.wait_for(self._crowded.wait(), 60)

    async def _carry(self, request: Request, serve: Callable[[], Answer]) -> Answer:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await (self._gather() if request.method == "PUT" else asyncio.sleep(0))
            return self._serve(request, serve)
        finally:
            self.in_flight -= 1

    def _serve(self, request: Request, serve: Callable[[], Answer]) -> Answer:
        self._catch_up()
        fault = self.fault(request)
        if isinstance(fault, Answer):
            return fault
        if fault is Fault.BEFORE:
            raise Unreachable("connection refused")
        if fault is Fault.LATE:
            self._late.append((3, request))
            raise Unreachable("timeout")
        answer = serve()
        if fault is Fault.AFTER:
            raise Unreachable("connection reset")
        return answer

    def _catch_up(self) -> None:
        due = [request for left, request in self._late if left <= 1]
        self._late = [(left - 1, request) for left, request in self._late if left > 1]
        for request in due:
            self._answer(request)

    # -- what a test asks -----------------------------------------------------------------------------------------------

    def run_of(self, offline_id: str) -> FakeRun:
        """The one active run that carries this offline id."""
        [found] = self.runs_of(offline_id)
        return found

    def runs_of(self, offline_id: str) -> list[FakeRun]:
        return [run for run in self.runs.values() if run.tags.get("mlferry.run_id") == offline_id and not run.deleted]

    def endpoints(self, run_id: str) -> list[str]:
        """What was said of a run, in order."""
        return [endpoint for endpoint, body in self.heard if body.get("run_id") == run_id]

    # -- MLflow ---------------------------------------------------------------------------------------------------------

    def _answer(self, request: Request) -> Answer:
        if request.path in (VERSION, SERVER_INFO):
            return Answer(200, body=b"3.17.2" if request.path == VERSION else b'{"store_type": "SqlStore"}')
        if request.path.startswith(ARTIFACTS):
            return self._remove(request)
        endpoint = request.path[len(API) :]
        body = dict(request.query) if request.body is None else json.loads(request.body)
        answer = self._route(endpoint, body)
        if answer.status == 200:
            self.heard.append((endpoint, body))
        return answer

    def _route(self, endpoint: str, body: dict[str, Any]) -> Answer:
        name = "_" + endpoint.replace("/", "_").replace("-", "_")
        if "run_id" not in body:
            return getattr(self, name)(body)  # type: ignore[no-any-return]
        run = self.runs.get(body["run_id"])
        if run is None:
            return refusal(404, "RESOURCE_DOES_NOT_EXIST", f"Run with id={body['run_id']} not found")
        if run.deleted and endpoint not in ("runs/get", "runs/delete", "runs/restore"):
            return refusal(400, "INVALID_PARAMETER_VALUE", f"The run {run.run_id} must be in the 'active' state.")
        return getattr(self, name)(run, body)  # type: ignore[no-any-return]

    def _experiments_get_by_name(self, body: dict[str, Any]) -> Answer:
        found = self.experiments.get(body["experiment_name"])
        if found is None:
            return refusal(404, "RESOURCE_DOES_NOT_EXIST", "Could not find experiment")
        stage = "deleted" if found in self.deleted_experiments else "active"
        return said(experiment={"experiment_id": found, "lifecycle_stage": stage})

    def _experiments_search(self, body: dict[str, Any]) -> Answer:
        return said(experiments=[{"experiment_id": found, "name": name} for name, found in self.experiments.items()])

    def _experiments_get(self, body: dict[str, Any]) -> Answer:
        if body["experiment_id"] not in self.experiments.values():
            return refusal(404, "RESOURCE_DOES_NOT_EXIST", "No Experiment with id")
        stage = "deleted" if body["experiment_id"] in self.deleted_experiments else "active"
        [name] = [name for name, found in self.experiments.items() if found == body["experiment_id"]]
        return said(experiment={"experiment_id": body["experiment_id"], "name": name, "lifecycle_stage": stage})

    def _experiments_restore(self, body: dict[str, Any]) -> Answer:
        if body["experiment_id"] not in self.deleted_experiments:
            return refusal(404, "RESOURCE_DOES_NOT_EXIST", "No Experiment with id")
        self.deleted_experiments.remove(body["experiment_id"])
        for run in self.runs.values():
            run.deleted = run.deleted and run.experiment_id != body["experiment_id"]
        return said()

    def delete_experiment(self, name: str) -> None:
        """As the server does: with its runs."""
        self.deleted_experiments.add(self.experiments[name])
        for run in self.runs.values():
            run.deleted = run.deleted or run.experiment_id == self.experiments[name]

    def _experiments_create(self, body: dict[str, Any]) -> Answer:
        if body["name"] in self.experiments:
            return refusal(400, "RESOURCE_ALREADY_EXISTS", "Experiment already exists")
        self.experiments[body["name"]] = str(len(self.experiments))
        return said(experiment_id=self.experiments[body["name"]])

    def _runs_create(self, body: dict[str, Any]) -> Answer:
        if body["experiment_id"] not in self.experiments.values():
            return refusal(404, "RESOURCE_DOES_NOT_EXIST", "No Experiment with id")
        if body["experiment_id"] in self.deleted_experiments:
            return refusal(400, "INVALID_PARAMETER_VALUE", "The experiment must be in the 'active' state.")
        run_id = hashlib.md5(str(len(self.runs)).encode(), usedforsecurity=False).hexdigest()
        run = FakeRun(run_id, body["experiment_id"], int(body["start_time"]), body.get("run_name", ""))
        run.tags.update({tag["key"]: tag["value"] for tag in body.get("tags", [])})
        self.runs[run_id] = run
        return said(run=self._described(run))

    def _runs_search(self, body: dict[str, Any]) -> Answer:
        found = re.fullmatch(r"tags\.`(.+)` = '(.*)'", body["filter"])
        assert found is not None
        fitting = [
            run.described()
            for run in self.runs.values()
            if run.experiment_id in body["experiment_ids"] and run.tags.get(found[1]) == found[2]
        ]
        return said(runs=fitting) if fitting else said()

    def _described(self, run: FakeRun) -> dict[str, Any]:
        return run.described()

    def _runs_get(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        return said(run=self._described(run))

    def _runs_delete(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        run.deleted = True
        return said()

    def _runs_restore(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        run.deleted = False
        return said()

    def _runs_update(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        run.status = body.get("status", run.status)
        run.end_time = body.get("end_time", run.end_time)
        run.name = body.get("run_name", run.name)
        return said()

    def _runs_log_batch(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        problem = next(_problems(run, body), None)
        if problem is not None:
            return refusal(400, "INVALID_PARAMETER_VALUE", problem)
        run.params.update({param["key"]: param["value"] for param in body.get("params", [])})
        for point in body.get("metrics", []):
            run.points.add((point["key"], int(point["timestamp"]), int(point["step"]), repr(float(point["value"]))))
        run.tags.update({tag["key"]: tag["value"] for tag in body.get("tags", [])})
        return said()

    def _runs_set_tag(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        run.tags[body["key"]] = body["value"]
        return said()

    def _runs_delete_tag(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        if run.tags.pop(body["key"], None) is None:
            return refusal(404, "RESOURCE_DOES_NOT_EXIST", f"No tag with name: {body['key']}")
        return said()

    def _runs_log_inputs(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        run.datasets |= {(item["dataset"]["name"], item["dataset"]["digest"]) for item in body.get("datasets", [])}
        return said()

    def _store(self, request: Request, data: bytes) -> Answer:
        run, path = self._artifact(request)
        run.artifacts[path] = hashlib.sha256(data).hexdigest()
        self.heard.append(("artifact", {"run_id": run.run_id, "path": path}))
        return Answer(200)

    def _remove(self, request: Request) -> Answer:
        run, path = self._artifact(request)
        gone = [name for name in run.artifacts if name == path or name.startswith(f"{path}/")]
        for name in gone:
            del run.artifacts[name]
        self.heard.append(("delete artifact", {"run_id": run.run_id, "path": path}))
        return Answer(200) if gone else refusal(404, "RESOURCE_DOES_NOT_EXIST", "no such artifact")

    def _artifact(self, request: Request) -> tuple[FakeRun, str]:
        run_id, path = re.fullmatch(rf"{ARTIFACTS}/\d+/(\w+)/artifacts/(.+)", unquote(request.path)).groups()  # type: ignore[union-attr]
        return self.runs[run_id], path


def refusal(status: int, code: str, message: str) -> Answer:
    """An error as MLflow words it."""
    return Answer(status, body=json.dumps({"error_code": code, "message": message}).encode())


def said(**fields: Any) -> Answer:
    """A good answer."""
    return Answer(200, body=json.dumps(fields).encode())


def _problems(run: FakeRun, body: dict[str, Any]) -> Iterator[str]:
    for kind, most in (("metrics", 1000), ("params", 100), ("tags", 100)):
        if len(body.get(kind, [])) > most:
            yield f"A batch logging request can contain at most {most} {kind}"
    keys = [param["key"] for param in body.get("params", [])]
    if len(keys) != len(set(keys)):
        yield "Duplicate parameter keys have been submitted"
    for param in body.get("params", []):
        if run.params.get(param["key"], param["value"]) != param["value"]:
            yield f"Changing param values is not allowed. Param with key='{param['key']}' was already logged"
    for entity in (*body.get("metrics", []), *body.get("params", []), *body.get("tags", [])):
        if "poison" in entity["key"]:
            yield f"Invalid value for {entity['key']}"
