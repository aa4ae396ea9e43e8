"""The verbs that cross an air gap, or bring in what other tools have logged: export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mlferry_agent.commands.app import CARRY, Dir, Json, Quiet, Runs, command, configured, err, out, print_json
from mlferry_agent.views.words import counted


@command(
    "export",
    CARRY,
    "mlferry export /media/stick/monday.tar.zst",
    "mlferry export tuesday.tar.zst --since monday.tar.zst.receipt.json --split 4000",
)
def export(
    bundle: Annotated[Path, typer.Argument(metavar="FILE", help="The file to make, such as monday.tar.zst.")],
    runs: Runs = None,
    dir: Dir = None,
    since: Annotated[
        list[Path] | None, typer.Option("--since", metavar="RECEIPT", help="Leave out what has arrived; repeatable.")
    ] = None,
    split: Annotated[
        int | None, typer.Option("--split", metavar="MB", min=1, help="Parts of at most so many megabytes.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Bundle runs into one checksummed file.

    To be carried where the server is, and imported there. Runs may go on meanwhile: what they log later comes with the
    next bundle.
    """
    from mlferry_agent import ferrying
    from mlferry_agent.status import everything
    from mlferry_agent.views.messages import say
    from mlferry_agent.views.progress import carrying, waiting

    config = configured(dir=dir)
    with waiting(err, "reading what is there", quiet):
        manifest = ferrying.plan_export(config.dir, everything(config.dir, runs or []), since or [])
    with carrying(err, "exporting", sum(entry.size for entry in manifest.files), quiet) as on_bytes:
        limit = None if split is None else split * 1_000_000
        made = ferrying.export_bundle(config.dir, manifest, bundle, split_bytes=limit, on_bytes=on_bytes)
    known = f", {len(manifest.known):,} left out that have arrived" if manifest.known else ""
    say(out, f"{counted(len(manifest.files), 'file')} in {', '.join(map(str, made))}{known}")


@command(
    "import",
    CARRY,
    "mlferry import /media/stick/monday.tar.zst",
    "mlferry import tuesday.tar.zst.*",
    "mlferry import mlflow.db --artifacts /srv/mlflow/mlartifacts",
    "mlferry import lightning_logs --experiment birds",
)
def import_(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            exists=True,
            help="A bundle, or its parts in order; an mlflow.db, an mlruns folder, TensorBoard's or wandb's folder.",
        ),
    ],
    dir: Dir = None,
    receipt: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Where to write a bundle's receipt. Default: beside the bundle.", show_default=False
        ),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option(
            "--experiment", metavar="NAME", help="Where runs of TensorBoard and wandb go.", show_default=False
        ),
    ] = None,
    artifacts: Annotated[
        Path | None,
        typer.Option(
            "--artifacts",
            metavar="PATH",
            exists=True,
            file_okay=False,
            help="Where an MLflow server kept its artifacts. Default: beside its database.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a bundle, or what other tools logged, into this spool.

    It comes whole or not at all. Then `mlferry sync`, or the agent, delivers it. Importing twice changes nothing, and
    what has grown since is added. A bundle's receipt, carried back, lets the next bundle leave out what has arrived, and
    `mlferry clean` make room.
    """
    from mlferry_agent.importing.showing import Options, import_others

    config = configured(dir=dir)
    if not import_others(config.dir, paths, Options(experiment, artifacts), as_json=as_json, quiet=quiet):
        _import_bundle(config.dir, paths, receipt, as_json=as_json, quiet=quiet)


def _import_bundle(root: Path, parts: list[Path], receipt: Path | None, *, as_json: bool, quiet: bool) -> None:
    from mlferry_agent import ferrying
    from mlferry_agent.views.messages import say
    from mlferry_agent.views.progress import carrying

    with carrying(err, "importing", sum(part.stat().st_size for part in parts), quiet or as_json) as on_bytes:
        done = ferrying.import_bundle(root, parts, on_bytes)
    path = receipt or parts[0].with_name(f"{parts[0].name}.receipt.json")
    ferrying.write_receipt(done.receipt, path)
    if as_json:
        print_json({"new": done.new, "there": done.there, "receipt": str(path)})
        return
    say(out, f"{counted(done.new, 'file')} imported, {done.there:,} were there; receipt: {path}")
    say(out, "deliver them with: mlferry sync")
