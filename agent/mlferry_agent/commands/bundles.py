"""The verbs that cross an air gap, or bring in what other tools have logged: export, import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlferry_agent.carrying.addresses import is_url
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
from mlferry_agent.commands.crossing import Crossing, Wanted, export_bundle, import_bundle, show_import
from mlferry_agent.commands.keys import Identity, Recipient, Sign, SignedBy, seal_of, trust_of
from mlferry_agent.views.words import counted

if TYPE_CHECKING:
    from mlferry_agent.carrying.places import Place
    from mlferry_agent.config import Config
    from mlferry_agent.discovery import RunLog


@command(
    "export",
    CARRY,
    "mlferry export /media/stick/monday.tar.zst",
    "mlferry export tuesday.tar.zst --since monday.tar.zst.receipt.json --split 4000",
    "mlferry export s3://ferry/monday.tar.zst --split 1000",
    "mlferry export monday.tar.zst.age --recipient age1... --sign minisign.key",
)
def export(
    bundle: Annotated[str, typer.Argument(metavar="FILE|URL", help="The file to make, such as monday.tar.zst.")],
    runs: Runs = None,
    dir: Dir = None,
    since: Annotated[
        list[str] | None,
        typer.Option("--since", metavar="RECEIPT", help="Leave out what has arrived: a file or URL; repeatable."),
    ] = None,
    split: Annotated[
        int | None,
        typer.Option("--split", metavar="MB", min=1, help="Parts of at most so many megabytes; repeated, it goes on."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there, and begin anew what was broken off.")
    ] = False,
    recipient: Recipient = None,
    sign: Sign = None,
    identity: Identity = None,
    signed_by: SignedBy = None,
    state_dir: State = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bundle runs into one checksummed file.

    To be carried where the server is, and imported there. Runs may go on meanwhile: what they log later comes with the
    next bundle. A URL is any that fsspec reaches: s3://, sftp://.

    With --split, an export that was broken off goes on where it was when the same command is given again. --identity and
    --signed-by are for receipts.
    """
    from mlferry_agent.views.messages import say

    config = configured(dir=dir, state_dir=state_dir)
    wanted = Wanted(runs or [], since or [], split, recipient or [], overwrite)
    crossing = Crossing(seal_of(recipient, sign), trust_of(identity, signed_by), quiet or as_json)
    manifest, done = export_bundle(config, bundle, wanted, crossing)
    if as_json:
        places = [str(place) for place in done.places]
        print_json({"files": len(manifest.files), "left_out": len(manifest.known), "kept": done.kept, "made": places})
        return
    known = f", {len(manifest.known):,} left out that have arrived" if manifest.known else ""
    there = f", {done.kept:,} of them from before" if done.kept else ""
    say(out, f"{counted(len(manifest.files), 'file')} in {', '.join(map(str, done.places))}{there}{known}")


Paths = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH|URL...",
        help="A bundle (of parts, the first is enough); an mlflow.db, an mlruns folder, TensorBoard's or wandb's folder.",
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
    str | None,
    typer.Option(
        "--receipt",
        metavar="PATH|URL",
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
    "mlferry import tuesday.tar.zst.000",
    "mlferry import s3://ferry/monday.tar.zst",
    "mlferry import monday.tar.zst.age --identity key.txt --signed-by minisign.pub",
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
    identity: Identity = None,
    signed_by: SignedBy = None,
    recipient: Recipient = None,
    sign: Sign = None,
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
    `mlferry clean` make room. --recipient and --sign are for the receipt.

    With `--into`, for who owns the database of an MLflow server of the version that is installed here, a bundle is written
    on into it, many times as fast as over REST, and runs keep their ids.
    """
    from mlferry_agent.importing.showing import Options, bundle_of, import_others

    flags = {"dir": dir, "state_dir": state_dir, "stale_after_s": stale_after, "deleted": deleted}
    config = configured(**flags)
    if not paths and into is None:
        raise typer.BadParameter("name what to import, or say --into")
    _check_there(paths or [])
    parts = bundle_of(paths) if paths else None
    crossing = Crossing(seal_of(recipient, sign), trust_of(identity, signed_by), quiet or as_json)
    if into is not None:
        brought = _brought(config, paths, parts, receipt, crossing)
        raise typer.Exit(_write_into(config, into, brought, artifacts, as_json=as_json, quiet=quiet))
    if parts is None:
        options = Options(experiment, _folder(artifacts))
        import_others(config.dir, [Path(path) for path in paths or []], options, as_json=as_json, quiet=quiet)
        return
    show_import(*import_bundle(config.dir, parts, receipt, crossing), as_json=as_json)
    if not as_json:
        out.print(f"deliver them with: mlferry sync{'' if config.to else ' --to URL'}", highlight=False)


def _check_there(paths: Sequence[str]) -> None:
    """A path may be the name of a whole bundle, of which its parts alone are there. Raises BadParameter."""
    for path in paths:
        if not is_url(path) and not Path(path).exists() and not Path(f"{path}.000").exists():
            raise typer.BadParameter(f"Path '{path}' does not exist.", param_hint="PATH|URL...")


def _folder(place: str | None) -> Path | None:
    if place is None:
        return None
    if not Path(place).is_dir():
        raise typer.BadParameter(f"{place} is no folder", param_hint="--artifacts")
    return Path(place)


def _brought(
    config: Config, paths: Sequence[str] | None, parts: Sequence[Place] | None, receipt: str | None, crossing: Crossing
) -> list[RunLog]:
    """The runs that are to be written on: those that a bundle brings, else all."""
    from mlferry_agent.database.showing import refuse_others, runs_of
    from mlferry_agent.status import everything

    if not paths:
        return everything(config.dir)
    if parts is None:
        refuse_others()
    done, place = import_bundle(config.dir, parts or [], receipt, crossing)
    if not crossing.quiet:
        show_import(done, place)
    return runs_of(config.dir, done.receipt)


def _write_into(config: Config, uri: str, runs: list[RunLog], place: str | None, *, as_json: bool, quiet: bool) -> int:
    from mlferry_agent.database.importing import import_into
    from mlferry_agent.database.showing import show
    from mlferry_agent.views.progress import counting

    with counting(err, "writing", len(runs), quiet or as_json) as on_run:
        report = import_into(config, uri, runs, artifacts=place, on_run=on_run)
    if as_json:
        print_json(report.as_json())
    elif not quiet:
        show(out, report)
    return report.exit_code
