"""The application that the verbs register with, the options that several of them share, and what they print to."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console, ConsoleDimensions

from mlferry_agent.commands.help import Group, Verb

if TYPE_CHECKING:
    from mlferry_agent.config import Config

__all__ = ["app", "command", "complete_run", "configured", "err", "out", "print_json"]

#: Exit codes and what they mean, for help and documents; the numbers are those of ``status``.
EXIT_CODES = {
    0: "everything is acknowledged",
    1: "failed",
    2: "wrong usage",
    3: "something is quarantined or parked, or differs, and needs you",
    4: "something is pending",
}

VERDICT = f"Exit codes: {', '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}."

#: Of verbs that say nothing about delivery; and of those that compare.
DONE = "Exit codes: 0 done, 1 failed, 2 wrong usage."
IMPORTED = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage; with --into also 3 something was set aside and needs you,"
    " 4 a run goes on."
)
COMPARED = "Exit codes: 0 no difference, 1 failed, 2 wrong usage, 3 something differs and needs you."

#: Groups of verbs, as help shows them.
LOG, LOOK, DELIVER, ASIDE = "Log", "See", "Deliver", "Set right, tidy up"
CARRY, MACHINE = "Across an air gap", "This machine"

#: Columns where nobody's eyes need a line to end.
_ON_A_PIPE = 1000

app = typer.Typer(
    name="mlferry",
    cls=Group,
    help="Carries MLflow runs that were logged offline to their tracking server, each record exactly once."
    " Alone, it says what is going on and what to do next.",
    epilog=VERDICT,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Screen(Console):
    """A terminal as wide as it is; for a pipe, as wide as what is written, so that nothing is cut for whoever reads it."""

    @property  # type: ignore[misc]  # nobody sets it
    def size(self) -> ConsoleDimensions:
        if self.is_terminal or os.environ.get("COLUMNS"):
            return super().size
        return ConsoleDimensions(_ON_A_PIPE, 50)


#: Names are shown as they are: none is taken for the name of an emoji.
out = Screen(emoji=False)
err = Screen(stderr=True, emoji=False)

Function = TypeVar("Function", bound=Callable[..., None])


def command(
    name: str, panel: str, *examples: str, ends: str = DONE, settings: dict[str, Any] | None = None
) -> Callable[[Function], Function]:
    """Registers a verb, whose help is the function's docstring. ``examples``: whole command lines. ``ends``: exit codes.
    ``settings``: of click, how its words are read."""

    def register(function: Function) -> Function:
        cls = type("Verb", (Verb,), {"examples": examples})
        paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
        told = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        register_with = app.command(
            name, cls=cls, rich_help_panel=panel, epilog=ends, help=told, context_settings=settings
        )
        return register_with(function)

    return register


def configured(**flags: Any) -> Config:
    """The configuration with these flags. Raises ``BadConfiguration``."""
    from mlferry_agent.config import load

    return load(os.environ, flags)


def print_json(value: object) -> None:
    """For machines: ASCII, so that no name writes to a terminal."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


# -- options that several verbs share -----------------------------------------------------------------------------------


def complete_run(incomplete: str) -> list[tuple[str, str]]:
    """Runs of the spool for the shell's completion, the newest first: names of directories alone, nothing is read."""
    from mlferry_spool.layout import default_root, run_directories, run_id_of

    try:
        names = [path.name for path in run_directories(default_root(os.environ))]
    except OSError:
        return []
    runs = [(run_id_of(name) or "", name[:15]) for name in reversed(names)]
    return [(run_id, f"begun {began} UTC") for run_id, began in runs if run_id.startswith(incomplete)]


def complete_policy(incomplete: str) -> list[str]:
    """What ``--deleted`` takes, for the shell's completion."""
    return [policy for policy in ("quarantine", "recreate", "drop") if policy.startswith(incomplete)]


To = Annotated[
    str | None, typer.Option("--to", metavar="URL", help="The server. Else MLFERRY_TO, MLFLOW_TRACKING_URI.")
]
Dir = Annotated[
    Path | None,
    typer.Option("--dir", metavar="PATH", help="The spool. Else MLFERRY_DIR, else ~/.local/share/mlferry."),
]
State = Annotated[
    Path | None,
    typer.Option("--state-dir", metavar="PATH", help="The ledger's directory. Else MLFERRY_STATE_DIR."),
]
Stale = Annotated[
    float | None,
    typer.Option("--stale-after", metavar="SECONDS", help="Silence after which a writer on another host is dead."),
]
Wait = Annotated[
    float | None,
    typer.Option("--give-up-after", metavar="SECONDS", help="Come back when the server is away for so long."),
]
OnDeleted = Annotated[
    str | None,
    typer.Option(
        "--deleted",
        metavar="POLICY",
        help="What becomes of runs that somebody deleted on the server: quarantine, recreate or drop.",
        autocompletion=complete_policy,
    ),
]
Http = Annotated[
    str | None,
    typer.Option("--http", metavar="ADDRESS", help="A status page: 127.0.0.1:9477, unix:/path/to/socket, or off."),
]
Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="Run ids, beginnings of them, or directories; all if none.",
        autocompletion=complete_run,
        show_default=False,
    ),
]
NamedRuns = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RUN",
        help="Run ids, beginnings of them, or directories.",
        autocompletion=complete_run,
        show_default=False,
    ),
]
OneRun = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id, the beginning of one, or a directory.", autocompletion=complete_run
    ),
]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
