"""What importing and using mlferry brings into a process, and that its types are what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.sdk.conftest import REPOSITORY, Program

import mlferry

HEAVY = {
    "numpy",
    "torch",
    "mlflow",
    "aiohttp",
    "pandas",
    "matplotlib",
    "PIL",
    "psutil",
    "yaml",
    "requests",
    "sqlalchemy",
}
AVOIDED = {
    "asyncio",
    "logging",
    "urllib.request",
    "http.client",
    "ssl",
    "socket",
    "subprocess",
    "tempfile",
    "json",
    "email",
}


def modules(program: Program, source: str) -> set[str]:
    ended = program(source + "\nimport sys\nprint(*sys.modules, sep='\\n')\n")
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.split())


def test_importing_loads_nothing_that_is_not_used(program: Program) -> None:
    brought = modules(program, "import mlferry") - modules(program, "")
    assert {name for name in brought if name.startswith("mlferry")} == {"mlferry"}
    assert not brought & (HEAVY | AVOIDED)


def test_logging_numbers_and_texts_loads_no_heavy_library(program: Program) -> None:
    source = """
import mlferry
with mlferry.start_run():
    mlferry.log_metrics({"a": 1.0})
    mlferry.log_params({"a": 1})
    mlferry.log_text("x", "x.txt")
    mlferry.log_series("s", [1.0, 2.0])
"""
    assert not modules(program, source) & (HEAVY | AVOIDED)


def test_every_public_name_is_found_and_described() -> None:
    for name in mlferry.__all__:
        assert getattr(mlferry, name) is not None
        assert name == "__version__" or getattr(mlferry, name).__doc__, name
    assert set(mlferry.__all__) <= set(dir(mlferry))


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        mlferry.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_programs_that_use_the_interface_pass_the_type_checker(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "tests/typing/api.py"]
    checked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert checked.returncode == 0, checked.stdout
