"""Artifacts, answers and a bad network between the agent's wire layer and a real MLflow server."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import faults
from tests.faults import FaultProxy, Kind
from tests.servers import MlflowServer, Point
from tests.unit.test_requests import GOOD, REFUSED, RENAMED, TOO_LONG
from tests.wire import exchange, judged, new_run, new_run_id, raw, said, wait_until

from mlferry_agent import encoding, requests
from mlferry_agent.answers import Answer, Verdict, classify
from mlferry_agent.credentials import Destination
from mlferry_agent.errors import Unreachable
from mlferry_agent.requests import ARTIFACTS, Request
from mlferry_agent.transport import Transport

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
