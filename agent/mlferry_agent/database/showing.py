"""What `mlferry import --into` says: which runs a bundle is about, and what became of them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from mlferry_agent.bundles import Manifest
from mlferry_agent.database.report import Report
from mlferry_agent.discovery import STORE, RunLog
from mlferry_agent.errors import BadSource
from mlferry_agent.status import everything
from mlferry_agent.views.messages import say
from mlferry_agent.views.words import counted
from mlferry_spool.layout import run_id_of

__all__ = ["refuse_others", "runs_of", "show"]

#: Things set aside that are told; all of them are in ``--json``.
_SHOWN = 20


def refuse_others() -> None:
    """Raises BadSource: what is to be imported is no bundle."""
    raise BadSource("--into takes a bundle with its parts; import anything else first, then: mlferry import --into URI")


def runs_of(root: Path, bundle: Manifest) -> list[RunLog]:
    """The runs of a spool that a bundle brought something of, now or before, and what belongs to none."""
    directories = {
        entry.path.split("/")[1] for entry in (*bundle.files, *bundle.known) if entry.path.startswith("runs/")
    }
    named = {run_id_of(name) for name in directories} | {STORE}
    return [run for run in everything(root) if run.run_id in named]


def show(console: Console, report: Report) -> None:
    """The verdict, in a few lines."""
    runs, rows = report.runs, report.rows
    told = f"{counted(runs['new'], 'run')} imported, {runs['grown']:,} with something new, {runs['there']:,} were there"
    told += f", {runs['set aside']:,} set aside" if runs["set aside"] else ""
    told += f", {runs['dropped']:,} dropped" if runs["dropped"] else ""
    say(console, f"{report.into}: {told}")
    counts = (
        ("record", report.records["new"]),
        ("metric point", rows["metric points"]),
        ("file", rows["files"]),
        ("logged model", rows["logged models"]),
        ("model version", rows["model versions"]),
        ("trace record", rows["trace records"]),
    )
    new = ", ".join(counted(count, what) for what, count in counts if count)
    there = f"{counted(report.records['there'], 'record')} there before"
    say(console, f"{new or 'nothing'} imported, {there}, {report.set_aside:,} set aside")
    if report.lost:
        say(console, f"{counted(report.lost, 'record')} were lost or dropped before they came here")
    for one in report.aside[:_SHOWN]:
        say(console, f"set aside: {one.run_id} {one.what} {one.name}: {one.reason}")
    if report.set_aside > _SHOWN:
        say(console, f"... and {report.set_aside - _SHOWN:,} more: --json lists them")
    for run_id in report.going_on[:_SHOWN]:
        say(console, f"goes on, as far as can be seen from here: {run_id}; import again later")
