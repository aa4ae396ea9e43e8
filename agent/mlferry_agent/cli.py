"""The `mlferry` command: options in, exit codes out. What it does is elsewhere; how it looks is in ``views``."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mlferry_agent import demo
from mlferry_agent import status as standing
from mlferry_agent.config import Config, load
from mlferry_agent.errors import AgentError, GaveUp
from mlferry_agent.ledger import Ledger, ledger_path
from mlferry_agent.service import serve
from mlferry_agent.sessions import destination_of
from mlferry_agent.syncing import known_url, statuses, sync, verify
from mlferry_agent.views import complain, progress, show_statuses, show_verifications
from mlferry_spool.dump import dump_segment
from mlferry_spool.errors import SpoolError

__all__ = ["app", "run"]

_EPILOG = (
    "Exit codes: 0 everything is acknowledged, 1 failed, 2 wrong usage, 3 something is quarantined or parked and needs you,"
    " 4 something is pending."
)

app = typer.Typer(
    name="mlferry",
    help="Carries MLflow runs that were logged offline to their tracking server, each record exactly once.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_out = Console()
_err = Console(stderr=True)

_RUNS = "Run ids, beginnings of them, or directories; all if none."

To = Annotated[
    str | None, typer.Option("--to", metavar="URL", help="The server. Else MLFERRY_TO, MLFLOW_TRACKING_URI.")
]
Dir = Annotated[Path | None, typer.Option("--dir", help="The spool. Else MLFERRY_DIR, else ~/.local/share/mlferry.")]
State = Annotated[Path | None, typer.Option("--state-dir", help="The ledger's directory. Else MLFERRY_STATE_DIR.")]
Stale = Annotated[
    float | None,
    typer.Option("--stale-after", metavar="SECONDS", help="Silence after which a writer on another host is dead."),
]
Wait = Annotated[
    float | None,
    typer.Option("--give-up-after", metavar="SECONDS", help="Come back when the server is away for so long."),
]
Runs = Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help=_RUNS)]
Segments = Annotated[list[Path], typer.Argument(exists=True, help="Segments (*.seg), or directories of them.")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")]


@app.callback(invoke_without_command=True)
def _main(version_: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version_:
        _out.print(f"mlferry {version('mlferry')}", highlight=False)
        raise typer.Exit


@app.command(epilog=_EPILOG)
def agent(to: To = None, dir: Dir = None, state_dir: State = None, stale_after: Stale = None) -> None:
    """Deliver continuously: the daemon that a unit starts."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    config = _config(to=to, dir=dir, state_dir=state_dir, stale_after_s=stale_after)
    asyncio.run(serve(config, os.environ))


@app.command("sync", epilog=_EPILOG)
def sync_(
    runs: Runs = None,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    stale_after: Stale = None,
    give_up_after: Wait = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Deliver now and come back. Safe beside a running agent."""
    config = _config(to=to, dir=dir, state_dir=state_dir, stale_after_s=stale_after, give_up_after_s=give_up_after)
    wanted = runs or []
    url = destination_of(config, os.environ).url
    before = statuses(config, os.environ, wanted)
    failure: AgentError | None = None
    with progress(_err, sum(status.pending for status in before), quiet or as_json) as meter:
        try:
            asyncio.run(sync(config, os.environ, wanted, meter.add, _say_beside))
        except GaveUp as error:
            failure = error
    found = statuses(config, os.environ, wanted)
    _show(found, url, as_json, quiet)
    if failure is not None:
        complain(_err, failure)
    raise typer.Exit(standing.PENDING if failure else standing.exit_code(found))


@app.command(epilog=_EPILOG)
def status(runs: Runs = None, to: To = None, dir: Dir = None, state_dir: State = None, as_json: Json = False) -> None:
    """Show what is acknowledged, pending and quarantined."""
    config = _config(to=to, dir=dir, state_dir=state_dir)
    found = statuses(config, os.environ, runs or [])
    _show(found, known_url(config, os.environ), as_json, quiet=False)
    raise typer.Exit(standing.exit_code(found))


@app.command("verify", epilog=_EPILOG)
def verify_(runs: Runs = None, to: To = None, dir: Dir = None, state_dir: State = None, as_json: Json = False) -> None:
    """Read the server back and compare every record with the spool."""
    config = _config(to=to, dir=dir, state_dir=state_dir)
    found = asyncio.run(verify(config, os.environ, runs or []))
    if as_json:
        sys.stdout.write(json.dumps([asdict(item) for item in found], indent=2) + "\n")
    else:
        show_verifications(_out, found)
    raise typer.Exit(standing.SET_ASIDE if any(item.differences for item in found) else standing.ALL_ACKNOWLEDGED)


@app.command(epilog=_EPILOG)
def retry(runs: Runs = None, to: To = None, dir: Dir = None, state_dir: State = None) -> None:
    """Try again what is quarantined or parked, once its cause is gone; deliver with sync or the agent."""
    config = _config(to=to, dir=dir, state_dir=state_dir)
    url = destination_of(config, os.environ).url
    found = [status for status in statuses(config, os.environ, runs or []) if status.is_set_aside]
    ledger = Ledger.open(ledger_path(config.state_dir, url), url)
    try:
        freed = sum(ledger.retry(status.run_id) for status in found)
    finally:
        ledger.close()
    _out.print(f"{freed} set free in {len(found)} runs; deliver them with: mlferry sync", highlight=False)


@app.command("demo")
def demo_(
    directory: Annotated[Path, typer.Option("--in", help="Where to work; made anew.")] = Path(".demo"),
    keep: Annotated[bool, typer.Option(help="Leave the server running until Enter is pressed.")] = False,
) -> None:
    """The main job in one command: train offline, be killed, go on, deliver to an embedded MLflow server, verify."""
    raise typer.Exit(demo.run(directory, _out, keep=keep))


@app.command()
def dump(
    files: Annotated[list[Path], typer.Argument(exists=True, help="Segments (*.seg), or directories of them.")],
) -> None:
    """Print segments frame by frame, a JSON object a line."""
    for file in files:
        for segment in sorted(file.rglob("*.seg")) if file.is_dir() else [file]:
            for frame in dump_segment(segment):
                sys.stdout.write(json.dumps({"segment": str(segment), **frame}, ensure_ascii=True) + "\n")


def run() -> int:
    """Run the command; returns its exit code. No stack trace for what is not a defect of ours."""
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except (AgentError, SpoolError) as error:
        complain(_err, error)
        return standing.FAILURE
    return 0


def _config(**flags: Any) -> Config:
    return load(os.environ, flags)


def _show(found: list[standing.RunStatus], url: str | None, as_json: bool, quiet: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps([status.as_json() for status in found], indent=2) + "\n")
    elif not quiet:
        show_statuses(_out, found, url)


def _say_beside() -> None:
    _err.print("An agent is delivering this spool to the same server; watching it.", highlight=False)
