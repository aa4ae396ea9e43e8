"""run: a command whose MLflow logs to the spool."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from mlferry_agent.commands.app import LOG, PASSED_ON, Dir, command
from mlferry_agent.cores import allow_cores


@command(
    "run",
    LOG,
    "mlferry run python train.py --lr 0.1",
    "mlferry run --capture torchrun --nproc-per-node 8 train.py",
    ends=PASSED_ON,
    takes_command=True,
)
def run(
    words: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="What to run, with its own options.")],
    capture: Annotated[
        bool, typer.Option("--capture", help="Keep what it prints, too, as artifacts of its runs (MLFERRY_CAPTURE=1).")
    ] = False,
    dir: Dir = None,
) -> None:
    """Run a command that logs with MLflow, and have it log to the spool.

    It is the same as MLFLOW_TRACKING_URI=spool: before the command: nothing of mlferry's stays between the two, and its exit
    code is that of the command.
    """
    environ = {**os.environ, "MLFLOW_TRACKING_URI": "spool:"}
    if capture:
        environ["MLFERRY_CAPTURE"] = "1"
    if dir is not None:
        environ["MLFERRY_DIR"] = str(Path(dir).absolute())
    allow_cores()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvpe(words[0], words, environ)
    except FileNotFoundError:
        raise typer.BadParameter(f"there is no command {words[0]!r}", param_hint="COMMAND") from None
