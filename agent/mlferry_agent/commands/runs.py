"""The verbs that show runs as their logs tell them: ls, show, watch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlferry_agent.commands.app import (
    LOOK,
    Dir,
    Json,
    OneRun,
    Runs,
    State,
    To,
    command,
    configured,
    err,
    out,
    print_json,
)

if TYPE_CHECKING:
    from mlferry_agent.config import Config
    from mlferry_agent.discovery import RunLog
    from mlferry_agent.listing import Listed
    from mlferry_agent.status import RunStatus

#: Runs that a terminal is shown unless more are asked for.
_ON_A_TERMINAL = 20


@command(
    "ls",
    LOOK,
    "mlferry ls",
    "mlferry ls --filter \"metrics.loss < 0.1 and params.lr = '0.01'\" --order-by 'metrics.loss ASC'",
    "mlferry ls -n 5 --column metrics.loss --column params.lr",
)
def ls(
    runs: Runs = None,
    wanted: Annotated[
        str | None,
        typer.Option("--filter", metavar="TEXT", help="Only runs that fit, in the words of mlflow.search_runs."),
    ] = None,
    order_by: Annotated[
        list[str] | None,
        typer.Option(
            "--order-by", metavar="TEXT", help="As for mlflow.search_runs; else the latest first. Repeatable."
        ),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", "-e", metavar="NAME", help="Only runs of this experiment.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", "-c", metavar="NAME", help="Show this too: metrics.KEY, params.KEY, tags.KEY. Repeatable."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-n", metavar="N", min=1, help="At most so many; 20 on a terminal.", show_default=False
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """List runs, the latest first.

    As their own logs tell them, offline too. Filters and orders are those of mlflow.search_runs, and need MLflow here.
    """
    from mlferry_agent.views.progress import waiting
    from mlferry_agent.views.runs import show_list

    columns = _columns(column or [])
    config = configured(to=to, dir=dir, state_dir=state_dir)
    with waiting(err, "looking", as_json):
        chosen = _ordered(config, runs or [], wanted, order_by or [])
        if limit is None and not every and out.is_terminal and not as_json:
            limit = _ON_A_TERMINAL
        shown, left = _listed(config, chosen, experiment, limit)
    if as_json:
        print_json([run.as_json() for run in shown])
    else:
        show_list(out, shown, columns, left)


@command("show", LOOK, "mlferry show 4f2c", "mlferry show 4f2c --plot loss --plot 'val/*'")
def show(
    run: OneRun,
    plot: Annotated[
        list[str] | None,
        typer.Option("--plot", "-p", metavar="METRIC", help="Draw this metric; may be a pattern ('*'). Repeatable."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Leave nothing out, and cut nothing short.")] = False,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
    as_json: Json = False,
) -> None:
    """Show one run: params, metrics with curves, artifacts.

    From its own logs: offline, and while it trains.
    """
    from mlferry_agent.views.progress import waiting
    from mlferry_agent.views.runs import show_run

    config = configured(to=to, dir=dir, state_dir=state_dir)
    with waiting(err, "reading", as_json):
        [chosen] = _select(config, [run])
        [found], _ = _listed(config, [chosen], None, None)
    if as_json:
        print_json(_whole(found))
    else:
        show_run(out, found, _link(config, found), every=every, plots=plot or [])


def _columns(names: Sequence[str]) -> dict[str, Any]:
    from mlferry_agent.listing import column

    found = {name: column(name) for name in names}
    for name, value in found.items():
        if value is None:
            raise typer.BadParameter(f"{name}: a column is metrics.KEY, params.KEY or tags.KEY")
    return found


def _select(config: Config, wanted: Sequence[str]) -> list[RunLog]:
    from mlferry_agent.discovery import discover
    from mlferry_agent.status import select

    return select(discover(config.dir), wanted)


def _ordered(config: Config, wanted: Sequence[str], text: str | None, order_by: Sequence[str]) -> list[RunLog]:
    """The runs that fit, in order; the latest first."""
    from mlferry_agent.filters import matching

    runs = _select(config, wanted)
    if text is None and not order_by:
        return runs[::-1]
    by_id = {run.run_id: run for run in runs}
    return [by_id[run_id] for run_id in matching(config.dir, text or "", order_by) if run_id in by_id]


def _listed(
    config: Config, runs: Sequence[RunLog], experiment: str | None, limit: int | None
) -> tuple[list[Listed], int]:
    """What there is to say of the first of them, and how many more there are; of an experiment alone, if one is named."""
    from mlferry_agent.contents import read_contents
    from mlferry_agent.destinations import read_ledger
    from mlferry_agent.listing import listed
    from mlferry_agent.status import run_status

    ledger = read_ledger(config, os.environ)
    found: list[Listed] = []
    left = 0
    try:
        for run in runs:
            if limit is not None and len(found) == limit and experiment is None:
                left = len(runs) - limit
                break
            one = listed(run_status(run, ledger), read_contents(run))
            if experiment is not None and one.experiment != experiment:
                continue
            if limit is not None and len(found) == limit:
                left += 1
            else:
                found.append(one)
    finally:
        if ledger is not None:
            ledger.close()
    return found, left


def _link(config: Config, run: Listed) -> str | None:
    """Where the server's UI shows the run."""
    from mlferry_agent.destinations import known_url, read_ledger

    ledger = read_ledger(config, os.environ)
    if ledger is None:
        return None
    try:
        row = ledger.run(run.run_id)
    finally:
        ledger.close()
    if row is None or row.server_run_id is None or row.experiment_id is None:
        return None
    return f"{known_url(config, os.environ)}/#/experiments/{row.experiment_id}/runs/{row.server_run_id}"


def _whole(run: Listed) -> dict[str, Any]:
    """All of a run, for machines."""
    from mlferry_agent.listing import as_number

    state = run.contents.state
    metrics = {
        key: {
            "last": as_number(curve.last[2]),
            "step": curve.last[0],
            "timestamp": curve.last[1],
            "min": None if curve.least is None else as_number(curve.least),
            "max": None if curve.greatest is None else as_number(curve.greatest),
            "points": curve.count,
        }
        for key, curve in run.contents.curves.items()
    }
    artifacts = {
        path: {"size": file.size, "sha256": file.sha256.hex()} for path, file in state.artifacts.values().items()
    }
    datasets = [{"name": name, "digest": digest} for name, digest in state.datasets]
    models = [{"model_id": model.model_id, "status": model.status.value} for model in state.models.values()]
    kept: dict[str, Any] = {**run.as_json(), "metrics": metrics, "artifacts": artifacts, "datasets": datasets}
    status: RunStatus = run.delivery
    return {**kept, "models": models, "lost": run.contents.lost, "delivery": status.as_json()}
