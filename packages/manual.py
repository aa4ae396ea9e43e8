"""mlferry(1): the manual page, written from the command itself, as docs/commands.md is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from mlferry_agent.cli import app
from mlferry_agent.commands.app import EXIT_CODES

__all__ = ["page"]

_FILES = {
    "/etc/mlferry/agent.toml, ~/.config/mlferry/agent.toml": "settings; see `mlferry config`",
    "~/.local/share/mlferry": "the spool, where nothing else is said",
    "~/.local/state/mlferry": "the ledger: what the server has acknowledged",
    "/usr/share/doc/mlferry": "the manual",
}


def page(version: str) -> str:
    """The whole page, for ``man``."""
    group: Any = typer.main.get_command(app)
    lines = [f'.TH MLFERRY 1 "" "mlferry {version}" "User Commands"']
    lines += [".SH NAME", f"mlferry \\- {_said('offline-first logging for MLflow: the command and its agent')}"]
    lines += [".SH SYNOPSIS", ".B mlferry", "[\\fICOMMAND\\fR [\\fIOPTION\\fR...] [\\fIARGUMENT\\fR...]]"]
    lines += [".SH DESCRIPTION", _said(group.help)]
    for name in group.list_commands(None):
        lines += _verb(name, group.commands[name])
    lines += [".SH EXIT STATUS", *_terms({str(code): meaning for code, meaning in EXIT_CODES.items()})]
    return "\n".join([*lines, ".SH FILES", *_terms(_FILES), ""])


def _verb(name: str, verb: Any) -> Iterator[str]:
    yield f".SH MLFERRY {name.upper()}"
    for paragraph in verb.help.split("\n\n"):
        yield from (".PP", _said(paragraph))
    for param in verb.params:
        if param.help and not getattr(param, "hidden", False):
            yield from _terms({_names(param): param.help})
    yield from (".PP", "Examples:", ".PP", ".nf", *(f".RS\n{_said(line)}\n.RE" for line in verb.examples), ".fi")
    yield from (".PP", _said(verb.epilog))


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return param.metavar or param.name.upper()
    names = ", ".join([*param.opts, *param.secondary_opts])
    return f"{names} {param.metavar}" if param.metavar and not param.is_flag else names


def _terms(explained: dict[str, str]) -> Iterator[str]:
    for term, meaning in explained.items():
        yield from (".TP", f"\\fB{_said(term)}\\fR", _said(meaning))


def _said(text: str) -> str:
    """Text as roff takes it: a dash stays the dash of a shell, and no line becomes an instruction."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "").replace("~", "\\(ti").replace("^", "\\(ha")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines())


if __name__ == "__main__":
    sys.stdout.write(page(sys.argv[1]))
