"""The wire against a real MLflow server: what the encoder passes is stored exactly, what it refuses would be lost.

The servers' answers here are real, so these tests also hold the table of `answers` to the installed MLflow.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import math
import struct
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import faults
from tests.faults import FaultProxy, Kind
from tests.servers import MlflowServer, Point, point
from tests.unit.test_requests import GOOD, REFUSED, RENAMED, TOO_LONG

from mlferry_agent import encoding, limits, requests
from mlferry_agent.answers import Answer, Judgement, Verdict, classify
from mlferry_agent.credentials import Destination
from mlferry_agent.errors import Unencodable, Unreachable
from mlferry_agent.requests import ARTIFACTS, Request
from mlferry_agent.transport import Transport

LARGEST = 1.7976931348623157e308


def exchange(url: str, *asked: Request, timeout_s: float = 120.0) -> list[Answer]:
    """Send one after the other over one transport."""

    async def send() -> list[Answer]:
        async with Transport(Destination(url, timeout_s=timeout_s)) as transport:
            return [await transport.send(request) for request in asked]

    return asyncio.run(send())


def judged(url: str, request: Request) -> Judgement:
    [answer] = exchange(url, request)
    return classify(request, answer)


def wait_until(holds: Callable[[], bool], deadline_s: float = 60.0) -> None:
    """Return as soon as `holds`; fail when it never does."""
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


def said(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


def new_run(url: str, experiment_id: str = "0", **fields: Any) -> dict[str, Any]:
    [answer] = exchange(url, requests.create_run(experiment_id, 1_700_000_000_123, **fields))
    info: dict[str, Any] = said(answer)["run"]["info"]
    return info


def new_run_id(url: str) -> str:
    run_id: str = new_run(url)["run_id"]
    return run_id


# ---------------------------------------------------------------- what passes is stored exactly


def is_encodable(encode: Callable[..., object], *values: object) -> bool:
    try:
        encode(*values)
    except Unencodable:
        return False
    return True


KEYS = st.text(st.characters(categories=["L", "N"]) | st.sampled_from("/.-_ :\n"), min_size=1, max_size=24).filter(
    lambda key: is_encodable(encoding.param, key, "")
)
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
SPECIAL = [0.0, -0.0, 5e-324, -5e-324, LARGEST, -LARGEST, math.inf, -math.inf, math.nan, 2.0**53 + 2, 0.1, 1e22]
METRICS = st.lists(
    st.tuples(
        KEYS,
        st.sampled_from(SPECIAL) | st.floats(width=64),
        st.integers(0, 2**63 - 1),
        st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=150,
)


def as_stored(key: str, value: float, timestamp: int, step: int) -> Point:
    """The point that MLflow's documented rules make of it: infinities are clamped, and no zero is negative."""
    if math.isinf(value):
        value = math.copysign(LARGEST, value)
    return point(key, value + 0.0, timestamp, step)


def bits(points: list[Point]) -> list[tuple[str, int, int, object]]:
    """Comparable to the last bit, which `==` on floats is not."""
    return [
        (p.key, p.step, p.timestamp, struct.pack("<d", p.value) if isinstance(p.value, float) else p.value)
        for p in points
    ]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(METRICS, st.dictionaries(KEYS, VALUES, max_size=60), st.dictionaries(KEYS, VALUES, max_size=60))
def test_all_that_the_encoder_passes_is_stored_exactly_and_nothing_after_it_is_dropped(
    mlflow_server: MlflowServer,
    metrics: list[tuple[str, float, int, int]],
    params: dict[str, str],
    tags: dict[str, str],
) -> None:
    run_id = new_run_id(mlflow_server.url)
    batch = requests.log_batch(
        run_id,
        [encoding.metric(*each) for each in metrics],
        [encoding.param(*each) for each in params.items()],
        [encoding.tag(*each) for each in tags.items()],
    )
    for answer in exchange(mlflow_server.url, batch, batch):  # sent twice: a repeated batch changes nothing
        assert classify(batch, answer).verdict is Verdict.ACCEPTED
    stored = mlflow_server.stored(run_id)
    assert bits(stored.metrics) == bits(sorted({as_stored(*each) for each in metrics}, key=repr))
    assert stored.params == params
    assert stored.tags == {"mlflow.runName": stored.name, **tags}


