"""What tests of importing share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mlferry_agent.importing import mlflow_copies


@pytest.fixture
def taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """A database of today's schema needs no migration, which costs seconds."""
    monkeypatch.setattr(mlflow_copies, "_run", lambda *words, where: None)
    return lambda path: path
