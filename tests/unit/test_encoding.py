"""The encoder: what it passes is exact, what it refuses has a reason; its limits are MLflow's."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import mlflow.utils.validation as mlflow_validation
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from mlferry_agent import encoding, limits
from mlferry_agent.errors import Unencodable

COPIED = {
    "MAX_METRICS_PER_BATCH": "MAX_METRICS_PER_BATCH",
    "MAX_PARAMS_TAGS_PER_BATCH": "MAX_PARAMS_TAGS_PER_BATCH",
    "MAX_ENTITIES_PER_BATCH": "MAX_ENTITIES_PER_BATCH",
    "MAX_DATASETS_PER_BATCH": "MAX_DATASETS_PER_BATCH",
    "MAX_REQUEST_BYTES": "MAX_BATCH_LOG_REQUEST_SIZE",
    "MAX_KEY_LENGTH": "MAX_ENTITY_KEY_LENGTH",
    "MAX_PARAM_VALUE_LENGTH": "MAX_PARAM_VAL_LENGTH",
    "MAX_TAG_VALUE_LENGTH": "MAX_TAG_VAL_LENGTH",
    "MAX_EXPERIMENT_NAME_LENGTH": "MAX_EXPERIMENT_NAME_LENGTH",
    "MAX_EXPERIMENT_TAG_KEY_LENGTH": "MAX_EXPERIMENT_TAG_KEY_LENGTH",
    "MAX_EXPERIMENT_TAG_VALUE_LENGTH": "MAX_EXPERIMENT_TAG_VAL_LENGTH",
    "MAX_DATASET_NAME_LENGTH": "MAX_DATASET_NAME_SIZE",
    "MAX_DATASET_DIGEST_LENGTH": "MAX_DATASET_DIGEST_SIZE",
    "MAX_DATASET_SOURCE_LENGTH": "MAX_DATASET_SOURCE_SIZE",
    "MAX_DATASET_SCHEMA_LENGTH": "MAX_DATASET_SCHEMA_SIZE",
    "MAX_DATASET_PROFILE_LENGTH": "MAX_DATASET_PROFILE_SIZE",
    "MAX_INPUT_TAG_KEY_LENGTH": "MAX_INPUT_TAG_KEY_SIZE",
    "MAX_INPUT_TAG_VALUE_LENGTH": "MAX_INPUT_TAG_VALUE_SIZE",
}

theirs: Callable[[str], None] = mlflow_validation._validate_param_name

BAD_TEXT = ["a\0b", "\ud800", "x\udfff"]
BAD_KEYS = ["", "..", "../x", "/x", "a//b", "a/", ".", "./a", "a/../b", "a@b", "a(b)", "50%", "\U0001f600", "k" * 251]
NOT_STRINGS: list[object] = [5, 1.5, True, None, b"x", {}, []]


@pytest.mark.parametrize(("ours", "theirs"), COPIED.items())
def test_a_copied_limit_equals_that_of_the_installed_mlflow(ours: str, theirs: str) -> None:
    assert getattr(limits, ours) == getattr(mlflow_validation, theirs)


def test_the_run_name_limit_is_the_width_of_the_column() -> None:
    from mlflow.store.tracking.dbmodels.models import SqlRun

    assert SqlRun.__table__.c.name.type.length == limits.MAX_RUN_NAME_LENGTH


def test_run_statuses_are_those_of_mlflow() -> None:
    from mlflow.protos import service_pb2 as proto

    assert set(proto.RunStatus.keys()) == encoding.RUN_STATUSES


@given(st.text(max_size=40) | st.text("ab./_- :\n", max_size=12))
def test_a_key_passes_exactly_when_mlflow_would_take_it(key: str) -> None:
    try:
        theirs(key)
        takes = True
    except MlflowException:
        takes = False
    assert _passes(lambda: encoding.param(key, "v")) is takes


@given(st.floats(allow_nan=True, allow_infinity=True, width=64))
def test_every_float64_survives_the_json(value: float) -> None:
    sent = json.loads(encoding.dumps(encoding.metric("m", value, 0, 0)))["value"]
    assert not isinstance(sent, str) or sent in ("NaN", "Infinity", "-Infinity")
    if math.isnan(value):
        assert sent == "NaN"
    else:
        assert struct.pack("<d", float(sent)) == struct.pack("<d", value)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**63 - 1))
def test_every_int64_step_and_timestamp_survives_the_json(step: int, timestamp: int) -> None:
    sent = json.loads(encoding.dumps(encoding.metric("m", 1.0, timestamp, step)))
    assert (sent["step"], sent["timestamp"]) == (step, timestamp)


@pytest.mark.parametrize("step", [2**63, -(2**63) - 1, 1.5, 1.0, "1", True, None])
def test_a_step_that_is_no_int64_is_refused(step: object) -> None:
    with pytest.raises(Unencodable, match="step"):
        encoding.metric("m", 1.0, 0, step)  # type: ignore[arg-type]


@pytest.mark.parametrize("timestamp", [-1, 2**63, 0.5, "0", False, None])
def test_a_timestamp_that_is_no_positive_int64_is_refused(timestamp: object) -> None:
    with pytest.raises(Unencodable, match="timestamp"):
        encoding.metric("m", 1.0, timestamp, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["1", None, True, [1], 1j, 10**400])
def test_a_metric_value_that_is_no_float64_is_refused(value: object) -> None:
    with pytest.raises(Unencodable, match="metric value"):
        encoding.metric("m", value, 0, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [*BAD_KEYS, *BAD_TEXT])
def test_a_bad_key_is_refused_everywhere(key: str) -> None:
    encoders: list[Callable[[], object]] = [
        lambda: encoding.metric(key, 1.0, 0, 0),
        lambda: encoding.param(key, "v"),
        lambda: encoding.tag(key, "v"),
        lambda: encoding.experiment_tag(key, "v"),
    ]
    for encode in encoders:
        with pytest.raises(Unencodable):
            encode()


@pytest.mark.parametrize("value", [*BAD_TEXT, *NOT_STRINGS])
def test_a_value_that_is_no_clean_string_is_refused_everywhere(value: str) -> None:
    for encode in (
        lambda: encoding.param("k", value),
        lambda: encoding.tag("k", value),
        lambda: encoding.experiment_tag("k", value),
        lambda: encoding.experiment_name(value),
        lambda: encoding.run_name(value),
        lambda: encoding.workspace(value),
        lambda: encoding.dataset_input(value, "d", "t", "s"),
        lambda: encoding.dataset_input("n", value, "t", "s"),
        lambda: encoding.dataset_input("n", "d", value, "s"),
        lambda: encoding.dataset_input("n", "d", "t", value),
        lambda: encoding.dataset_input("n", "d", "t", "s", tags=[("k", value)]),
    ):
        with pytest.raises(Unencodable):
            encode()


@pytest.mark.parametrize(
    ("field", "limit"),
    [
        ("name", limits.MAX_DATASET_NAME_LENGTH),
        ("digest", limits.MAX_DATASET_DIGEST_LENGTH),
        ("source", limits.MAX_DATASET_SOURCE_LENGTH),
        ("schema", limits.MAX_DATASET_SCHEMA_LENGTH),
        ("profile", limits.MAX_DATASET_PROFILE_LENGTH),
    ],
)
def test_a_dataset_field_may_fill_its_limit_and_no_more(field: str, limit: int) -> None:
    fields: dict[str, Any] = {"name": "n", "digest": "d", "source_type": "t", "source": "s"}
    full = encoding.dataset_input(**{**fields, field: "é" * limit})["dataset"]
    assert isinstance(full, dict) and full[field] == "é" * limit
    with pytest.raises(Unencodable, match=field):
        encoding.dataset_input(**{**fields, field: "é" * (limit + 1)})


def test_names_may_fill_their_limits_and_no_more() -> None:
    for encode, limit in ((encoding.experiment_name, 500), (encoding.run_name, 8000), (encoding.workspace, 255)):
        assert encode("n" * limit) == "n" * limit
        with pytest.raises(Unencodable):
            encode("n" * (limit + 1))


def test_a_long_value_is_left_for_the_server_to_cut_but_not_without_bound() -> None:
    assert encoding.param("k", "v" * 6001)["value"] == "v" * 6001
    assert encoding.tag("k", "v" * 8001)["value"] == "v" * 8001
    assert encoding.tag("k", "v" * 10**6)["value"] == "v" * limits.MAX_SENT_VALUE_LENGTH
    widest = encoding.tag("k" * 250, "\x01" * 10**6)
    assert len(encoding.dumps(widest)) < limits.MAX_REQUEST_BYTES


def test_an_experiment_tag_is_refused_where_the_server_would_not_cut_it() -> None:
    assert encoding.experiment_tag("k", "v" * 20_000)
    with pytest.raises(Unencodable, match="20001"):
        encoding.experiment_tag("k", "v" * 20_001)


@pytest.mark.parametrize("body", [float("nan"), float("inf"), {"a": "\ud800"}, {"a": object()}, {"a": b"x"}])
def test_dumps_refuses_what_is_no_json(body: object) -> None:
    with pytest.raises(Unencodable):
        encoding.dumps(body)


@pytest.mark.parametrize("status", ["", "finished", "DONE", "FINISHED "])
def test_a_status_that_the_server_would_ignore_is_refused(status: str) -> None:
    with pytest.raises(Unencodable):
        encoding.run_status(status)


def test_a_reason_never_carries_control_characters_of_the_record() -> None:
    with pytest.raises(Unencodable) as caught:
        encoding.param("evil\x1b[2J\u202e", "v")
    assert caught.value.reason.isprintable()


def _passes(encode: Callable[[], object]) -> bool:
    try:
        encode()
    except Unencodable:
        return False
    return True
