"""watch: one run, or all that goes on, live."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from mlferry_agent.commands.app import LOOK, Dir, State, To, command, complete_run, configured, out

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mlferry_agent.config import Config

#: Of its time, a look may take this share: a large spool on a slow disk is looked at less often.
_SHARE = 0.25

#: One look: the frame for a terminal, the line for a pipe, and whether it was the last.
Look = Callable[[], "tuple[RenderableType, str, bool]"]


@command("watch", LOOK, "mlferry watch", "mlferry watch 4f2c --plot loss")
def watch(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="A run's id, the beginning of one, or a directory; else all that goes on.",
            autocompletion=complete_run,
            show_default=False,
        ),
    ] = None,
    plot: Annotated[str | None, typer.Option("--plot", "-p", metavar="METRIC", help="Draw this metric.")] = None,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Between two looks.")] = 1.0,
    to: To = None,
    dir: Dir = None,
    state_dir: State = None,
) -> None:
    """Watch a run train, or the spool being delivered.

    Until the run has ended, or Ctrl-C. On a pipe, a line whenever something has changed.
    """
    config = configured(to=to, dir=dir, state_dir=state_dir)
    look = _at_spool(config) if run is None else _at_run(config, run, plot)
    try:
        (_live if out.is_terminal else _lines)(look, interval)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _at_run(config: Config, wanted: str, plot: str | None) -> Look:
    from mlferry_agent.discovery import discover
    from mlferry_agent.listing import listed
    from mlferry_agent.status import select
    from mlferry_agent.views.watch import line_of_run, run_frame
    from mlferry_agent.watching import RunWatch

    [chosen] = select(discover(config.dir), [wanted])
    watched = RunWatch(config, chosen)

    def look() -> tuple[RenderableType, str, bool]:
        status = watched.look()
        per_s = watched.rate.note(status.acknowledged)
        run = listed(status, watched.contents)
        return run_frame(out, run, per_s, plot), line_of_run(run), watched.is_over

    return look


def _at_spool(config: Config) -> Look:
    from mlferry_agent.destinations import known_url
    from mlferry_agent.views.watch import line_of_spool, spool_frame
    from mlferry_agent.watching import SpoolWatch

    watched = SpoolWatch(config)

    def look() -> tuple[RenderableType, str, bool]:
        found, url = watched.look(), known_url(config, os.environ)
        per_s = watched.rate.note(sum(status.acknowledged for status in found))
        return spool_frame(out, found, url, per_s), line_of_spool(found, url), False

    return look


def _live(look: Look, interval: float) -> None:
    from rich.live import Live

    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
        _again(look, interval, lambda frame, line: live.update(frame, refresh=True))


def _lines(look: Look, interval: float) -> None:
    """A line whenever something has changed."""
    from mlferry_agent.views.messages import say

    said = ""

    def show(frame: RenderableType, line: str) -> None:
        nonlocal said
        if line != said:
            say(out, line)
            out.file.flush()
        said = line

    _again(look, interval, show)


def _again(look: Look, interval: float, show: Callable[[RenderableType, str], None]) -> None:
    while True:
        began = time.monotonic()
        frame, line, is_last = look()
        show(frame, line)
        if is_last:
            return
        time.sleep(max(interval, (time.monotonic() - began) / _SHARE))
