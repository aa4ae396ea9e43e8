"""Requests: paths, bodies, and artifact names that an MLflow server would store under another name."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.uri import validate_path_is_safe

from mlferry_agent import encoding, requests
from mlferry_agent.errors import NotProxied, UndeliverableName, Unencodable

ROOT = "mlflow-artifacts:/0/abc/artifacts"
PROXY = "/api/2.0/mlflow-artifacts/artifacts"

RENAMED = ["a%41", "%61", "a%2fb", "a%2Fb", "%2e%2e", "a%25", "a?", "a;", "caf%C3%A9", "%1B", "%0a"]
REFUSED = ["a#b", "#", "..", "../a", "a/../b", ".", "a/./b", "", "/a", "a//b", "a/", "a\nb", "a\tb", "a\0b", "a\x7f"]
TOO_LONG = ["a" * 256, "é" * 128, "x/" + "b" * 256]
GOOD = [
    "a b",
    "a?b",
    "a;b",
    "100%",
    "%",
    "%zz",
    "a\\b",
    "é/ü",
    "x:y",
    "+&=",
    "~",
    ".hid",
    " lead",
    "trail ",
    "a" * 255,
]


theirs: Callable[[str], str] = validate_path_is_safe  # MLflow's own, untyped there


def body(request: requests.Request) -> dict[str, Any]:
    assert request.body is not None
    found: dict[str, Any] = json.loads(request.body)
    return found


@pytest.mark.parametrize("name", [*RENAMED, *REFUSED, *TOO_LONG, "\udcff"])
def test_a_name_that_the_server_refuses_or_renames_is_undeliverable(name: str) -> None:
    for build in (
        requests.put_artifact,
        requests.get_artifact,
        requests.head_artifact,
        requests.delete_artifact,
    ):
        with pytest.raises(UndeliverableName) as caught:
            build(ROOT, name)
        assert caught.value.reason.isprintable()


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_is_percent_encoded_segment_by_segment(name: str) -> None:
    path = requests.put_artifact(ROOT, name).path
    assert re.fullmatch(r"(?:[A-Za-z0-9/._~-]|%[0-9A-F]{2})+", path)
    assert urllib.parse.unquote(path) == f"{PROXY}/0/abc/artifacts/{name}"
    assert path.count("/") == f"{PROXY}/0/abc/artifacts/{name}".count("/")


@given(st.text(max_size=20) | st.text("a%41?;#/.:\\", max_size=10))
def test_every_name_that_passes_comes_out_of_mlflows_own_reading_unchanged(name: str) -> None:
    try:
        path = requests.put_artifact(ROOT, name).path
    except UndeliverableName:
        return
    once_decoded = urllib.parse.unquote(path).removeprefix(PROXY + "/")
    assert theirs(once_decoded) == f"0/abc/artifacts/{name}"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("mlflow-artifacts:/0/abc/artifacts", f"{PROXY}/0/abc/artifacts/f"),
        ("mlflow-artifacts:/0/abc/artifacts/", f"{PROXY}/0/abc/artifacts/f"),
        ("mlflow-artifacts://host:5000/0/abc/artifacts", f"{PROXY}/0/abc/artifacts/f"),
        ("mlflow-artifacts:/workspaces/team-a/7/abc/artifacts", f"{PROXY}/workspaces/team-a/7/abc/artifacts/f"),
        ("mlflow-artifacts:/my%20root/abc/artifacts", f"{PROXY}/my%20root/abc/artifacts/f"),
        ("https://h/mlflow/api/2.0/mlflow-artifacts/artifacts/0/abc/artifacts", f"{PROXY}/0/abc/artifacts/f"),
    ],
)
def test_the_proxy_path_is_derived_from_the_artifact_uri_of_the_run(uri: str, path: str) -> None:
    assert requests.put_artifact(uri, "f").path == path


@pytest.mark.parametrize(
    "uri", ["ftp://host/0/abc", "s3://bucket/0?x=1", "file:///tmp/x", "/tmp/x", "", "https://h/elsewhere/0/abc"]
)
def test_artifacts_outside_of_the_server_are_not_sent_through_it(uri: str) -> None:
    with pytest.raises(NotProxied):
        requests.put_artifact(uri, "f")


def test_the_host_that_an_artifact_uri_names_is_told() -> None:
    assert requests.artifact_authority("mlflow-artifacts://h:5000/0/abc/artifacts") == "h:5000"
    assert requests.artifact_authority(ROOT) is None


def test_a_run_is_created_with_its_original_time_and_its_tags() -> None:
    request = requests.create_run("3", 1_700_000_000_123, "name", "ann", [encoding.tag("k", "v")], workspace="team-a")
    assert (request.method, request.path) == ("POST", "/api/2.0/mlflow/runs/create")
    assert request.workspace == "team-a"
    assert body(request) == {
        "experiment_id": "3",
        "start_time": 1_700_000_000_123,
        "run_name": "name",
        "user_id": "ann",
        "tags": [{"key": "k", "value": "v"}],
    }


def test_a_tag_that_postgresql_would_refuse_does_not_ride_on_the_creation() -> None:
    requests.create_run("3", 0, tags=[encoding.tag("k", "v" * 8000)])
    with pytest.raises(Unencodable, match="log-batch"):
        requests.create_run("3", 0, tags=[encoding.tag("k", "v" * 8001)])


@pytest.mark.parametrize("time", [2**63, 1.5, None, "0"])
def test_a_time_that_the_server_would_turn_into_zero_is_refused(time: Any) -> None:
    with pytest.raises(Unencodable):
        requests.create_run("3", time)
    if time is not None:
        with pytest.raises(Unencodable):
            requests.update_run("r", end_time=time)


def test_an_update_says_only_what_changes() -> None:
    assert body(requests.update_run("r", status="FINISHED")) == {"run_id": "r", "status": "FINISHED"}
    assert body(requests.update_run("r", end_time=5, run_name="n")) == {"run_id": "r", "end_time": 5, "run_name": "n"}
    with pytest.raises(Unencodable):
        requests.update_run("r", status="DONE")


def test_a_search_by_tag_includes_deleted_runs_and_cannot_be_injected() -> None:
    found = body(requests.search_runs_by_tag(["1", "2"], "mlferry.run", "abc"))
    assert found["filter"] == "tags.`mlferry.run` = 'abc'"
    assert (found["run_view_type"], found["experiment_ids"]) == ("ALL", ["1", "2"])
    for key, value in (("k", "' OR 'a'='a"), ("k`", "v"), ("k", 'v"'), ("k", "v\\")):
        with pytest.raises(Unencodable):
            requests.search_runs_by_tag(["1"], key, value)
    with pytest.raises(ValueError, match="no experiments"):
        requests.search_runs_by_tag([], "k", "v")


def test_a_batch_holds_what_mlflow_takes_and_no_more() -> None:
    point, tag = encoding.metric("m", 1.0, 0, 0), encoding.tag("k", "v")
    full = requests.log_batch("r", metrics=[point] * 1000)
    assert len(body(full)["metrics"]) == 1000 and set(body(full)) == {"run_id", "metrics"}
    too_many: list[dict[str, Any]] = [
        {"metrics": [point] * 1001},
        {"params": [tag] * 101},
        {"tags": [tag] * 101},
        {"metrics": [point] * 999, "tags": [tag] * 2},
    ]
    for too_much in too_many:
        with pytest.raises(ValueError, match="MLflow takes"):
            requests.log_batch("r", **too_much)


@pytest.mark.parametrize("workspace", ["a\r\nX-Evil: 1", "", "a b", "é", "w" * 256])
def test_a_workspace_from_a_record_cannot_add_a_header(workspace: str) -> None:
    with pytest.raises(Unencodable):
        requests.get_run("r", workspace=workspace)


def test_every_builder_names_its_endpoint() -> None:
    built = [
        requests.server_version(),
        requests.server_info(),
        requests.get_experiment_by_name("e"),
        requests.create_experiment("e", [encoding.experiment_tag("k", "v")], "s3://x"),
        requests.restore_experiment("1"),
        requests.search_experiments("token"),
        requests.get_run("r"),
        requests.restore_run("r"),
        requests.set_tag("r", "k", "v"),
        requests.delete_tag("r", "k"),
        requests.log_inputs("r", [encoding.dataset_input("n", "d", "t", "s")]),
        requests.get_metric_history("r", "m", "token"),
        requests.list_artifacts("r", "sub", "token"),
    ]
    assert [(r.method, r.path.removeprefix("/api/2.0/mlflow/")) for r in built] == [
        ("GET", "/version"),
        ("GET", "/api/3.0/mlflow/server-info"),
        ("GET", "experiments/get-by-name"),
        ("POST", "experiments/create"),
        ("POST", "experiments/restore"),
        ("POST", "experiments/search"),
        ("GET", "runs/get"),
        ("POST", "runs/restore"),
        ("POST", "runs/set-tag"),
        ("POST", "runs/delete-tag"),
        ("POST", "runs/log-inputs"),
        ("GET", "metrics/get-history"),
        ("GET", "artifacts/list"),
    ]
    assert all((r.body is None) is (r.method == "GET") for r in built)
