"""The documents agree with the code: tables, commands, options, environment variables, exit codes, links."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main
from tests.house import commands as commands_of_the_help
from tests.house import tables

from mlferry_agent import status
from mlferry_agent.cli import app

REPOSITORY = tables.REPOSITORY
DOCUMENTS = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "systemd" / "README.md",
]
EXAMPLES = [path for path in sorted((REPOSITORY / "examples").rglob("*")) if path.is_file() and path.suffix != ".pyc"]
UNITS = [*(REPOSITORY / "systemd").rglob("*.service")]
SOURCES = [path for package in tables.PACKAGES for path in sorted((REPOSITORY / package).rglob("*.py"))]

_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
_COMMAND = re.compile(r"(?m)(?:^|[`$#/] |[`/])mlferry +([a-z]+)\b([^`\n#]*)")
_VARIABLE = re.compile(r"\bMLFERRY_[A-Z_]*[A-Z]\b")


def code_of(document: Path) -> str:
    return "\n".join(_CODE.findall(document.read_text(encoding="utf-8")))


def commands() -> dict[str, set[str]]:
    """Every verb of the command with its options."""
    group = typer.main.get_command(app)
    verbs = group.commands  # type: ignore[attr-defined]
    return {name: {option for item in verb.params for option in item.opts} for name, verb in verbs.items()}


def source_text() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)


def has_test(path: str, name: str) -> bool:
    file = REPOSITORY / path
    return file.exists() and bool(re.search(rf"(?m)^(?:async )?def {name}\(", file.read_text(encoding="utf-8")))


def variables_of_the_code() -> set[str]:
    """Those that stand in the sources, and the agent's settings, whose names are made from its fields."""
    from dataclasses import fields

    from mlferry_agent.config import Config

    settings = {f"MLFERRY_{item.name.upper()}" for item in fields(Config) if item.name != "origins"}
    return set(_VARIABLE.findall(source_text())) | settings


@pytest.mark.parametrize(("name", "module", "make"), tables.TABLES, ids=[name for name, _, _ in tables.TABLES])
def test_the_tables_are_those_of_the_sources(name: str, module: str, make: Callable[[str], str]) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert tables.filled(text, module, make) == text, "run: make docs"


@pytest.mark.parametrize("package", tables.PACKAGES)
def test_every_error_and_every_limit_says_what_it_means(package: str) -> None:
    assert not [row.name for row in tables.errors(package) + tables.limits(package) if len(row.meaning) < 10]


@pytest.mark.parametrize("package", tables.PACKAGES)
def test_every_limit_says_what_lies_beyond_it_and_which_tests_show_it(package: str) -> None:
    rows = tables.limits(package)
    assert not [row.name for row in rows if not row.beyond or not row.tests]
    assert not [f"{path}::{name}" for row in rows for path, name in row.tests if not has_test(path, name)]


@pytest.mark.parametrize("package", tables.PACKAGES)
def test_whatever_is_called_a_maximum_stands_in_the_table(package: str) -> None:
    listed = {name.rpartition(".")[2] for row in tables.limits(package) for name in row.name.split(", ")}
    called = re.compile(r"(?m)^(_?[A-Z0-9_]*(?:MAX|MOST|LEAST|LIMIT|MIN)_[A-Z0-9_]+)(?:, [A-Z0-9_, ]+)? = [-0-9(]")
    sources = [path for path in SOURCES if path.is_relative_to(REPOSITORY / package)]
    assert not [name for path in sources for name in called.findall(path.read_text("utf-8")) if name not in listed]


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, *EXAMPLES, *UNITS], ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_every_command_that_is_named_exists(document: Path) -> None:
    text = code_of(document) if document.suffix == ".md" else document.read_text(encoding="utf-8")
    known = commands()
    for verb, rest in _COMMAND.findall(text):
        assert verb in known, f"mlferry {verb}"
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known[verb], f"mlferry {verb}{rest}"


def test_the_commands_are_documented_as_their_help_has_them() -> None:
    assert commands_of_the_help.document() == commands_of_the_help.DOCUMENT.read_text(encoding="utf-8"), (
        "run: make docs"
    )


