"""Everything that a real server rejects, in one spool and one delivery: each stops only itself, is named in the server's own
words, and is delivered once its cause is gone, or given up by `mlferry drop`.

The server is told not to cut long values, so that it refuses them: what is too long is its own to judge.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.servers import MlflowServer
from tests.spooling import T0, Ferry, SpooledRun, differences, on_server, server_runs, stored_point, unique

from mlferry_spool import records
from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.layout import store_directory
from mlferry_spool.records import Dataset, Kind, Record
from mlferry_spool.writer import Writer

ALL, SET_ASIDE = 0, 3

#: How a reason begins that is the server's.
SERVER = "HTTP 4"

MODEL, NOBODY = f"m-{1:032x}", f"m-{2:032x}"
LONG = "x" * 251
BAD_KEYS = {
    "too long": (LONG, "251 characters"),
    "punctuation": ("loss (%)", "only letters"),
    "emoji": ("loss 🔥", "only letters"),
    "upwards": ("../loss", "as a path"),
    "absolute": ("/loss", "as a path"),
    "two slashes": ("a//b", "as a path"),
    "a slash at the end": ("a/", "as a path"),
    "a dot": (".", "as a path"),
    "empty": ("", "is empty"),
    "NUL": ("a\0b", "NUL"),
}

Put = Callable[[SpooledRun], object]


@dataclass(frozen=True, slots=True)
class Poison:
    """Something that no server takes: as what and under which name it is set aside, and words of the reason."""

    action: str
    name: str
    says: tuple[str, ...]
    put: Put

    def __str__(self) -> str:
        return f"{self.action} {self.name[:40]!r} {self.says[-1][:40]}"


def record(made: Record) -> Put:
    return lambda run: run.writer.put(made)


def raw(*payload: object) -> Put:
    """A record that the writer's own types would not let through, as another program may have written it."""
    return lambda run: run.writer.append(Kind.METRICS, payload)


def file(path: str) -> Put:
    def put(run: SpooledRun) -> None:
        blob = Blobs(run.directory, durable=False).put_bytes(path.encode(errors="replace"))
        run.writer.put(records.Artifact(T0, path, blob.sha256, blob.size))

    return put


def spoiled(path: str, spoil: Callable[[Path], object]) -> Put:
    def put(run: SpooledRun) -> None:
        blob = Blobs(run.directory, durable=False).put_bytes(path.encode() * (100_000 if "large" in path else 100))
        run.writer.put(records.Artifact(T0, path, blob.sha256, blob.size))
        spoil(Blobs(run.directory).path(blob.sha256))

    return put


