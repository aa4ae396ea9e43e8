"""The wire against a real MLflow server: what the encoder passes is stored exactly, what it refuses would be lost.

The servers' answers here are real, so these tests also hold the table of `answers` to the installed MLflow.
"""

from __future__ import annotations

import math
import struct
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.examples import examples
from tests.servers import MlflowServer, Point, point
from tests.wire import LARGEST, exchange, judged, new_run_id, raw, said

from mlferry_agent import encoding, limits, requests
from mlferry_agent.answers import Verdict, classify
from mlferry_agent.errors import Unencodable

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


@settings(max_examples=examples(25), deadline=None, suppress_health_check=list(HealthCheck))
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
