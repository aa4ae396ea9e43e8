"""ui: MLflow's own UI over the spool."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from mlferry_agent.commands.app import LOOK, Dir, command, configured, err


@command("ui", LOOK, "mlferry ui", "mlferry ui --port 5001 --dir /media/stick/spool")
def ui(
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="NUMBER", min=1, max=65535, help="Where to listen.")] = 5000,
    dir: Dir = None,
) -> None:
    """Look at the spool in MLflow's own UI, live while runs write.

    A server of MLflow's, without network, until Ctrl-C. Looking writes nothing; what is changed there is logged to the
    spool, as if a script had done it, and delivered with the rest. Whoever reaches the address can change it: keep it to
    this machine.
    """
    from mlferry_agent.answers import printable
    from mlferry_agent.serving import check_can_serve, server_command, server_environ

    config = configured(dir=dir)
    check_can_serve(host, port)
    told = printable(f"MLflow's UI over {config.dir}: http://{host}:{port} (Ctrl-C ends it)")
    err.print(told, highlight=False, soft_wrap=True, markup=False)
    sys.stderr.flush()
    # Signals, the terminal and the exit code are the server's from here on.
    os.execve(sys.executable, server_command(config.dir, host, port), server_environ(os.environ))
