"""The tables of the documents that repeat the code: error classes with their messages, limits with their reasons.

Owns reading them out of the sources (without importing them) and their place in the documents. ``make docs`` rewrites the
tables; a test fails while they differ. What it never does: invent a word, all of them stand in the sources.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("sdk/mlferry", "spool/mlferry_spool", "agent/mlferry_agent")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: a name, what it is set to (empty for an error), what it means."""

    name: str
    value: str
    meaning: str


def errors(package: str) -> list[Row]:
    """Every exception class of a package with the message that a person reads."""
    tree = ast.parse((REPOSITORY / package / "errors.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [Row(node.name, "", _one_line(ast.get_docstring(node) or "")) for node in classes]


def limits(package: str) -> list[Row]:
    """Every constant of a package's ``limits`` with its reason: the comment before it or the string after it.

    Constants that follow one another under one reason share it.
    """
    source = (REPOSITORY / package / "limits.py").read_text(encoding="utf-8")
    found = list(_constants(ast.parse(source), source.splitlines()))
    for index in range(len(found) - 1, -1, -1):
        if not found[index].meaning:
            neighbour = found[index + 1] if index + 1 < len(found) and package.startswith("agent") else found[index - 1]
            found[index] = Row(found[index].name, found[index].value, neighbour.meaning)
    for index, row in enumerate(found):
        if not row.meaning:
            found[index] = Row(row.name, row.value, found[index - 1].meaning)
    return found


def _constants(tree: ast.Module, lines: list[str]) -> Iterator[Row]:
    following = {id(node): after for node, after in zip(tree.body, tree.body[1:], strict=False)}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        after = following.get(id(node))
        reason = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        value = eval(compile(ast.Expression(node.value), "limits", "eval"), {"__builtins__": {}})
        yield Row(node.targets[0].id, f"{value:,}", _one_line(str(reason)) or _comment_before(lines, node.lineno - 1))


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
    rows = [f"| `{row.name}` | {row.value} | {row.meaning} |" for row in limits(package)]
    return "\n".join(["| limit | value | reason |", "|---|---:|---|", *rows])


#: Which document holds which table; each stands between two HTML comments that name its source.
TABLES: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    ("docs/operating.md", "errors.py", error_table),
    ("docs/limits.md", "limits.py", limit_table),
)


def filled(text: str, module: str, make: Callable[[str], str]) -> str:
    """A document with its tables as the sources have them now."""
    for package in PACKAGES:
        begin, end = f"<!-- from {package}/{module} -->", "<!-- end -->"
        place = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        assert place.search(text), f"the document has no place for {package}/{module}"
        table = make(package)
        text = place.sub(lambda _, table=table, begin=begin: f"{begin}\n{table}\n{end}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    for name, module, make in TABLES:
        path = REPOSITORY / name
        path.write_text(filled(path.read_text(encoding="utf-8"), module, make), encoding="utf-8")
