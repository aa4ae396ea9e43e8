"""docs/commands.md: every verb with its options, its exit codes and its examples, as the command itself has them.

Owns turning the application into that text. ``make docs`` writes it; a test fails while the two differ.
"""

from __future__ import annotations

from typing import Any

import typer.main
from tests.house.tables import REPOSITORY

from mlferry_agent.cli import app
from mlferry_agent.commands.app import EXIT_CODES

__all__ = ["DOCUMENT", "document", "verbs"]

DOCUMENT = REPOSITORY / "docs" / "commands.md"

_HEAD = """# Commands

What `mlferry COMMAND --help` says, in one place (written from the command itself by `make docs`). `mlferry` alone says what
is going on and what to do next. Runs are named by their ids, by beginnings of them, or by their directories.

Colours and bars are for terminals alone; `NO_COLOR=1` takes the colours away, and on a pipe nothing is cut to a width. What
is said about a command's work goes to standard error, what was asked for to standard output; `--json` is for programs.
`mlferry --install-completion` teaches the shell the verbs, their options and the ids of your runs.

## Exit codes

| code | means |
|---|---|
{codes}
| 130 | interrupted (Ctrl-C): what is acknowledged stays so, and the same command goes on from there |

Of verbs that do not speak about delivery, 0 means that it is done; what else a code means there stands with the verb.
"""


def verbs() -> dict[str, Any]:
    """Every verb by its name, in the order of help."""
    group: Any = typer.main.get_command(app)
    return {name: group.commands[name] for name in group.list_commands(None)}


def document() -> str:
    """The whole text."""
    codes = "\n".join(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())
    parts, panel = [_HEAD.format(codes=codes)], ""
    for name, verb in verbs().items():
        if verb.rich_help_panel != panel:
            panel = verb.rich_help_panel
            parts.append(f"## {panel}\n")
        parts.append(_verb(name, verb))
    return "\n".join(parts)


def _verb(name: str, verb: Any) -> str:
    arguments = [param for param in verb.params if param.param_type_name == "argument"]
    options = [param for param in verb.params if param.param_type_name == "option" and not param.hidden]
    usage = " ".join([name, *(_usage(argument) for argument in arguments)])
    rows = [f"| `{_usage(param)}` | {_cell(param.help)} |" for param in arguments]
    rows += [f"| {_names(param)} | {_cell(param.help)} |" for param in options]
    table = "\n".join(["| argument, option | means |", "|---|---|", *rows])
    examples = "\n".join(f"$ {example}" for example in verb.examples)
    return f"### mlferry {usage}\n\n{verb.help}\n\n{table}\n\n```console\n{examples}\n```\n\n{verb.epilog}\n"


def _usage(argument: Any) -> str:
    shown = argument.metavar or argument.name.upper()
    shown = f"{shown}..." if argument.nargs != 1 and not shown.endswith("...") else shown
    return shown if argument.required else f"[{shown}]"


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    return f"{names} {option.metavar}" if option.metavar and not option.is_flag else names


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
