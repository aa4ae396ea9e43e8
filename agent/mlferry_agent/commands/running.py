"""run: a training that logs to the spool, without a change of its code or of the environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mlferry_agent.commands.app import LOG, Dir, command

_ENDS = "Exit codes: 0 and all others are the program's own; 1 also that there is no such program, 2 wrong usage."


@command(
    "run",
    LOG,
    "mlferry run -- python train.py",
    "mlferry run --capture -- torchrun train.py",
    ends=_ENDS,
    settings={"allow_interspersed_args": False},
)
def run(
    program: Annotated[list[str], typer.Argument(metavar="PROGRAM...", help="The program with its arguments.")],
    capture: Annotated[
        bool, typer.Option("--capture", help="Keep what it prints as artifacts of its runs: secrets, too.")
    ] = False,
    dir: Dir = None,
) -> None:
    """Run a training whose MLflow logs to the spool.

    Sets MLFLOW_TRACKING_URI=spool: whatever it was (and MLFERRY_DIR, MLFERRY_CAPTURE as the options say), and becomes the
    program: signals, the terminal and the exit code are its own.
    """
    import shutil

    from mlferry_agent.answers import printable
    from mlferry_agent.errors import NoSuchProgram

    environ = environment(dict(os.environ), capture=capture, directory=dir)
    found = shutil.which(program[0])
    if found is None:
        raise NoSuchProgram(printable(program[0]))
    sys.stdout.flush()
    os.execve(found, program, environ)


def environment(environ: dict[str, str], *, capture: bool, directory: Path | None) -> dict[str, str]:
    """What the program finds in its environment."""
    if not environ.get("MLFLOW_TRACKING_URI", "").startswith("spool:"):
        environ["MLFLOW_TRACKING_URI"] = "spool:"  # many profiles of clusters name the server, which is not there
    if capture:
        environ["MLFERRY_CAPTURE"] = "1"
    if directory is not None:
        environ["MLFERRY_DIR"] = str(directory.absolute())
    return environ
