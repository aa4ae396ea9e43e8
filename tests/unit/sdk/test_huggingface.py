"""Hugging Face's callback, checked by what stands in the spool; that it equals MLflowCallback is the oracle's to say."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.spools import run_ids, told
from tests.unit.sdk.conftest import Program

import mlferry
from mlferry import values

pytest.importorskip("transformers", reason="transformers is not installed; it comes with the extra `oracle`")

from mlferry.huggingface import MLFerryCallback

CONTROL = SimpleNamespace()


def only_run(spool: Path) -> Any:
    (run_id,) = run_ids(spool)
    return told(spool, run_id)


def args_of(folder: Path | str = "out", **told: Any) -> Any:
    arguments = {"output_dir": str(folder), "run_name": "trained", **told}
    return SimpleNamespace(to_dict=lambda: dict(arguments), **arguments)


def state_of(step: int = 0, first: bool = True) -> Any:
    return SimpleNamespace(global_step=step, is_world_process_zero=first)


def model_of(**told: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(to_dict=lambda: dict(told)))


def test_a_training_starts_a_run_and_ends_it(spool: Path) -> None:
    callback = MLFerryCallback()
    callback.on_train_begin(args_of(lr=0.1, both=1), state_of(), CONTROL, model_of(layers=2, both=2))
    callback.on_log(args_of(), state_of(7), CONTROL, {"loss (train)": 0.5, "flag": True, "text": "1", "none": None})
    callback.on_train_end(args_of(), state_of(7), CONTROL)
    found = only_run(spool)
    assert found.params == {"layers": "2", "lr": "0.1", "both": "1", "output_dir": "out", "run_name": "trained"}
    assert [point[:3] for point in found.points] == [("loss _train_", 0.5, 7), ("flag", 1.0, 7)]
    assert (found.status, found.tags["mlflow.runName"], found.dropped) == ("FINISHED", "trained", 0)


def test_other_ranks_than_the_first_do_nothing(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MLFLOW_LOG_ARTIFACTS", "1")
    callback, state = MLFerryCallback(), state_of(first=False)
    callback.on_train_begin(args_of(), state, CONTROL, model_of())
    callback.on_log(args_of(), state, CONTROL, {"loss": 0.5})
    callback.on_save(args_of(), state, CONTROL)
    callback.on_train_end(args_of(), state, CONTROL)
    assert run_ids(spool) == []


def test_the_run_that_is_active_is_used_and_stays_active(spool: Path) -> None:
    with mlferry.start_run(run_name="mine") as run:
        callback = MLFerryCallback()
        callback.on_train_begin(args_of(), state_of(), CONTROL)
        callback.on_train_end(args_of(), state_of(), CONTROL)
        assert mlferry.active_run() is run
    assert only_run(spool).params["run_name"] == "trained"


def test_the_variables_of_the_environment_are_obeyed(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"EXPERIMENT_NAME": "nets", "TAGS": '{"team": 1}', "FLATTEN_PARAMS": "ON", "MAX_LOG_PARAMS": "3"}
    for name, value in told.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    MLFerryCallback().setup(args_of(), state_of(), model_of(a={"b": 1, "empty": {}}, c={1: {"d": 2}}))
    found = only_run(spool)
    assert found.params == {"a.b": "1", "a.empty": "{}", "c.1.d": "2"}
    assert (found.tags["team"], found.opens[0].experiment_name) == ("1", "nets")


def test_a_run_is_resumed_by_the_id_in_the_environment(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "ab" * 16)
    MLFerryCallback().setup(args_of(run_name=None), state_of(), None)
    assert run_ids(spool) == ["ab" * 16]
    assert only_run(spool).opens[0].resumed


def test_a_nested_run_is_started_below_the_active_one(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_NESTED_RUN", "true")
    with mlferry.start_run() as parent:
        callback = MLFerryCallback()
        callback.setup(args_of(), state_of(), None)
        child = mlferry.active_run()
        assert child is not None and child is not parent
        callback.on_train_end(args_of(), state_of(), CONTROL)
        assert mlferry.active_run() is parent
    assert told(spool, child.info.run_id).tags["mlflow.parentRunId"] == parent.info.run_id


@pytest.mark.parametrize("given", ["{", "[1]", "nonsense"])
def test_tags_that_are_none_are_said_and_stop_nothing(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    monkeypatch.setenv("MLFLOW_TAGS", given)
    MLFerryCallback().setup(args_of(), state_of(), None)
    assert "is no JSON object" in caplog.text
    assert only_run(spool).params["run_name"] == "trained"


def test_a_param_that_is_too_long_is_left_out_and_said(spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    MLFerryCallback().setup(args_of(long="x" * 6001, fits="x" * 6000), state_of(), None)
    assert "the param long is longer" in caplog.text
    assert set(only_run(spool).params) == {"fits", "output_dir", "run_name"}


@pytest.mark.parametrize(("asked", "logged"), [("1", {"checkpoint-4/model.bin": b"weights"}), ("0", {})])
def test_a_checkpoint_is_logged_where_that_is_asked_for(
    spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, logged: dict[str, bytes]
) -> None:
    monkeypatch.setenv("HF_MLFLOW_LOG_ARTIFACTS", asked)
    (tmp_path / "out" / "checkpoint-4").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-4" / "model.bin").write_bytes(b"weights")
    callback = MLFerryCallback()
    callback.setup(args_of(tmp_path / "out"), state_of(), None)
    callback.on_save(args_of(tmp_path / "out"), state_of(4), CONTROL)
    assert only_run(spool).artifacts == logged


def begin(callback: MLFerryCallback) -> None:
    callback.on_train_begin(args_of(), state_of(), CONTROL)


def evaluate(callback: MLFerryCallback) -> None:
    callback.on_log(args_of(), state_of(), CONTROL, {"eval_loss": 0.5})


@pytest.mark.parametrize(("used", "status"), [(begin, "FAILED"), (evaluate, "FINISHED")])
def test_a_callback_that_is_given_up_ends_its_run(
    spool: Path, used: Callable[[MLFerryCallback], None], status: str
) -> None:
    callback = MLFerryCallback()
    used(callback)
    del callback
    gc.collect()
    assert mlferry.active_run() is None
    assert only_run(spool).status == status


def test_a_number_on_a_device_is_not_waited_for(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnDevice:
        def numel(self) -> int:
            return 1

        def item(self) -> float:
            raise AssertionError("the training would wait here")

    class Later:
        def takes(self, value: Any) -> bool:
            return isinstance(value, OnDevice)

        def take(self, values: Mapping[str, Any], call: values.Call) -> list[Exception]:
            call.deliver(dict.fromkeys(values, 0.25))
            return []

        def settle(self, timeout_s: float, owner: object | None = None) -> bool:
            return True

    monkeypatch.setattr(values, "_laters", [Later()])
    MLFerryCallback().on_log(args_of(), state_of(2), CONTROL, {"loss": OnDevice()})
    assert [point[:3] for point in only_run(spool).points] == [("loss", 0.25, 2)]


IMPORT = """
import sys
sys.modules["MISSING"] = None  # importing it raises, as where it is not installed
import mlferry.huggingface
"""


def test_without_transformers_the_error_says_what_to_install(program: Program) -> None:
    ended = program(IMPORT.replace("MISSING", "transformers"))
    assert ended.stderr.splitlines()[-1].endswith("which is not installed: pip install transformers")


def test_it_is_imported_without_mlflow(program: Program) -> None:
    ended = program(IMPORT.replace("MISSING", "mlflow"), PYTHONWARNINGS="ignore")
    assert ended.returncode == 0, ended.stderr