def rot(path: Path) -> None:
    """One bit flips, as on a bad disk; twice, and the file is whole again."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def dataset(**wrong: Any) -> Put:
    fields: dict[str, Any] = {"name": "rows", "digest": "d1", "source_type": "local", "source": "{}", **wrong}
    return record(records.Inputs(T0, (Dataset(**fields),)))


def metric(key: str, value: float = 1.0, *, timestamp: int = T0, step: int = 7, **more: Any) -> Put:
    return record(records.Metrics(timestamp, step, {key: value}, **more))


METRICS = [
    *(Poison("metric", key, (says,), metric(key)) for key, says in BAD_KEYS.values()),
    Poison("metric", "before 1970", ("timestamp", "outside"), metric("before 1970", timestamp=-1)),
    Poison("metric", "of no model", (SERVER, "BAD_REQUEST"), metric("of no model", model_id=NOBODY)),
    Poison("record", "kind 4", ("step",), raw(T0, 1.5, {"m": 1.0})),
    Poison("record", "kind 4", ("step",), raw(T0, 2**63, {"m": 1.0})),
    Poison("record", "kind 4", ("timestamp",), raw("now", 1, {"m": 1.0})),
    Poison("record", "kind 4", ("values",), raw(T0, 1, {"m": "abc"})),
    Poison("record", "kind 4", ("values",), raw(T0, 1, {"m": None})),
    Poison("record", "kind 4", ("values",), raw(T0, 1, {"m": [1.0]})),
]
PARAMS = [
    *(Poison("param", key, (says,), record(records.Params(T0, {key: "1"}))) for key, says in BAD_KEYS.values()),
    Poison("param", "NUL", ("NUL",), record(records.Params(T0, {"NUL": "a\0b"}))),
    Poison("param", "long", (SERVER, "exceeds"), record(records.Params(T0, {"long": "x" * 6001}))),
    Poison("param", "changed", (SERVER, "Changing param values"), record(records.Params(T0, {"changed": "2"}))),
]
TAGS = [
    *(Poison("tag", key, (says,), record(records.Tags(T0, {key: "1"}))) for key, says in BAD_KEYS.values()),
    Poison("tag", "NUL", ("NUL",), record(records.Tags(T0, {"NUL": "a\0b"}))),
    Poison("tag", "long", (SERVER, "exceeds"), record(records.Tags(T0, {"long": "x" * 8001}))),
    Poison("tag", "mlferry.run_id", ("mlferry itself",), record(records.Tags(T0, {"mlferry.run_id": "another"}))),
]
DATASETS = [
    Poison("dataset", "n" * 300, ("501 characters",), dataset(name="n" * 501)),
    Poison("dataset", "digest", ("37 characters",), dataset(name="digest", digest="d" * 37)),
    Poison("dataset", "source", ("65536 characters",), dataset(name="source", source="s" * 65_536)),
    Poison("dataset", "tag", ("501 characters",), dataset(name="tag", tags={"k": "v" * 501})),
    Poison("dataset", "gone", ("not in the run's blobs",), dataset(name="gone", schema=records.BlobRef(b"0" * 32, 5))),
]
FILES = [
    Poison("artifact", "a#b", ("#",), file("a#b")),
    Poison("artifact", "../up", ("..",), file("../up")),
    Poison("artifact", "/absolute", ("",), file("/absolute")),
    Poison("artifact", "a\nb", ("",), file("a\nb")),
    Poison("artifact", "100%41", ("%",), file("100%41")),
    Poison("artifact", "x" * 300, ("bytes",), file("x" * 300)),
    Poison("artifact", "rotten", ("digest",), spoiled("rotten", rot)),
    Poison("artifact", "rotten and large", ("digest",), spoiled("rotten and large", rot)),
    Poison("artifact", "short", ("digest",), spoiled("short", lambda path: os.truncate(path, 10))),
    Poison("artifact", "gone", ("No such file",), spoiled("gone", Path.unlink)),
]
MODELS = [
    Poison(
        "model", MODEL, (SERVER, "model name"), record(records.ModelStart(T0, MODEL, "a/b", experiment_name="Default"))
    ),
    Poison("metric", "of a bad model", (SERVER, "model name"), metric("of a bad model", model_id=MODEL)),
    Poison("model link", "outputs", (SERVER, "model name"), record(records.Outputs(T0, (records.ModelOutput(MODEL),)))),
    Poison(
        "model file",
        f"{MODEL}/weights",
        (SERVER, "model name"),
        lambda run: run.writer.put(records.ModelUpdate(T0, MODEL, artifact_path="weights", **_blob(run, b"weights"))),
    ),
]
OF_A_RUN = [*METRICS, *PARAMS, *TAGS, *DATASETS, *FILES, *MODELS]


def _blob(run: SpooledRun, data: bytes) -> dict[str, Any]:
    blob: Blob = Blobs(run.directory, durable=False).put_bytes(data)
    return {"artifact_sha256": blob.sha256, "artifact_size": blob.size}


# -- what belongs to no run, and runs that cannot be made -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadOperation:
    """An operation on experiments or the registry that the server refuses."""

    record: Record
    says: str

    def __str__(self) -> str:
        return f"{getattr(self.record, 'operation', 'model')}: {self.says[:40]}"


def registry(operation: str, name: str, **details: Any) -> Record:
    return records.RegistryOperation(T0, operation, name, uuid.uuid4().hex, details)


def experiment(operation: str, name: str, **details: Any) -> Record:
    return records.ExperimentOperation(T0, operation, name, details)


PLACE, TAKEN, GOOD, ABSENT = unique("place"), unique("taken"), unique("good"), unique("absent")
OPERATIONS = [
    BadOperation(registry("create_registered_model", ""), "HTTP 400"),
    BadOperation(registry("create_registered_model", "a/b"), "HTTP 400"),
    BadOperation(registry("create_model_version", unique("nobody"), source="/nowhere"), "HTTP 4"),
    BadOperation(registry("create_model_version", GOOD, source="/nowhere"), "HTTP 400"),
    BadOperation(registry("set_registered_model_tag", GOOD, key=LONG, value="1"), "HTTP 400"),
    BadOperation(registry("set_registered_model_alias", GOOD, alias="latest", version="1"), "HTTP 400"),
    BadOperation(registry("set_registered_model_tag", ABSENT, key="good", value="1"), "HTTP 404"),
    BadOperation(registry("no such operation", GOOD), "no operation of a model registry"),
    BadOperation(experiment("create", "e" * 501), "501 characters"),
    BadOperation(experiment("set_tag", PLACE, key="long", value="x" * 20_001), "20001 characters"),
    BadOperation(experiment("set_tag", PLACE, key="a@b", value="1"), "only letters"),
    BadOperation(experiment("no such operation", PLACE), "no operation on an experiment"),
]

#: How a run is opened that cannot be made on the server, and why it is parked.
OPENINGS = {
    "experiment name too long": ("e" * 501, {}, "501 characters"),
    "experiment name with NUL": ("a\0b", {}, "NUL"),
    "experiment that is deleted": (TAKEN, {}, "is deleted on the server"),
    "experiment that is not there": ("Default", {"experiment_id": "99999999"}, "HTTP 404"),
    "run name that no tag holds": ("Default", {"run_name": "x" * 8001}, "8001 characters"),
    "a user with NUL": ("Default", {"user": "a\0b"}, "NUL"),
}


@dataclass(slots=True)
class Delivered:
    """One delivery of everything, and what the command said of it."""

    server: MlflowServer
    ferry: Ferry
    run: SpooledRun
    parked: dict[str, SpooledRun]
    done: subprocess.CompletedProcess[str]
    told: dict[str, dict[str, Any]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    root = tmp_path_factory.mktemp("strict")
    with MlflowServer(root, extra_env={"MLFLOW_TRUNCATE_LONG_VALUES": "false"}) as server:
        yield server


@pytest.fixture(scope="module")
def delivered(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Delivered:
    root = tmp_path_factory.mktemp("poison")
    ferry = Ferry(root / "spool", root / "state", server.url)
    server.client().delete_experiment(server.client().create_experiment(TAKEN))
    run = poisoned_run(ferry.spool)
    parked = {}
    for what, (name, opening, _) in OPENINGS.items():
        parked[what] = SpooledRun(ferry.spool, name, **opening)
        parked[what].metrics(1, {"m": 1.0})
        parked[what].end()
    store = Writer(store_directory(ferry.spool), records.Open(writer_id=f"w-{uuid.uuid4().hex}", role="guest"))
    for told in (registry("create_registered_model", GOOD), *(bad.record for bad in OPERATIONS)):
        assert store.put(told)
    assert store.put(experiment("set_tag", PLACE, key="good", value="1"))
    assert store.close()
    found = Delivered(server, ferry, run, parked, ferry("sync"))
    found.told = ferry.statuses()
    return found


def poisoned_run(root: Path) -> SpooledRun:
    """Each poison between two good records, so that what comes after it is seen to arrive."""
    run = SpooledRun(root, unique("poison"))
    run.params({"changed": "1"})
    for number, poison in enumerate(OF_A_RUN):
        for step in range(20):
            run.metrics(20 * number + step, {"loss": float(step)})
        run.params({f"p{number}": "1"})
        run.tags({"last": str(number)})
        run.artifact(f"files/{number}", str(number).encode())
        poison.put(run)
    run.dataset(Dataset("good", "d1", "local", "{}"))
    run.end()
    # A server stores a point before it refuses its link to a model that nobody knows.
    run.logged.points[stored_point("of no model", 1.0, T0, 7)] += 1
    return run


# -- each of them ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", OF_A_RUN, ids=str)
def test_it_is_set_aside_alone_and_the_reason_says_why(delivered: Delivered, poison: Poison) -> None:
    found = delivered.told[delivered.run.run_id]["quarantined"]
    named = [entry for entry in found if (entry["action"], entry["name"]) == (poison.action, poison.name)]
    assert any(all(says in entry["reason"] for says in poison.says) for entry in named), named or found


def test_nothing_but_poison_is_set_aside_and_all_else_arrives(delivered: Delivered) -> None:
    assert delivered.done.returncode == SET_ASIDE, delivered.done.stderr
    assert "Traceback" not in delivered.done.stderr
    told = delivered.told[delivered.run.run_id]
    wanted = sorted((poison.action, poison.name[:300]) for poison in OF_A_RUN)
    assert sorted((entry["action"], entry["name"]) for entry in told["quarantined"]) == wanted
    assert differences(delivered.server, delivered.run.logged) == []
    stored = delivered.server.stored(on_server(delivered.server, delivered.run))
    assert stored.tags["mlferry.quarantined"] == str(len(OF_A_RUN))


@pytest.mark.parametrize("bad", OPERATIONS, ids=str)
def test_an_operation_that_the_server_refuses_is_set_aside_alone(delivered: Delivered, bad: BadOperation) -> None:
    found = delivered.told["(store)"]["quarantined"]
    name = f"{getattr(bad.record, 'operation')} {getattr(bad.record, 'name')}".strip()  # noqa: B009
    assert any(entry["name"] == name[:300] and bad.says in entry["reason"] for entry in found), found
    assert len(found) == len(OPERATIONS)
    assert delivered.server.client().get_registered_model(GOOD).name == GOOD
    assert delivered.server.client().get_experiment_by_name(PLACE).tags["good"] == "1"


@pytest.mark.parametrize("what", OPENINGS)
def test_a_run_that_cannot_be_made_is_parked_alone(delivered: Delivered, what: str) -> None:
    run = delivered.parked[what]
    assert OPENINGS[what][2] in delivered.told[run.run_id]["parked"]
    assert server_runs(delivered.server, run.run_id) == []


# -- what becomes of them -------------------------------------------------------------------------------------------------


def test_what_is_mended_is_delivered_by_a_retry_and_what_cannot_be_is_dropped(delivered: Delivered) -> None:
    ferry, server, run = delivered.ferry, delivered.server, delivered.run
    rotten = b"rotten" * 100
    rot(Blobs(run.directory).path(hashlib.sha256(rotten).digest()))
    run.logged.artifacts["rotten"] = rotten
    client = server.client()
    client.restore_experiment(client.get_experiment_by_name(TAKEN).experiment_id)
    client.create_registered_model(ABSENT)
    assert ferry("retry").returncode == ALL
    assert ferry("sync").returncode == SET_ASIDE
    restored = delivered.parked["experiment that is deleted"]
    assert [differences(server, one.logged) for one in (run, restored)] == [[], []]
    assert client.get_registered_model(ABSENT).tags == {"good": "1"}
    told = ferry.statuses()
    assert sum(len(status["quarantined"]) for status in told.values()) == len(OF_A_RUN) + len(OPERATIONS) - 2
    [*_, entry] = told[run.run_id]["quarantined"]
    done = ferry("drop", "--record", entry["id"], "--yes", "--json")
    [status] = json.loads(done.stdout)
    assert (done.returncode, len(status["quarantined"]), status["given_up"]) == (SET_ASIDE, len(OF_A_RUN) - 2, 1)
    _all_of_the_run_is_dropped(delivered)

    done = ferry("drop", "--all", "--yes", "--json")
    assert (done.returncode, ferry("sync").returncode) == (ALL, ALL), done.stderr
    told = {status["run_id"]: status for status in json.loads(done.stdout)}
    assert told == ferry.statuses()
    for what, (_, _, says) in OPENINGS.items():
        status = told[delivered.parked[what].run_id]
        assert what == "experiment that is deleted" or (says in status["given_up_why"] and status["given_up"] == 1)
    assert differences(server, run.logged) == []


def _all_of_the_run_is_dropped(delivered: Delivered) -> None:
    ferry, server, run = delivered.ferry, delivered.server, delivered.run
    left = len(OF_A_RUN) - 1
    assert server.stored(on_server(server, run)).tags["mlferry.dropped"] == "1"
    done = ferry("drop", run.run_id, "--yes")
    assert (done.returncode, ferry("status", run.run_id).returncode) == (ALL, ALL), done.stdout
    tags = server.stored(on_server(server, run)).tags
    assert (tags["mlferry.quarantined"], tags["mlferry.dropped"]) == ("0", str(left))
    verified = ferry("verify", run.run_id)
    assert verified.returncode == ALL, verified.stdout


# -- what is deleted on the server ----------------------------------------------------------------------------------------


def half_delivered(ferry: Ferry, *experiments: str) -> list[SpooledRun]:
    """Runs of which the server has a part, and that have ended here since."""
    runs = [SpooledRun(ferry.spool, name) for name in experiments]
    for run in runs:
        run.params({"p": "1"})
        for step in range(50):
            run.metrics(step, {"loss": float(step)})
        run.artifact("first", b"1")
    ferry("sync")
    for run in runs:
        run.metrics(50, {"loss": 0.0})
        run.artifact("second", b"2")
        run.end()
    return runs


def test_a_run_that_is_deleted_there_waits_is_made_again_or_is_given_up_as_the_policy_says(
    server: MlflowServer, tmp_path: Path
) -> None:
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", server.url)
    client = server.client()
    again, lost = half_delivered(ferry, unique("again"), unique("lost"))
    before = {run.run_id: on_server(server, run) for run in (again, lost)}
    for server_run_id in before.values():
        client.delete_run(server_run_id)
    assert ferry("sync").returncode == SET_ASIDE
    assert {status["parked"] for status in ferry.statuses().values()} == {"the run was deleted on the server"}

    assert ferry("retry").returncode == ALL
    done = ferry("sync", "--deleted", "recreate", again.run_id)
    assert done.returncode == ALL, done.stdout + done.stderr
    (old, _), (new, _) = server_runs(server, again.run_id)
    assert (old, server.stored(old).lifecycle_stage, server.stored(new).lifecycle_stage) == (
        before[again.run_id],
        "deleted",
        "active",
    )
    assert differences(server, again.logged, removed=1) == []

    done = Ferry(ferry.spool, ferry.state, server.url, {"MLFERRY_DELETED": "drop"})("sync")
    assert done.returncode == ALL, done.stdout + done.stderr
    told = ferry.statuses()[lost.run_id]
    assert (told["pending"], told["given_up"] > 0, told["given_up_why"]) == (
        0,
        True,
        "the run was deleted on the server",
    )
    assert len(server_runs(server, lost.run_id)) == 1
    assert len(server.metric_points(before[lost.run_id])) == 50


def test_an_experiment_that_is_deleted_there_is_restored_when_its_runs_are_to_be_recreated(
    server: MlflowServer, tmp_path: Path
) -> None:
    ferry = Ferry(tmp_path / "spool", tmp_path / "state", server.url, {"MLFERRY_DELETED": "recreate"})
    [run] = half_delivered(ferry, unique("experiment"))
    client = server.client()
    client.delete_experiment(client.get_experiment_by_name(run.experiment).experiment_id)
    new = SpooledRun(ferry.spool, run.experiment)
    new.end()
    done = ferry("sync")
    assert done.returncode == ALL, done.stdout + done.stderr
    assert [differences(server, one.logged) for one in (run, new)] == [[], []]