def test_special_values_read_back_the_same_from_the_database_and_from_the_api(mlflow_server: MlflowServer) -> None:
    run_id = new_run_id(mlflow_server.url)
    sent = [("m", value, 2**63 - 1, step) for step, value in enumerate(SPECIAL, -3)]
    exchange(mlflow_server.url, requests.log_batch(run_id, [encoding.metric(*each) for each in sent]))
    expected = bits(sorted((as_stored(*each) for each in sent), key=repr))
    assert bits(mlflow_server.metric_points(run_id)) == expected
    assert bits(mlflow_server.metric_points_by_api(run_id)) == expected


@pytest.mark.parametrize("length", [5999, 6000, 6001, 8000, 8001, limits.MAX_SENT_VALUE_LENGTH + 1])
def test_a_long_value_ends_as_it_would_online(mlflow_server: MlflowServer, length: int) -> None:
    value = "é" * (length - 1) + "!"
    online, ours = mlflow_server.client().create_run("0").info.run_id, new_run_id(mlflow_server.url)
    mlflow_server.client().log_param(online, "k", value)
    mlflow_server.client().set_tag(online, "k", value)
    batch = requests.log_batch(ours, params=[encoding.param("k", value)], tags=[encoding.tag("k", value)])
    assert judged(mlflow_server.url, batch).verdict is Verdict.ACCEPTED
    expected, found = mlflow_server.stored(online), mlflow_server.stored(ours)
    assert (found.params["k"], found.tags["k"]) == (expected.params["k"], expected.tags["k"])


def test_a_dataset_input_is_stored_once_however_often_it_is_sent(mlflow_server: MlflowServer) -> None:
    run_id = new_run_id(mlflow_server.url)
    dataset = encoding.dataset_input(
        "é" * 500, "d" * 36, "local", "s" * 65535, schema="{}", profile="p", tags=[("mlflow.data.context", "train")]
    )
    request = requests.log_inputs(run_id, [dataset])
    assert [said(answer) for answer in exchange(mlflow_server.url, request, request, request)] == [{}, {}, {}]
    [found] = mlflow_server.inputs(run_id)
    assert found == {
        "name": "é" * 500,
        "digest": "d" * 36,
        "source_type": "local",
        "source": "s" * 65535,
        "schema": "{}",
        "profile": "p",
        "tags": {"mlflow.data.context": "train"},
    }


# ---------------------------------------------------------------- what is refused would have been lost


CONTROL = {"key": "control", "value": "kept"}
POINT = {"key": "m", "value": 1.0, "timestamp": 1, "step": 1}
TAG = {"key": "k", "value": "v"}

BAD_METRICS: list[dict[str, Any]] = [
    *({**POINT, "step": step} for step in (2**63, -(2**63) - 1, 1.5, True, [1])),
    *({**POINT, "timestamp": timestamp} for timestamp in (-1, 2**63, 0.5, True, None)),
    *({**POINT, "value": value} for value in (math.nan, math.inf, -math.inf, None, "abc", [1.0])),
    *({**POINT, "key": key} for key in (5, True, None, "\ud800", "a@b", "", "a" * 251, "../x", "a//b")),
    {**POINT, "model_id": 5},
    {**POINT, "model_id": "m-1", "dataset_name": "\udfff"},
]
BAD_VALUES: list[Any] = [5, 1.5, True, {}, [], "\ud800", "x\udfffy"]
BAD_KEYS: list[Any] = [5, True, None, "\ud800", "a@b", "50%", "", ".", "..", "/x", "x/", "a//b", "./a", "a" * 251]


def raw(endpoint: str, body: object) -> Request:
    """What a careless encoder sends: Python's json with its NaN literals and lone surrogates."""
    return Request("POST", requests.API + endpoint, body=json.dumps(body).encode())


