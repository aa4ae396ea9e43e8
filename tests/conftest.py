"""Fixtures that several kinds of tests share: real MLflow servers. Property tests get their profile here, by an import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tests.examples  # noqa: F401
from tests.servers import MlflowServer


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server shared by all tests of a worker: make your own experiments and runs, and leave it running."""
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[MlflowServer]:
    """A server of the test's own, to kill and restart (5 s each time)."""
    with MlflowServer(tmp_path / "mlflow") as server:
        yield server
