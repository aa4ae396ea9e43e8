"""mlflow and mlferry, called alike: the limits, the names, the values and the errors are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.spools import told

import mlferry
from mlferry import errors, limits, validation, values

mlflow = pytest.importorskip("mlflow")

from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking.metric_value_conversion_utils import convert_metric_value_to_float_if_possible  # noqa: E402
from mlflow.utils import validation as theirs  # noqa: E402

#: MLflow and what it stands on warn of each other; that is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests: to make one takes seconds."""
    directory = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{directory}/mlflow.db"
    mlflow.MlflowClient(tracking_uri=uri).create_experiment(
        "side by side", artifact_location=f"file://{directory}/artifacts"
    )
    return uri


@pytest.fixture
def mlflow_run(database: str, spool: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # set_experiment sets it for child processes
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    mlflow.set_tracking_uri(database)
    mlflow.set_experiment("side by side")
    yield mlflow
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


def test_the_limits_are_those_of_the_installed_mlflow() -> None:
    assert limits.MAX_KEY_CHARS == theirs.MAX_ENTITY_KEY_LENGTH
    assert limits.MAX_PARAM_CHARS == theirs.MAX_PARAM_VAL_LENGTH
    assert limits.MAX_TAG_CHARS == theirs.MAX_TAG_VAL_LENGTH
    assert limits.MAX_EXPERIMENT_CHARS == theirs.MAX_EXPERIMENT_NAME_LENGTH
    assert limits.MAX_DATASET_NAME_CHARS == theirs.MAX_DATASET_NAME_SIZE
    assert limits.MAX_DATASET_DIGEST_CHARS == theirs.MAX_DATASET_DIGEST_SIZE
    assert limits.MAX_DATASET_SOURCE_CHARS == theirs.MAX_DATASET_SOURCE_SIZE
    assert limits.MAX_DATASET_SCHEMA_CHARS == theirs.MAX_DATASET_SCHEMA_SIZE
    assert limits.MAX_DATASET_PROFILE_CHARS == theirs.MAX_DATASET_PROFILE_SIZE
    assert limits.MAX_INPUT_TAG_KEY_CHARS == theirs.MAX_INPUT_TAG_KEY_SIZE
    assert limits.MAX_INPUT_TAG_CHARS == theirs.MAX_INPUT_TAG_VALUE_SIZE
    from mlflow.tracking.multimedia import COMPRESSED_IMAGE_SIZE

    assert limits.THUMBNAIL_PIXELS == COMPRESSED_IMAGE_SIZE


KEYS = [
    *(
        "loss",
        "a/b",
        "a b",
        "a.b-c_d:e",
        "ünïcode",
        "日本",
        "a" * 250,
        "a" * 251,
        "",
        ".",
        "..",
        "../x",
        "/x",
        "a//b",
        "a/",
    ),
    *("a/./b", "a/../b", "x@y", "100%", "(a)", "a\tb", "🙂", "a\\b", "-", ".hidden", "a\n", "a\nb", None, "...", "..a"),
]
STRICTER = {"a\n"}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_refused_where_mlflow_refuses_it(key: Any) -> None:
    def mlflow_accepts() -> bool:
        try:
            theirs._validate_metric(key, 1.0, 0, 0)
            theirs._validate_param(key or "" if key is not None else None, "x")
            theirs._validate_tag(key, "x")
        except (MlflowException, TypeError):
            return False
        return True

    def we_accept() -> bool:
        try:
            return validation.check_key(key) == key
        except errors.BadKey:
            return False

    assert we_accept() == (mlflow_accepts() and key not in STRICTER)


def numbers() -> list[Any]:
    import numpy as np
    import torch

    plain: list[Any] = [
        0.5,
        1,
        True,
        False,
        -0.0,
        10**300,
        "0.25",
        " 1 ",
        "nan",
        "1e400",
        "x",
        None,
        "",
        [1],
        {},
        object(),
    ]
    arrays = [
        np.float32(0.1),
        np.float64(0.1),
        np.int64(3),
        np.bool_(True),
        np.array(2.5),
        np.array([2.5]),
        np.array([1, 2]),
    ]
    tensors = [torch.tensor(0.1), torch.tensor([3]), torch.tensor([1.0, 2.0]), torch.tensor(1.5, requires_grad=True)]
    return [*plain, *arrays, *tensors, float("inf"), 1 + 0j, b"1"]


@pytest.mark.parametrize("value", numbers(), ids=lambda value: f"{type(value).__name__}-{value!r:.20}")
def test_a_value_is_the_number_that_mlflow_makes_of_it(value: Any) -> None:
    def outcome(convert: Callable[[Any], Any]) -> float | None:
        try:
            number = convert(value)
        except Exception:
            return None
        return number if type(number) is float else None

    mine, mlflows = outcome(values.as_float), outcome(convert_metric_value_to_float_if_possible)
    assert mine == mlflows or (mine is not None and mlflows is not None and math.isnan(mine) and math.isnan(mlflows))


def test_a_run_started_twice_is_an_error_in_both(mlflow_run: Any) -> None:
    said = []
    for module in (mlflow_run, mlferry):
        with module.start_run(), pytest.raises(Exception, match="is already active") as caught:
            module.start_run()
        said.append(str(caught.value))
    for text in said:
        assert "end_run()" in text
        assert "nested=True" in text


@pytest.mark.parametrize(
    "misuse",
    [
        lambda module: (module.log_param("depth", 1), module.log_param("depth", 2)),
        lambda module: module.log_metric("bad@key", 1.0),
        lambda module: module.log_metric("loss", "no number"),
        lambda module: module.log_metrics({"loss": 1.0}, timestamp=-1),
        lambda module: module.set_tag("../x", 1),
        lambda module: module.log_artifact("/nowhere/at/all"),
        lambda module: module.log_text("x", "../outside.txt"),
        lambda module: module.log_table("no table", "t.json"),
        lambda module: module.log_table({"a": [1]}, "t.csv"),
        lambda module: module.log_image([[1]], "x.png"),
        lambda module: module.log_figure("no figure", "x.png"),
        lambda module: module.end_run("DONE"),
        lambda module: module.start_run(run_id="../x"),
        lambda module: module.start_run(tags={"mlflow.note.content": "a"}, description="b", nested=True),
    ],
)
def test_what_mlflow_raises_for_is_raised_where_that_is_asked_for(
    mlflow_run: Any, raising: Path, misuse: Callable[[Any], Any]
) -> None:
    for module in (mlflow_run, mlferry):
        module.start_run()
        with pytest.raises(Exception) as caught:
            misuse(module)
        assert not isinstance(caught.value, (AttributeError, NameError))
        while module.active_run() is not None:
            module.end_run()


def test_long_values_are_cut_where_mlflow_cuts_them(mlflow_run: Any, spool: Path) -> None:
    with mlflow_run.start_run() as there:
        mlflow_run.log_param("p", "x" * 6001)
        mlflow_run.set_tag("t", "y" * 8001)
    with mlferry.start_run() as here:
        mlferry.log_param("p", "x" * 6001)
        mlferry.set_tag("t", "y" * 8001)
    data = mlflow_run.get_run(there.info.run_id).data
    found = told(spool, here.info.run_id)
    assert (found.params["p"], found.tags["t"]) == (data.params["p"], data.tags["t"])


def test_the_same_calls_leave_the_same_run(mlflow_run: Any, spool: Path, tmp_path: Path) -> None:
    """Params, tags and artifacts, byte for byte; the points too, through MLflow's own history."""
    (tmp_path / "file.bin").write_bytes(b"\0\1\2")
    (tmp_path / "folder/deep").mkdir(parents=True)
    (tmp_path / "folder/deep/x.txt").write_text("x")

    def train(module: Any) -> Any:
        with module.start_run(run_name="same", tags={"team": "a"}, description="words") as run:
            module.log_params({"lr": 1e-3, "layers": [1, 2], "none": None})
            for step in range(3):
                module.log_metrics({"loss": 1 / (step + 1), "acc": step}, step=step, timestamp=1000 + step)
            module.log_metric("text", "0.125", step=0, timestamp=5)
            module.log_dict({"a": [1, {"b": None}]}, "c/d.json")
            module.log_dict({"a": [1, {"b": None}]}, "d.yaml")
            module.log_text("größe\n", "words.txt")
            module.log_artifact(str(tmp_path / "file.bin"), "bin/sub")
            module.log_artifact(str(tmp_path / "folder"))
            module.log_artifacts(str(tmp_path / "folder"), "all")
            module.log_table({"a": [1, 2], "b": ["x/y", "é"]}, "tables/t.json")
            module.log_table({"a": [3], "b": ["z"]}, "tables/t.json")
        return run

    theirs_run, ours = train(mlflow_run), train(mlferry)
    found = told(spool, ours.info.run_id)
    data = mlflow_run.get_run(theirs_run.info.run_id).data
    client = mlflow_run.MlflowClient()
    points = {
        (key, point.value, point.step, point.timestamp)
        for key in data.metrics
        for point in client.get_metric_history(theirs_run.info.run_id, key)
    }
    assert set(found.points) == points
    assert found.params == data.params
    expected_tags = {key: value for key, value in data.tags.items() if not key.startswith("mlflow.source.git")}
    assert {key: value for key, value in found.tags.items() if not key.startswith("mlflow.source.git")} == expected_tags
    local = Path(mlflow_run.artifacts.download_artifacts(run_id=theirs_run.info.run_id, dst_path=str(tmp_path / "got")))
    files = {path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()}
    assert found.artifacts == files
