"""The stage that the tests of one module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.oracle.stage import Stage
from tests.servers import MlflowServer


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Two fresh servers and a folder."""
    folder = tmp_path_factory.mktemp("oracle")
    with MlflowServer(folder / "online") as online, MlflowServer(folder / "target") as target:
        yield Stage(online, target, folder)
