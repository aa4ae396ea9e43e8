"""The verbs that look, and change nothing: status, id, dump, demo."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mlferry_agent.commands.app import (
    LOOK,
    MACHINE,
    VERDICT,
    Dir,
    Json,
    Runs,
    State,
    To,
    command,
    configured,
    err,
    out,
    print_json,
)


@command(
    "status",
    LOOK,
    "mlferry status",
    "mlferry status --all",
    "mlferry status --json | jq '.[] | select(.pending > 0)'",
    ends=VERDICT,
)
def status(
    runs: Runs = None,
    every: Annotated[bool, typer.Option("--all", help="List runs that are long delivered, too.")] = False,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Show what is acknowledged, pending and quarantined.

    Where there are many runs, those are listed that live, wait or need you, and the rest is counted.
    """
    from mlferry_agent import status as standing
    from mlferry_agent.commands.verdicts import show
    from mlferry_agent.destinations import known_url, statuses
    from mlferry_agent.views.progress import waiting

    config = configured(to=to, dir=dir, state_dir=state_dir)
    with waiting(err, "counting", as_json):
        found = statuses(config, os.environ, runs or [])
    show(found, known_url(config, os.environ), as_json=as_json, every=every or bool(runs))
    raise typer.Exit(standing.exit_code(found))


@command("id", LOOK, "mlferry id 4f2c", "mlferry id m-5d41402abc4b2a76b9719d911017c592 --json")
def id_(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of either side, or beginnings of them.")],
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Look up ids: what a thing is called on the other side.

    Runs, logged models, experiments and model versions, by the id that they have on the server or had offline.
    """
    from mlferry_agent.destinations import names
    from mlferry_agent.errors import UnknownId
    from mlferry_agent.views.messages import show_names

    config = configured(to=to, dir=dir, state_dir=state_dir)
    found = {given: names(config, os.environ, given) for given in ids}
    if as_json:
        print_json({given: [asdict(item) for item in items] for given, items in found.items()})
    else:
        show_names(out, [item for items in found.values() for item in items])
    missing = [given for given, items in found.items() if not items]
    if missing:
        raise UnknownId(", ".join(missing))


@command("dump", LOOK, "mlferry dump ~/.local/share/mlferry/runs/20261124T101500-4f2c")
def dump(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", exists=True, help="Segments (*.seg), or directories of them.")
    ],
) -> None:
    """Print segments frame by frame, a JSON object a line."""
    from mlferry_spool.dump import dump_segment

    for file in files:
        for segment in sorted(file.rglob("*.seg")) if file.is_dir() else [file]:
            for frame in dump_segment(segment):
                sys.stdout.write(json.dumps({"segment": str(segment), **frame}, ensure_ascii=True) + "\n")


@command("demo", MACHINE, "mlferry demo", "mlferry demo --in /tmp/demo --keep", ends=VERDICT)
def demo(
    directory: Annotated[Path, typer.Option("--in", metavar="PATH", help="Where to work; made anew.")] = Path(".demo"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server running until Enter is pressed.")] = False,
) -> None:
    """See the whole way in one command, on this machine.

    A training that has no network is killed half-way and goes on; then an MLflow server begins, the run is delivered, read
    back and compared.
    """
    from mlferry_agent import demo as shown

    raise typer.Exit(shown.run(directory, out, keep=keep))
