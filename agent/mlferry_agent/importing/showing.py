"""`mlferry import`, as a person or a program meets it: which of the given paths is what, a bar, and what was done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from mlferry_agent.carrying.addresses import place_of
from mlferry_agent.carrying.places import Place
from mlferry_agent.carrying.reading import find_parts
from mlferry_agent.commands.app import err, out, print_json
from mlferry_agent.errors import BadSource
from mlferry_agent.importing.recognition import Kind, is_bundle, may_be_part, recognise
from mlferry_agent.importing.reports import Report
from mlferry_agent.importing.taking import Options, take
from mlferry_agent.views.messages import say
from mlferry_agent.views.words import counted

__all__ = ["Options", "bundle_of", "import_others"]


_ALONE = "a bundle is imported alone, with its parts"


def bundle_of(paths: Sequence[str]) -> list[Place] | None:
    """The parts of the bundle that is to be imported; None: it is something else.

    Raises: BadSource: a URL of anything but a bundle. BadBundle: a part is missing. OSError, PlaceTrouble, NeedsExtra.
    """
    places = [place_of(path) for path in paths]
    if any(not place.is_local for place in places) or not places[0].exists():
        parts = find_parts(places)
        if not is_bundle(parts[0]):
            raise BadSource(f"{parts[0]} is no bundle; nothing else is imported from a URL")
        return parts
    if recognise(Path(str(places[0]))).kind is not Kind.BUNDLE:
        return None
    parts = find_parts(places)
    if not all(may_be_part(Path(str(part))) or is_bundle(part) for part in parts[1:]):
        raise BadSource(_ALONE)
    return parts


def import_others(root: Path, paths: list[Path], options: Options, *, as_json: bool, quiet: bool) -> None:
    """Import what is no bundle. Raises: as ``take``."""
    found = [recognise(path) for path in paths]
    if any(item.kind is Kind.BUNDLE for item in found):
        raise BadSource(_ALONE)
    with _taking(err, quiet or as_json) as on_run:
        report = take(root, found, options, on_run)
    if as_json:
        print_json(report.as_json())
    elif not quiet:
        _show(out, report)


@contextlib.contextmanager
def _taking(console: Console, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    columns = (SpinnerColumn(), TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("importing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(console: Console, report: Report) -> None:
    what = ", ".join(sorted(report.sources))
    runs = counted(report.runs, "new run")
    say(console, f"{what}: {runs}, {report.grown:,} with something new, {report.unchanged:,} unchanged")
    counts = {
        "metric point": report.points,
        "file": report.files,
        "logged model": report.models,
        "model version": report.versions,
        "trace": report.traces,
    }
    told = ", ".join(counted(count, name) for name, count in counts.items() if count)
    if told:
        say(console, f"taken over: {told}")
    for reason, count in sorted(report.left_out.items()):
        say(console, f"left out: {count:,} {reason}")
    if told or report.run_ids:
        say(console, "deliver them with: mlferry sync")