@pytest.mark.parametrize("bad", BAD_METRICS, ids=repr)
def test_a_metric_that_the_encoder_refuses_would_be_refused_or_mangled(
    mlflow_server: MlflowServer, bad: dict[str, Any]
) -> None:
    extra = {name: bad[name] for name in ("model_id", "dataset_name") if name in bad}
    value = bad["value"]
    if not (isinstance(value, float) and not math.isfinite(value)):  # those pass, but as strings: see below
        with pytest.raises(Unencodable):
            encoding.metric(bad["key"], value, bad["timestamp"], bad["step"], **extra)
    else:
        assert isinstance(encoding.metric("m", value, 0, 0)["value"], str)
    run_id = new_run_id(mlflow_server.url)
    after = {"key": "after", "value": 2.0, "timestamp": 2, "step": 2}
    [answer] = exchange(
        mlflow_server.url, raw("runs/log-batch", {"run_id": run_id, "metrics": [bad, after], "tags": [CONTROL]})
    )
    stored = mlflow_server.stored(run_id)
    intact = point("after", 2.0, 2, 2) in stored.metrics and "control" in stored.tags and len(stored.metrics) == 2
    assert answer.status >= 400 or not intact


@pytest.mark.parametrize("kind", ["params", "tags"])
@pytest.mark.parametrize(
    "bad", [*({**TAG, "value": v} for v in BAD_VALUES), *({**TAG, "key": k} for k in BAD_KEYS)], ids=repr
)
def test_a_param_or_tag_that_the_encoder_refuses_would_be_refused_or_mangled(
    mlflow_server: MlflowServer, kind: str, bad: dict[str, Any]
) -> None:
    with pytest.raises(Unencodable):
        {"params": encoding.param, "tags": encoding.tag}[kind](bad["key"], bad["value"])
    run_id = new_run_id(mlflow_server.url)
    [answer] = exchange(mlflow_server.url, raw("runs/log-batch", {"run_id": run_id, kind: [bad, CONTROL]}))
    stored: dict[str, str] = getattr(mlflow_server.stored(run_id), kind)
    assert answer.status >= 400 or "control" not in stored or stored.get(bad["key"]) != bad["value"]


DATASET = {"name": "n", "digest": "d", "source_type": "t", "source": "s"}


@pytest.mark.parametrize(
    ("dataset", "tags"),
    [
        ({**DATASET, "name": "n" * 501}, []),
        ({**DATASET, "digest": "d" * 37}, []),
        ({**DATASET, "source": "s" * 65536}, []),
        ({**DATASET, "schema": "s" * 1048576}, []),
        ({**DATASET, "name": 5}, []),
        (DATASET, [("k" * 256, "v")]),
        (DATASET, [("k", "v" * 501)]),
    ],
)
def test_a_dataset_that_the_encoder_refuses_would_be_refused_or_mangled(
    mlflow_server: MlflowServer, dataset: dict[str, Any], tags: list[tuple[str, str]]
) -> None:
    with pytest.raises(Unencodable):
        encoding.dataset_input(**dataset, tags=tags)
    run_id = new_run_id(mlflow_server.url)
    sent = {"dataset": dataset, "tags": [{"key": key, "value": value} for key, value in tags]}
    [answer] = exchange(mlflow_server.url, raw("runs/log-inputs", {"run_id": run_id, "datasets": [sent]}))
    names = [found["name"] for found in mlflow_server.inputs(run_id)] if answer.status == 200 else []
    assert answer.status >= 400 or names != [dataset["name"]]


@pytest.mark.parametrize("name", ["", "n" * 501, 5, "\ud800"])
def test_an_experiment_name_that_the_encoder_refuses_would_be_refused_or_mangled(
    mlflow_server: MlflowServer, name: Any
) -> None:
    with pytest.raises(Unencodable):
        requests.create_experiment(name)
    [answer] = exchange(mlflow_server.url, raw("experiments/create", {"name": name}))
    assert answer.status >= 400


