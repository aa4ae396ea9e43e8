"""The verbs that cross an air gap, or bring in what other tools have logged: export, import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlferry_agent.commands.app import (
    CARRY,
    IMPORTED,
    Dir,
    Json,
    OnDeleted,
    Quiet,
    Runs,
    Stale,
    State,
    command,
    configured,
    err,
    out,
    print_json,
)
from mlferry_agent.views.words import counted

if TYPE_CHECKING:
    from mlferry_agent.config import Config
    from mlferry_agent.ferrying import Imported


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


Paths = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="PATH...",
        exists=True,
        help="A bundle, or its parts in order; an mlflow.db, an mlruns folder, TensorBoard's or wandb's folder.",
        show_default=False,
    ),
]
Into = Annotated[
    str | None,
    typer.Option(
        "--into",
        metavar="URI",
        help="Write a bundle on into the database of an MLflow server; without PATH, the whole spool.",
        show_default=False,
    ),
]
ReceiptPath = Annotated[
    Path | None,
    typer.Option(
        "--receipt",
        metavar="PATH",
        help="Where to write a bundle's receipt. Default: beside the bundle.",
        show_default=False,
    ),
]
Experiment = Annotated[
    str | None,
    typer.Option("--experiment", metavar="NAME", help="Where runs of TensorBoard and wandb go.", show_default=False),
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        "--artifacts",
        metavar="PLACE",
        help="Where an MLflow server keeps its artifacts: a folder, or with --into a URI. Default: beside its database.",
        show_default=False,
    ),
]


@command(
    "import",
    CARRY,
    "mlferry import /media/stick/monday.tar.zst",
    "mlferry import tuesday.tar.zst.*",
    "mlferry import mlflow.db --artifacts /srv/mlflow/mlartifacts",
    "mlferry import lightning_logs --experiment birds",
    "mlferry import monday.tar.zst --into sqlite:////srv/mlflow/mlflow.db",
    "mlferry import --into postgresql://mlflow@db/mlflow --artifacts s3://bucket/mlflow",
    ends=IMPORTED,
)
def import_(
    paths: Paths = None,
    dir: Dir = None,
    into: Into = None,
    receipt: ReceiptPath = None,
    experiment: Experiment = None,
    artifacts: Artifacts = None,
    state_dir: State = None,
    stale_after: Stale = None,
    deleted: OnDeleted = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a bundle, or what other tools logged, into this spool.

    It comes whole or not at all. Then `mlferry sync`, or the agent, delivers it. Importing twice changes nothing, and
    what has grown since is added. A bundle's receipt, carried back, lets the next bundle leave out what has arrived, and
    `mlferry clean` make room.

    With `--into`, for who owns the database of an MLflow server of the version that is installed here, a bundle is written
    on into it, many times as fast as over REST, and runs keep their ids.
    """
    from mlferry_agent.importing.showing import Options, import_others

    flags = {"dir": dir, "state_dir": state_dir, "stale_after_s": stale_after, "deleted": deleted}
    config = configured(**flags)
    if into is not None:
        raise typer.Exit(_import_into(config, into, paths or [], receipt, artifacts, as_json=as_json, quiet=quiet))
    if not paths:
        raise typer.BadParameter("name what to import, or say --into")
    options = Options(experiment, _folder(artifacts))
    if not import_others(config.dir, paths, options, as_json=as_json, quiet=quiet):
        done, path = _import_bundle(config.dir, paths, receipt, quiet=quiet or as_json)
        if as_json:
            print_json({"new": done.new, "there": done.there, "receipt": str(path)})
            return
        _show_bundle(done, path)
        out.print("deliver them with: mlferry sync", highlight=False)


def _folder(place: str | None) -> Path | None:
    if place is None:
        return None
    if not Path(place).is_dir():
        raise typer.BadParameter(f"{place} is no folder", param_hint="--artifacts")
    return Path(place)


def _import_bundle(root: Path, parts: list[Path], receipt: Path | None, *, quiet: bool) -> tuple[Imported, Path]:
    from mlferry_agent import ferrying
    from mlferry_agent.views.progress import carrying

    with carrying(err, "importing", sum(part.stat().st_size for part in parts), quiet) as on_bytes:
        done = ferrying.import_bundle(root, parts, on_bytes)
    path = receipt or parts[0].with_name(f"{parts[0].name}.receipt.json")
    ferrying.write_receipt(done.receipt, path)
    return done, path


def _show_bundle(done: Imported, receipt: Path) -> None:
    from mlferry_agent.views.messages import say

    say(out, f"{counted(done.new, 'file')} imported, {done.there:,} were there; receipt: {receipt}")


def _import_into(
    config: Config, uri: str, paths: list[Path], receipt: Path | None, place: str | None, *, as_json: bool, quiet: bool
) -> int:
    from mlferry_agent.database.importing import import_into
    from mlferry_agent.database.showing import check_bundle, runs_of, show
    from mlferry_agent.status import everything
    from mlferry_agent.views.progress import counting

    check_bundle(paths)
    if paths:
        done, path = _import_bundle(config.dir, paths, receipt, quiet=quiet or as_json)
        if not quiet and not as_json:
            _show_bundle(done, path)
        runs = runs_of(config.dir, done.receipt)
    else:
        runs = everything(config.dir)
    with counting(err, "writing", len(runs), quiet or as_json) as on_run:
        report = import_into(config, uri, runs, artifacts=place, on_run=on_run)
    if as_json:
        print_json(report.as_json())
    elif not quiet:
        show(out, report)
    return report.exit_code
