"""The tables of the documents that repeat the code: error classes with their messages, limits with their reasons, and what
the last `make chaos` and `make soak` have found.

Owns reading them out of the sources and their place in the documents. ``make docs`` rewrites the
tables; a test fails while they differ. What it never does: invent a word, all of them stand in the sources.

A limit is a constant with its reason in the comment before it or the string after it, which may go on with

    Beyond: what happens to what exceeds it.
    Test: tests/unit/test_it.py::test_that_it_happens, another

Those of a package's ``limits`` are all listed, those of its other modules where they say what lies beyond.
"""

from __future__ import annotations

import ast
import operator
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos import report

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("sdk/mlferry", "spool/mlferry_spool", "agent/mlferry_agent")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: a name, what it is set to (empty for an error), what it means; of a limit, what happens beyond it
    and which tests show that, as (path, name)."""

    name: str
    value: str
    meaning: str
    beyond: str = ""
    tests: tuple[tuple[str, str], ...] = ()


def errors(package: str) -> list[Row]:
    """Every exception class of a package with the message that a person reads."""
    tree = ast.parse((REPOSITORY / package / "errors.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [Row(node.name, "", _one_line(ast.get_docstring(node) or "")) for node in classes]


def limits(package: str) -> list[Row]:
    """Every constant of a package's ``limits``, then those of its other modules that say what lies beyond them.

    Constants that stand together share what is said of them: that of the first (comment) or of the last (string).
    """
    own = list(_limits_of(package, REPOSITORY / package / "limits.py"))
    others = sorted(path for path in (REPOSITORY / package).rglob("*.py") if path.name != "limits.py")
    return own + [row for path in others for row in _limits_of(package, path) if row.beyond]


def _limits_of(package: str, path: Path) -> Iterator[Row]:
    source = path.read_text(encoding="utf-8")
    said = list(_said(ast.parse(source), source.splitlines()))
    parts = path.relative_to(REPOSITORY / package).with_suffix("").parts
    prefix = "" if parts == ("limits",) else f"{'.'.join(parts)}."
    above = ""
    for index, one in enumerate(said):
        # Only what stands under the same comment shares it; in ``limits`` a string at the end speaks for all before it.
        above = one.before or (above if not prefix else "")
        below = "" if prefix else next((later.after for later in said[index:] if later.after), "")
        text = one.after or above or below
        if prefix and not _BEYOND.search(text):
            continue
        values = ", ".join(f"{_number(value):,}" for value in one.values)
        yield _row(", ".join(f"{prefix}{name}" for name in one.names), values, text)


_BEYOND = re.compile(r"\s*\bBeyond: ")
_TESTS = re.compile(r"\s*\bTest: ")
_TEST = re.compile(r"(tests/\S+\.py)::\s*(test_\w+)")


def _row(name: str, value: str, text: str) -> Row:
    text, *tests = _TESTS.split(text, maxsplit=1)
    meaning, *beyond = _BEYOND.split(text, maxsplit=1)
    return Row(name, value, meaning, "".join(beyond), tuple(_TEST.findall("".join(tests))))


@dataclass(frozen=True, slots=True)
class _Said:
    """An assignment of constants, with the comment before it and the string after it."""

    names: tuple[str, ...]
    values: tuple[ast.expr, ...]
    before: str
    after: str


def _said(tree: ast.Module, lines: list[str]) -> Iterator[_Said]:
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and (names := _constants(node.targets[0])):
            values = tuple(node.value.elts) if isinstance(node.value, ast.Tuple) and len(names) > 1 else (node.value,)
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            yield _Said(names, values, _comment_before(lines, node.lineno - 1), _one_line(str(text)))


def _constants(target: ast.expr) -> tuple[str, ...]:
    parts = target.elts if isinstance(target, ast.Tuple) else [target]
    names = tuple(part.id for part in parts if isinstance(part, ast.Name))
    return names if all(name.isupper() for name in names) else ()


_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.LShift: operator.lshift,
    ast.Mult: operator.mul,
    ast.Pow: operator.pow,
    ast.Sub: operator.sub,
    ast.USub: operator.neg,
}


def _number(node: ast.expr) -> Any:
    """The value of an expression over plain numbers. The modules are not imported: some take seconds."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_number(node.left), _number(node.right))
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)](_number(node.operand))
    return ast.literal_eval(node)


def _comment_before(lines: list[str], at: int) -> str:
    start = at
    while start > 0 and lines[start - 1].startswith("#:"):
        start -= 1
    return _one_line(" ".join(line.removeprefix("#:") for line in lines[start:at]))


def _one_line(text: str) -> str:
    return " ".join(textwrap.dedent(text).split()).replace("|", "\\|")


def error_table(package: str) -> str:
    rows = [f"| `{row.name}` | {row.meaning} |" for row in errors(package)]
    return "\n".join(["| error | what happened, what was kept, what to do |", "|---|---|", *rows])


def limit_table(package: str) -> str:
    rows = [
        f"| `{row.name}` | {row.value} | {row.meaning} | {row.beyond} | {_shown(row.tests)} |"
        for row in limits(package)
    ]
    return "\n".join(["| limit | value | reason | beyond it | test |", "|---|---:|---|---|---|", *rows])


def _shown(tests: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"`{path}::{name}`" for path, name in tests)


#: Which document holds which table; each stands between two HTML comments that name its source.
TABLES: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("docs/operating.md", "errors.py", error_table),
    ("docs/limits.md", "limits.py", limit_table),
    ("docs/reliability.md", report.KEPT.name, report.table),
)


def filled(text: str, module: str, make: Callable[[str], str]) -> str:
    """A document with its tables as the sources have them now."""
    sources = {f"{package}/{module}": package for package in PACKAGES}
    if module == report.KEPT.name:
        sources = {f"docs/{module}: {run}": run for run in report.RUNS}
    for source, name in sources.items():
        begin, end = f"<!-- from {source} -->", "<!-- end -->"
        place = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        found = place.search(text)
        assert found, f"the document has no place for {source}"
        text = f"{text[: found.start()]}{begin}\n{make(name)}\n{end}{text[found.end() :]}"
    return text


if __name__ == "__main__":
    for name, module, make in TABLES:
        path = REPOSITORY / name
        path.write_text(filled(path.read_text(encoding="utf-8"), module, make), encoding="utf-8")