def test_an_experiment_tag_that_the_encoder_refuses_would_be_refused(mlflow_server: MlflowServer) -> None:
    with pytest.raises(Unencodable):
        encoding.experiment_tag("k", "v" * 20_001)
    long = {"name": uuid.uuid4().hex, "tags": [{"key": "k", "value": "v" * 20_001}]}
    [answer] = exchange(mlflow_server.url, raw("experiments/create", long))
    assert answer.status >= 400


@pytest.mark.parametrize("start_time", [2**63, 1.5, True, -(2**63) - 1])
def test_a_start_time_that_the_encoder_refuses_would_lose_name_and_tags(
    mlflow_server: MlflowServer, start_time: Any
) -> None:
    with pytest.raises(Unencodable):
        requests.create_run("0", start_time)
    body = {"experiment_id": "0", "start_time": start_time, "run_name": "my name", "tags": [CONTROL]}
    [answer] = exchange(mlflow_server.url, raw("runs/create", body))
    if answer.status == 200:
        stored = mlflow_server.stored(said(answer)["run"]["info"]["run_id"])
        assert (stored.start_time, stored.name) != (start_time, "my name") or "control" not in stored.tags


@pytest.mark.parametrize("status", ["DONE", "finished", ""])
def test_a_status_that_the_encoder_refuses_would_be_ignored(mlflow_server: MlflowServer, status: str) -> None:
    with pytest.raises(Unencodable):
        requests.update_run("r", status=status)
    run_id = new_run_id(mlflow_server.url)
    exchange(mlflow_server.url, raw("runs/update", {"run_id": run_id, "status": status}))
    assert mlflow_server.stored(run_id).status == "RUNNING"


# ---------------------------------------------------------------- artifacts


@pytest.mark.parametrize("name", GOOD)
def test_an_artifact_is_stored_under_its_very_name_read_back_and_deleted(
    mlflow_server: MlflowServer, name: str
) -> None:
    info = new_run(mlflow_server.url)
    data = name.encode() * 3

    async def round_trip() -> tuple[Answer, ...]:
        uri = info["artifact_uri"]
        async with Transport(Destination(mlflow_server.url)) as transport:
            put = requests.put_artifact(uri, name)
            answers = [await transport.upload(put, io.BytesIO(data), len(data))]
            assert classify(put, answers[0]).verdict is Verdict.ACCEPTED
            answers.append(await transport.upload(put, io.BytesIO(data), len(data)))
            got = io.BytesIO()
            answers.append(await transport.download(requests.get_artifact(uri, name), got.write))
            assert got.getvalue() == data
            head = await transport.send(requests.head_artifact(uri, name))
            assert (head.headers["content-length"], head.body) == (str(len(data)), b"")
            folder, _, leaf = name.rpartition("/")
            listed = said(await transport.send(requests.list_artifacts(info["run_id"], folder or None)))
            assert [f["path"] for f in listed["files"] if f["path"] == name and f["file_size"] == len(data)] == [name]
            assert leaf
            assert mlflow_server.artifacts(info["run_id"]) == {name: data}
            answers.append(await transport.send(requests.delete_artifact(uri, name)))
            return tuple(answers)

    assert [answer.status for answer in asyncio.run(round_trip())] == [200, 200, 200, 200]
    assert mlflow_server.artifacts(info["run_id"]) == {}


@pytest.mark.parametrize("name", [*RENAMED, *REFUSED, *TOO_LONG], ids=repr)
def test_an_artifact_name_that_is_refused_here_would_be_refused_or_changed_there(
    mlflow_server: MlflowServer, name: str
) -> None:
    info = new_run(mlflow_server.url)
    quoted = "/".join(urllib.parse.quote(part, safe="") for part in name.split("/"))
    put = Request("PUT", f"{ARTIFACTS}/0/{info['run_id']}/artifacts/{quoted}", body=b"x")
    [answer] = exchange(mlflow_server.url, put)
    assert answer.status >= 400 or name not in mlflow_server.artifacts(info["run_id"])


