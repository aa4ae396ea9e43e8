"""What the simulated programs log, and what the server must hold of it in the end.

Owns the truth. Each record that a process writes is noted here by MLflow's rules, never read back from the spool. What a
power cut takes *may* be on the server, if it was delivered before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tests.fakes.tracking import FakeRun
from tests.simulation.writers import Process

from mlferry_spool.blobs import Blobs
from mlferry_spool.records import (
    Artifact,
    ArtifactDeleted,
    Dataset,
    Inputs,
    Metrics,
    ModelOutput,
    ModelStart,
    ModelUpdate,
    Outputs,
    Params,
    Record,
    Series,
    Tags,
    TagsDeleted,
)

__all__ = ["Job", "Model"]

#: What the server refuses for good, by its name.
_POISON = "poison"


@dataclass
class Model:
    """A logged model: what its server's side must hold."""

    model_id: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """A run in the spool: its processes, attempt by attempt, and what they logged."""

    run_id: str
    experiment: str
    directory: Path
    parent_run_id: str | None
    attempts: list[list[Process]] = field(default_factory=list)
    must: set[tuple[str, int, int, str]] = field(default_factory=set)
    may: set[tuple[str, int, int, str]] = field(default_factory=set)
    params: dict[str, str] = field(default_factory=dict)
    may_params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)
    models: list[Model] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    statuses: dict[str, str] = field(default_factory=dict)
    is_deleted_by_hand: bool = False
    steps: Iterator[int] = field(default_factory=count)

    @property
    def processes(self) -> list[Process]:
        return [process for attempt in self.attempts for process in attempt]

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes if process.is_alive]

    @property
    def status(self) -> str:
        """How the run stands when none of its processes lives: as the worst end of its last attempt."""
        ends = {self.statuses.get(process.opening.writer_id, "KILLED") for process in self.attempts[-1]}
        return next(word for word in ("RUNNING", "KILLED", "FAILED", "FINISHED") if word in ends)

    def lose(self, records: list[Record]) -> None:
        """These stand in no file any more."""
        for record in records:
            if isinstance(record, Metrics):
                points = {_point(record, key, value) for key, value in record.values.items()}
                self.must -= points
                self.may |= points
            elif isinstance(record, Params):
                for key in record.values:
                    self.may_params[key] = self.params.pop(key)

    # -- logging --------------------------------------------------------------------------------------------------------

    def log(self, process: Process, rng: random.Random, now_ms: int) -> None:
        """A few calls of one process, whatever kind chance takes."""
        for _ in range(rng.randrange(1, 9)):
            rng.choice(_KINDS)(self, process, now_ms, next(self.steps), str(rng.randrange(3)))

    def _metrics(self, process: Process, now_ms: int, step: int, word: str) -> None:
        record = Metrics(now_ms, step, {"loss": step / 7, "acc": float("nan")})
        process.put(record)
        self.must |= {_point(record, key, value) for key, value in record.values.items()}

    def _series(self, process: Process, now_ms: int, step: int, word: str) -> None:
        process.put(Series("series", bytes(24), (step * 10, 1), (now_ms, 1)))
        self.must |= {("series", now_ms + at, step * 10 + at, "0.0") for at in range(3)}
        process.sync()

    def _params(self, process: Process, now_ms: int, step: int, word: str) -> None:
        process.put(Params(now_ms, {f"param {step}": "a value"}))
        self.params[f"param {step}"] = "a value"

    def _tag(self, process: Process, now_ms: int, step: int, word: str) -> None:
        key = f"tag {word} of {process.opening.writer_id}"
        process.put(Tags(now_ms, {key: str(step)}))
        self.tags[key] = str(step)
        process.sync()

    def _untag(self, process: Process, now_ms: int, step: int, word: str) -> None:
        key = f"tag {word} of {process.opening.writer_id}"
        process.put(TagsDeleted(now_ms, (key,)))
        self.tags.pop(key, None)
        process.sync()

    def _artifact(self, process: Process, now_ms: int, step: int, word: str) -> None:
        path, blob = f"{process.opening.writer_id}/{word}.bin", self._blob(step)
        process.put(Artifact(now_ms, path, *blob))
        self.artifacts[path] = blob[0].hex()
        process.sync()

    def _delete_folder(self, process: Process, now_ms: int, step: int, word: str) -> None:
        folder = process.opening.writer_id
        process.put(ArtifactDeleted(now_ms, folder))
        self.artifacts = {path: blob for path, blob in self.artifacts.items() if not path.startswith(f"{folder}/")}
        process.sync()

    def _dataset(self, process: Process, now_ms: int, step: int, word: str) -> None:
        process.put(Inputs(now_ms, (Dataset(f"rows {step}", "digest", "local", "{}"),)))
        self.datasets.add(f"rows {step}")
        process.sync()

    def _model(self, process: Process, now_ms: int, step: int, word: str) -> None:
        model = Model(f"m-{self.run_id[:24]}{step:08x}")
        blob, of = self._blob(step), {"timestamp": now_ms, "model_id": model.model_id}
        process.put(ModelStart(**of, name="a model", source_run_id=self.run_id, params={"early": "1"}, tags={"a": "1"}))
        process.put(ModelUpdate(**of, artifact_path="weights", artifact_sha256=blob[0], artifact_size=blob[1]))
        process.put(ModelUpdate(**of, params={"late": "2"}, tags={"a": "2"}))
        process.put(Outputs(now_ms, (ModelOutput(model.model_id, step),)))
        process.put(ModelUpdate(**of, status="READY"))
        model.params, model.tags = {"early": "1", "late": "2"}, {"a": "2"}
        model.artifacts = {"weights": blob[0].hex()}
        self.models.append(model)
        process.sync()

    def _poison(self, process: Process, now_ms: int, step: int, word: str) -> None:
        name = f"{_POISON} {step}"
        good = Metrics(now_ms, step, {"good": 1.0, name: 1.0})
        process.put(good)
        self.must.add(_point(good, "good", 1.0))
        self.refused.add(name)
        process.sync()

    def _blob(self, step: int) -> tuple[bytes, int]:
        blob = Blobs(self.directory, durable=False).put_bytes(bytes(step))
        return blob.sha256, blob.size

    # -- what the server holds ------------------------------------------------------------------------------------------

    def apart(self, run: FakeRun) -> list[str]:
        """Everything in which the server's run is not what was logged."""
        theirs = ("mlferry.", "mlflow.parentRunId", "theirs")
        points = {point for point in run.points if point[0] != "theirs"}
        wanted: dict[str, tuple[Any, Any]] = {
            "points missing": (set(), self.must - points),
            "points too many": (set(), points - self.must - self.may),
            "params": (run.params, {**{k: v for k, v in self.may_params.items() if k in run.params}, **self.params}),
            "tags": ({key: value for key, value in run.tags.items() if not key.startswith(theirs)}, self.tags),
            "artifacts": (run.artifacts, self.artifacts),
            "datasets": ({name for name, _ in run.datasets}, self.datasets),
            "quarantined": (run.tags.get("mlferry.quarantined", "0"), str(len(self.refused))),
            "lost": (run.tags.get("mlferry.lost", "0"), "0"),
            "status": (run.status, self.status),
        }
        return [f"{what}: {found} instead of {due}" for what, (found, due) in wanted.items() if found != due]


_KINDS = (
    *(2 * [Job._metrics]),
    Job._series,
    Job._params,
    Job._tag,
    Job._untag,
    Job._artifact,
    Job._delete_folder,
    Job._dataset,
    Job._model,
    Job._poison,
)


def _point(record: Metrics, key: str, value: float) -> tuple[str, int, int, str]:
    return key, record.timestamp, record.step, repr(value)
