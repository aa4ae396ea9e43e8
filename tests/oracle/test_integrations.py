"""The framework integrations of the light SDK, without MLflow, against those that the frameworks have for MLflow, online."""

from __future__ import annotations

import pytest
from tests.oracle.stage import Stage


def test_lightning_trainings_leave_what_its_logger_for_mlflow_leaves(stage: Stage) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed; it comes with the extra `oracle`")
    assert stage.differences("lightning_sdk") == []


def test_hugging_face_trainings_leave_what_its_callback_for_mlflow_leaves_but_a_failed_one_is_failed(
    stage: Stage,
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed; it comes with the extra `oracle`")
    assert stage.differences("huggingface_sdk") == ["runs/3/status: 'FAILED' instead of 'FINISHED'"]