def test_a_missing_artifact_is_told_apart_from_a_missing_endpoint(mlflow_server: MlflowServer) -> None:
    uri = new_run(mlflow_server.url)["artifact_uri"]
    for request in (requests.get_artifact(uri, "missing"), requests.head_artifact(uri, "missing")):
        assert judged(mlflow_server.url, request).verdict is Verdict.GONE, exchange(mlflow_server.url, request)


# ---------------------------------------------------------------- what the real server answers


def test_the_handshake_is_understood(mlflow_server: MlflowServer) -> None:
    version, info = exchange(mlflow_server.url, requests.server_version(), requests.server_info())
    assert classify(requests.server_version(), version).verdict is Verdict.ACCEPTED
    assert said(info)["store_type"] == "SqlStore"


def test_an_experiment_is_made_found_deleted_and_restored(mlflow_server: MlflowServer) -> None:
    name, url = f"é {uuid.uuid4().hex} 100%+&", mlflow_server.url
    look_up, create = requests.get_experiment_by_name(name), requests.create_experiment(name)
    assert judged(url, look_up).verdict is Verdict.GONE
    [made] = exchange(url, create)
    experiment_id = said(made)["experiment_id"]
    assert judged(url, create).verdict is Verdict.ALREADY
    assert judged(url, requests.restore_experiment(experiment_id)).verdict is Verdict.ALREADY
    mlflow_server.client().delete_experiment(experiment_id)
    assert said(exchange(url, look_up)[0])["experiment"]["lifecycle_stage"] == "deleted"
    assert judged(url, create).verdict is Verdict.ALREADY
    assert judged(url, requests.create_run(experiment_id, 1)).verdict is Verdict.GONE
    assert judged(url, requests.restore_experiment(experiment_id)).verdict is Verdict.ACCEPTED
    assert judged(url, requests.create_run(experiment_id, 1)).verdict is Verdict.ACCEPTED


def test_all_experiments_are_found_page_by_page(mlflow_server: MlflowServer) -> None:
    names = {uuid.uuid4().hex for _ in range(3)}
    exchange(mlflow_server.url, *(requests.create_experiment(name) for name in names))
    found: set[str] = set()
    token: str | None = ""
    while token is not None:
        page = said(exchange(mlflow_server.url, requests.search_experiments(token, max_results=2))[0])
        found |= {experiment["name"] for experiment in page.get("experiments", [])}
        token = page.get("next_page_token") or None
    assert names <= found


def test_a_run_is_found_by_its_tag_at_once_also_when_deleted(mlflow_server: MlflowServer) -> None:
    uid, url = uuid.uuid4().hex, mlflow_server.url
    search = requests.search_runs_by_tag(["0"], "mlferry.run", uid)
    assert said(exchange(url, search)[0]).get("runs", []) == []
    run_id = new_run(url, tags=[encoding.tag("mlferry.run", uid)])["run_id"]
    assert [run["info"]["run_id"] for run in said(exchange(url, search)[0])["runs"]] == [run_id]
    mlflow_server.client().delete_run(run_id)
    [run] = said(exchange(url, search)[0])["runs"]
    assert (run["info"]["run_id"], run["info"]["lifecycle_stage"]) == (run_id, "deleted")


def test_a_run_keeps_its_time_name_user_and_end(mlflow_server: MlflowServer) -> None:
    url = mlflow_server.url
    run_id = new_run(url, run_name="n" * 250, user="ann")["run_id"]
    exchange(url, requests.update_run(run_id, status="FINISHED", end_time=1_700_000_009_999))
    stored = mlflow_server.stored(run_id)
    assert (stored.status, stored.start_time, stored.end_time) == ("FINISHED", 1_700_000_000_123, 1_700_000_009_999)
    assert stored.name == "n" * 250
    assert said(exchange(url, requests.get_run(run_id))[0])["run"]["info"]["user_id"] == "ann"


