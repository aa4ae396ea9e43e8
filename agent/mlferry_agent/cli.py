"""The `mlferry` command: its verbs put together, and errors made sentences. What it does is elsewhere."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Annotated

import typer

from mlferry_agent.commands import aside, bundles, delivering, looking, machine, running, runs, tidying, ui, watching
from mlferry_agent.commands.app import app, err, out
from mlferry_agent.commands.overview import overview

__all__ = ["app", "run"]

#: Modules whose verbs are registered by being imported.
VERBS = (running, looking, runs, watching, ui, delivering, aside, tidying, bundles, machine)


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version_: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version_:
        from importlib.metadata import version

        out.print(f"mlferry {version('mlferry')}", highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        overview()


def run() -> int:
    """Run the command; returns its exit code. Nobody is shown a stack trace who did not ask for it."""
    from mlferry_agent.errors import AgentError, Defect, FileTrouble
    from mlferry_agent.views.messages import complain
    from mlferry_spool.errors import SpoolError

    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except (AgentError, SpoolError) as error:
        complain(err, error)
        return 1
    except OSError as error:
        complain(err, FileTrouble(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")))
        return 1
    except Exception as error:
        if os.environ.get("MLFERRY_DEBUG"):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        complain(err, Defect(f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"))
        return 1
    return 0
