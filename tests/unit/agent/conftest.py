"""A workbench for the tests of the agent's core, and the command for those of what people see."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.workbench import Workbench

from mlferry_agent import cli

Mlferry = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("MLFERRY_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFERRY_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("MLFERRY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "spool"


@pytest.fixture
def mlferry(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Mlferry:
    """Run the command as ``main`` does: its exit code, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mlferry", *words])
        code = cli.run()
        found = capfd.readouterr()
        assert "Traceback" not in found.out + found.err
        return code, found.out, found.err

    return run