def test_a_deleted_run_is_gone_until_it_is_restored(mlflow_server: MlflowServer) -> None:
    url, run_id = mlflow_server.url, new_run_id(mlflow_server.url)
    batch = requests.log_batch(run_id, [encoding.metric("m", 1.0, 1, 1)])
    mlflow_server.client().delete_run(run_id)
    assert judged(url, batch).verdict is Verdict.GONE
    assert judged(url, requests.restore_run(run_id)).verdict is Verdict.ACCEPTED
    assert judged(url, batch).verdict is Verdict.ACCEPTED
    assert judged(url, requests.get_run("f" * 32)).verdict is Verdict.GONE


def test_a_tag_is_set_deleted_and_already_deleted(mlflow_server: MlflowServer) -> None:
    url, run_id = mlflow_server.url, new_run_id(mlflow_server.url)
    steps = [requests.set_tag(run_id, "k", "v"), requests.delete_tag(run_id, "k"), requests.delete_tag(run_id, "k")]
    assert [judged(url, step).verdict for step in steps] == [Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.ALREADY]
    assert judged(url, requests.delete_tag("f" * 32, "k")).verdict is Verdict.GONE


def test_a_changed_param_is_refused_and_a_repeated_one_is_not(mlflow_server: MlflowServer) -> None:
    url, run_id = mlflow_server.url, new_run_id(mlflow_server.url)
    same, other = (requests.log_batch(run_id, params=[encoding.param("k", value)]) for value in ("1", "2"))
    assert [judged(url, each).verdict for each in (same, same)] == [Verdict.ACCEPTED] * 2
    judgement = judged(url, other)
    assert judgement.verdict is Verdict.REFUSED and "Changing param values" in judgement.reason


def test_an_unknown_endpoint_or_method_is_unsupported(mlflow_server: MlflowServer) -> None:
    for request in (raw("no/such/endpoint", {}), Request("GET", requests.API + "runs/create")):
        assert judged(mlflow_server.url, request).verdict is Verdict.UNSUPPORTED


def test_the_history_of_a_metric_is_read_page_by_page(mlflow_server: MlflowServer) -> None:
    url, run_id = mlflow_server.url, new_run_id(mlflow_server.url)
    points = [encoding.metric("m", float(step), step, step) for step in range(1000)]
    exchange(url, requests.log_batch(run_id, points))
    steps: list[int] = []
    token: str | None = ""
    while token is not None:
        page = said(exchange(url, requests.get_metric_history(run_id, "m", token, max_results=300))[0])
        steps += [int(found["step"]) for found in page["metrics"]]
        token = page.get("next_page_token") or None
    assert steps == list(range(1000))


def test_a_server_that_serves_nobody_and_no_artifacts_is_a_matter_of_configuration(tmp_path: Path) -> None:
    arguments = ["--no-serve-artifacts", "--default-artifact-root", str(tmp_path), "--allowed-hosts", "localhost:*"]
    with MlflowServer(tmp_path / "server", extra_args=arguments) as server:
        stranger = judged(server.url, requests.search_experiments())
        assert stranger.verdict is Verdict.CONFIG and "Invalid Host header" in stranger.reason
        put = requests.put_artifact("mlflow-artifacts:/0/abc/artifacts", "f")
        no_artifacts = judged(f"http://localhost:{server.port}", put)
        assert no_artifacts.verdict is Verdict.CONFIG and "--serve-artifacts" in no_artifacts.reason


# ---------------------------------------------------------------- a bad network


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultProxy]:
    with FaultProxy(mlflow_server.port) as between:
        yield between


def log_one(run_id: str) -> Request:
    return requests.log_batch(run_id, [encoding.metric("m", 1.5, 7, 3)])


STORED = [Point("m", 3, 7, 1.5)]


