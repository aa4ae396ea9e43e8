"""The tables of the documents that repeat the code: error classes with their messages, limits with their reasons.

Owns reading them out of the sources and their place in the documents. ``make docs`` rewrites the
tables; a test fails while they differ. What it never does: invent a word, all of them stand in the sources.
"""

from __future__ import annotations

import ast
import importlib
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

    Constants that stand together share one reason: that of the first (comment) or of the last (string).
    """
    source = (REPOSITORY / package / "limits.py").read_text(encoding="utf-8")
    values = vars(importlib.import_module(f"{Path(package).name}.limits"))
    reasons = list(_reasons(ast.parse(source), source.splitlines()))
    rows, above = [], ""
    for index, (name, before, after) in enumerate(reasons):
        above = before or above
        below = next((later for _, _, later in reasons[index:] if later), "")
        rows.append(Row(name, f"{values[name]:,}", after or above or below))
    return rows


def _reasons(tree: ast.Module, lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Name, comment before and string after of every assignment."""
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            yield node.targets[0].id, _comment_before(lines, node.lineno - 1), _one_line(str(said))


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
        found = place.search(text)
        assert found, f"the document has no place for {package}/{module}"
        text = f"{text[: found.start()]}{begin}\n{make(package)}\n{end}{text[found.end() :]}"
    return text


if __name__ == "__main__":
    for name, module, make in TABLES:
        path = REPOSITORY / name
        path.write_text(filled(path.read_text(encoding="utf-8"), module, make), encoding="utf-8")