def test_every_verb_has_examples_and_each_is_a_command_line_that_would_be_understood() -> None:
    for name, verb in commands_of_the_help.verbs().items():
        assert any(example.startswith(f"mlferry {name}") or f"mlferry {name} " in example for example in verb.examples)
        assert verb.epilog.startswith("Exit codes: 0 ")
        short = verb.help.partition("\n")[0]
        assert len(short) <= 64, f"{name}: its line in the help of 80 columns would be broken"
        lines = [example for example in verb.examples if example.startswith(f"mlferry {name}")]
        for line in lines:
            words = re.split(r"\s[|&]{1,2}\s", line)[0]
            verb.make_context(name, [word for word in shlex.split(words)[2:] if word != "||"], resilient_parsing=True)


def test_the_readme_names_every_command() -> None:
    named = {verb for verb, _ in _COMMAND.findall(code_of(REPOSITORY / "README.md"))}
    assert named == set(commands())


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, *EXAMPLES, *UNITS], ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_every_variable_that_is_named_is_read(document: Path) -> None:
    assert set(_VARIABLE.findall(document.read_text(encoding="utf-8"))) <= variables_of_the_code()


def test_the_readme_lists_every_variable() -> None:
    listed = set(_VARIABLE.findall((REPOSITORY / "README.md").read_text(encoding="utf-8")))
    assert listed == variables_of_the_code()


def test_the_variables_of_mlflow_in_the_readme_are_read() -> None:
    named = set(re.findall(r"\bMLFLOW_[A-Z_]+\b", (REPOSITORY / "README.md").read_text(encoding="utf-8")))
    # Joined at run time in the sources, so looked for by their last part.
    parts = source_text()
    assert not [name for name in named if name not in parts]


def test_the_exit_codes_in_the_readme_are_those_of_the_command() -> None:
    listed = re.findall(r"(?m)^\| (\d) \|", (REPOSITORY / "README.md").read_text(encoding="utf-8"))
    codes = [status.ALL_ACKNOWLEDGED, status.FAILURE, status.USAGE, status.SET_ASIDE, status.PENDING]
    assert [int(code) for code in listed] == codes


LINKED = [
    *DOCUMENTS,
    *sorted((REPOSITORY / "docs" / "api").glob("*.md")),
    *(REPOSITORY / name for name in ("CHANGELOG.md", "spool/FORMAT.md", "examples/README.md")),
]


@pytest.mark.parametrize("document", LINKED, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_inside_the_repository_leads_somewhere(document: Path) -> None:
    text = _CODE.sub("", document.read_text(encoding="utf-8"))
    missing = []
    for path, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", text):
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            missing.append(f"{path}#{anchor}")
    assert not missing


def _anchors(document: Path) -> set[str]:
    """Those of its headings, as a forge makes them: of headings that are alike, the later ones are numbered."""
    text = re.sub(r"(?ms)^```.*?^```", "", document.read_text(encoding="utf-8"))
    found: Counter[str] = Counter()
    anchors = set()
    for heading in re.findall(r"(?m)^#+ +(.+?) *$", text):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        anchors.add(f"{anchor}-{found[anchor]}" if found[anchor] else anchor)
        found[anchor] += 1
    return anchors


def test_the_tests_that_stand_behind_a_promise_exist() -> None:
    promises = [
        line for line in (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines() if line[:3] == "| P"
    ]
    assert len(promises) == 10
    named = {line.split("|")[1].strip(): re.findall(r"`(tests/[^`]+)`", line) for line in promises}
    assert not [path for paths in named.values() for path in paths if not (REPOSITORY / path).exists()]
    assert not [promise for promise, paths in named.items() if not paths]


@pytest.mark.parametrize(("document", "head"), [("security.md", "| attack "), ("reliability.md", "| fault | tests |")])
def test_each_attack_and_each_fault_has_tests_that_exist(document: str, head: str) -> None:
    text = (REPOSITORY / "docs" / document).read_text(encoding="utf-8")
    rows = [line for line in text[text.index(head) :].splitlines() if line.startswith("| ")][1:]
    named = {line.split("|")[1].strip(): re.findall(r"`(tests/[^`:]+)::(test_\w+)`", line) for line in rows}
    assert len(named) >= 10
    assert not [row for row, tests in named.items() if not tests]
    assert not [f"{path}::{name}" for tests in named.values() for path, name in tests if not has_test(path, name)]


def test_every_test_that_stands_behind_a_place_exists() -> None:
    named = re.findall(r"`(tests/[^`:]+)`", (REPOSITORY / "docs/places.md").read_text(encoding="utf-8"))
    assert len(named) >= 10
    assert not [path for path in named if not (REPOSITORY / path).exists()]
