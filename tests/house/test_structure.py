"""The house rules that a machine can check: sizes, docstrings, roots without ``__init__``, nothing left undone."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("spool/mlferry_spool", "sdk/mlferry", "agent/mlferry_agent")
ROOTS = ("spool", "sdk", "agent", "systemd", "tests", "benchmarks", "examples")
MODULES = sorted(path for root in ROOTS for path in (REPOSITORY / root).rglob("*.py"))

MAX_FUNCTION_LINES = 60
MAX_MODULE_LINES = 500
MEDIAN_FUNCTION_LINES = 12


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines, docstring included, of every function and method in a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            yield f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def texts() -> Iterator[Path]:
    """Every file of ours that people read, hidden folders of tools left out."""
    for path in sorted(REPOSITORY.iterdir()):
        if path.is_dir() and (path.name in ROOTS or path.name in ("docs", ".ci")):
            yield from (file for file in sorted(path.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
        elif path.is_file():
            yield path


def test_the_walk_finds_the_packages() -> None:
    assert all(any((REPOSITORY / package) in module.parents for module in MODULES) for package in PACKAGES)


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{name} ({lines})" for module in MODULES for name, lines in functions(module) if lines > MAX_FUNCTION_LINES
    ]
    assert not long


def test_no_module_is_longer_than_a_sitting() -> None:
    sizes = {str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {name: lines for name, lines in sizes.items() if lines > MAX_MODULE_LINES}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_usual_function_is_short(package: str) -> None:
    lines = [lines for path in (REPOSITORY / package).rglob("*.py") for _, lines in functions(path)]
    assert statistics.median(lines) < MEDIAN_FUNCTION_LINES


def test_every_module_says_what_it_is_for() -> None:
    silent = [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert not silent


@pytest.mark.parametrize("root", ROOTS)
def test_a_source_root_is_not_a_package(root: str) -> None:
    assert not (REPOSITORY / root / "__init__.py").exists()


def test_nothing_is_left_undone_by_its_own_words() -> None:
    undone = re.compile(rb"\b(" + b"TO" + b"DO|FIX" + b"ME)\\b")
    assert not [path for path in texts() if undone.search(path.read_bytes())]


def test_the_changelog_describes_the_version_that_is_built() -> None:
    version = re.search(r'(?m)^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text())
    assert version
    assert re.search(
        rf"(?m)^## \[{re.escape(version[1])}\] - \d{{4}}-\d\d-\d\d$", (REPOSITORY / "CHANGELOG.md").read_text()
    )
