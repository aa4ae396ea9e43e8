"""What moves while something takes long: bars with rate and time left, where somebody looks; nothing on a pipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

__all__ = ["Meter", "carrying", "counting", "progress", "waiting"]


@dataclass(slots=True)
class Meter:
    """Counts what is acknowledged while a progress bar shows it."""

    acknowledged: int = 0
    bar: Progress | None = None
    task: object = None

    def add(self, run_id: str, records: int) -> None:
        """``records`` more of a run are acknowledged."""
        self.acknowledged += records
        if self.bar is not None and records:
            self.bar.advance(self.task, records)  # type: ignore[arg-type]


@contextlib.contextmanager
def progress(console: Console, total: int, quiet: bool) -> Iterator[Meter]:
    """A bar of ``total`` records on a terminal; nothing on a pipe."""
    if quiet or not console.is_terminal or not total:
        yield Meter()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, _Rate(), TimeRemainingColumn(), console=console, transient=True) as bar:
        yield Meter(bar=bar, task=bar.add_task("delivering", total=total))


@contextlib.contextmanager
def carrying(console: Console, what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar of bytes with rate and time left, where somebody looks; yields what is called with the bytes just moved."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def counting(console: Console, what: str, total: int, quiet: bool) -> Iterator[Callable[[], None]]:
    """A bar of things that are gone through one by one; yields what is called after each."""
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    disable = quiet or not console.is_terminal or total < 2
    with Progress(*columns, console=console, disable=disable, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


@contextlib.contextmanager
def waiting(console: Console, what: str, quiet: bool = False) -> Iterator[None]:
    """A spinner for what cannot say how far it is."""
    if quiet or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


class _Rate(ProgressColumn):
    """Records a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")