@pytest.mark.parametrize(
    ("fault", "verdict", "is_stored"),
    [
        (faults.PASS, Verdict.ACCEPTED, True),
        (faults.CUT_BEFORE, None, False),
        (faults.COMMIT_THEN_CUT, None, True),
        (faults.CUT_MID_RESPONSE, None, True),
        (faults.cut_mid_request(20), None, False),
        (faults.TRUNCATE, Verdict.RETRY, True),
        (faults.captive_portal(), Verdict.RETRY, False),
        (faults.reply(503, b"busy"), Verdict.RETRY, False),
        (faults.too_many_requests("17"), Verdict.RETRY, False),
        (faults.reply(413, faults.HTML), Verdict.TOO_LARGE, False),
        (faults.commit_then_reply(500, faults.HTML), Verdict.SUSPECT, True),
        (faults.HANG, None, False),
        (faults.COMMIT_THEN_HANG, None, True),
    ],
    ids=lambda value: value.kind.name if isinstance(value, faults.Fault) else None,
)
def test_whatever_the_network_does_sending_again_ends_with_one_point(
    mlflow_server: MlflowServer, proxy: FaultProxy, fault: faults.Fault, verdict: Verdict | None, is_stored: bool
) -> None:
    run_id = new_run_id(mlflow_server.url)
    rule = proxy.add(fault, path="runs/log-batch")
    patience = 5.0 if fault.kind in (Kind.HANG, Kind.COMMIT_THEN_HANG) else 120.0
    got: Verdict | None = None
    with contextlib.suppress(Unreachable):
        [answer] = exchange(proxy.url, log_one(run_id), timeout_s=patience)
        got = classify(log_one(run_id), answer).verdict
    assert got is verdict
    assert mlflow_server.metric_points(run_id) == (STORED if is_stored else [])
    assert judged(proxy.url, log_one(run_id)).verdict is Verdict.ACCEPTED
    assert mlflow_server.metric_points(run_id) == STORED
    assert rule.done == 1 and proxy.counts() == {fault.kind: 1} | ({Kind.PASS: 1 + (fault.kind is Kind.PASS)})


def test_retry_after_comes_through(mlflow_server: MlflowServer, proxy: FaultProxy) -> None:
    proxy.add(faults.too_many_requests("17"))
    assert judged(proxy.url, requests.search_experiments()).retry_after_s == 17


def test_the_proxy_keeps_a_connection_alive_and_picks_the_nth_request(
    mlflow_server: MlflowServer, proxy: FaultProxy
) -> None:
    proxy.add(faults.reply(503), method="POST", path="runs/create", skip=2, times=2)
    answers = exchange(proxy.url, *(requests.create_run("0", 1) for _ in range(6)))
    assert [answer.status for answer in answers] == [200, 200, 503, 503, 200, 200]


def test_a_large_upload_passes_and_one_that_is_cut_leaves_nothing(
    mlflow_server: MlflowServer, proxy: FaultProxy
) -> None:
    info = new_run(mlflow_server.url)
    put = requests.put_artifact(info["artifact_uri"], "deep/checkpoint.bin")
    data = bytes(range(251)) * 40_000
    # aiohttp sends an idempotent request a second time by itself: only cutting both shows the cut.
    proxy.add(faults.cut_mid_request(5_000_000), method="PUT", times=2)

    async def upload() -> Answer:
        async with Transport(Destination(proxy.url)) as transport:
            return await transport.upload(put, io.BytesIO(data), len(data))

    with pytest.raises(Unreachable):
        asyncio.run(upload())
    wait_until(lambda: mlflow_server.artifacts(info["run_id"]) == {})
    proxy.clear()
    assert classify(put, asyncio.run(upload())).verdict is Verdict.ACCEPTED
    assert mlflow_server.artifacts(info["run_id"]) == {"deep/checkpoint.bin": data}
    assert mlflow_server.artifacts_by_api(info["run_id"]) == {"deep/checkpoint.bin": data}


def test_a_server_that_is_killed_comes_back_on_the_same_port_with_the_same_data(own_server: MlflowServer) -> None:
    run_id = new_run_id(own_server.url)
    assert judged(own_server.url, log_one(run_id)).verdict is Verdict.ACCEPTED
    url = own_server.url
    own_server.kill()
    with pytest.raises(Unreachable):
        exchange(url, log_one(run_id))
    began = time.monotonic()
    own_server.restart()
    print(f"restart: {time.monotonic() - began:.1f} s")
    assert own_server.url == url
    assert judged(url, log_one(run_id)).verdict is Verdict.ACCEPTED
    assert own_server.metric_points(run_id) == STORED
