"""`mlferry import` of what is no bundle: from paths to runs in the spool. Owns the order of the steps, and no format.

Everything is read and written into a waiting directory first; only when all of it stands there is it made durable and put
into place. A process that is killed before that leaves nothing but the waiting directory, which the next import clears.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mlferry_agent.discovery import discover
from mlferry_agent.importing.content import Source
from mlferry_agent.importing.foreign import Folder
from mlferry_agent.importing.placing import make_durable, place
from mlferry_agent.importing.recognition import Found, Kind
from mlferry_agent.importing.reports import Report
from mlferry_agent.importing.store_writing import StoreWriting
from mlferry_agent.importing.waiting import waiting_directory
from mlferry_agent.importing.writing import RunWriting
from mlferry_spool.trust import check_root

__all__ = ["Options", "take"]

OnRun = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Options:
    """``experiment``: where runs go that name none; ``artifacts``: a folder in which artifacts lie."""

    experiment: str | None = None
    artifacts: Path | None = None


def take(root: Path, found: list[Found], options: Options, on_run: OnRun = lambda done, total: None) -> Report:
    """Put everything that ``found`` holds into the spool at ``root``; ``on_run`` hears of runs done and runs known of.

    Raises:
        BadSource: one of them is damaged or cannot be read; nothing was imported.
        FileTrouble, OSError: the disk. SpoolError: logs of this spool cannot be read, or are not its own.
    """
    check_root(root / "store")
    report = Report()
    with waiting_directory(root) as directory:
        waiting = directory / "spool"
        held = {run.run_id: run.directories for run in discover(root)}
        runs, store = RunWriting(waiting, held, report), StoreWriting(root, waiting, report)
        try:
            for number, item in enumerate(found):
                scratch = directory / f"source-{number}"
                scratch.mkdir(mode=0o700)
                with _opened(item, scratch, options, report) as source:
                    _take_one(source, runs, store, report, on_run)
            store.close()
        except BaseException:
            store.abandon()
            raise
        make_durable(waiting)
        place(waiting, root)
    report.left_out = +report.left_out
    return report


def _take_one(source: Source, runs: RunWriting, store: StoreWriting, report: Report, on_run: OnRun) -> None:
    report.sources[source.kind] += 1
    for experiment in source.experiments():
        store.experiment(experiment)
        runs.experiments.add(experiment.name)
    for done, run in enumerate(source.runs()):
        on_run(done, len(source))
        runs.write(run)
    on_run(len(source), len(source))
    for model in source.models():
        store.model(model)
    for registered in source.registered():
        store.registered(registered)
    for trace in source.traces():
        store.trace(trace)


@contextlib.contextmanager
def _opened(found: Found, scratch: Path, options: Options, report: Report) -> Iterator[Source]:
    if found.kind in (Kind.DATABASE, Kind.FILE_STORE):
        with _mlflow(found, scratch, options, report) as source:
            yield source
    elif found.kind is Kind.TENSORBOARD:
        from mlferry_agent.importing.tensorboard import TensorBoard

        yield TensorBoard(found.path, scratch, options.experiment, report.left_out)
    else:
        from mlferry_agent.importing.wandb import Wandb

        yield Wandb(found.path, scratch, options.experiment, report.left_out)


@contextlib.contextmanager
def _mlflow(found: Found, scratch: Path, options: Options, report: Report) -> Iterator[Source]:
    from mlferry_agent.importing import mlflow_copies
    from mlferry_agent.importing.mlflow_database import MlflowDatabase

    given = () if options.artifacts is None else (Folder(options.artifacts),)
    if found.kind is Kind.DATABASE:
        copy, folder = mlflow_copies.copy_database(found.path, scratch), found.path.parent
    else:
        copy = mlflow_copies.copy_file_store(Folder(found.path), scratch, report.left_out)
        folder = found.path
    folders = (*given, Folder(folder))
    with contextlib.closing(MlflowDatabase(copy, folders, report.left_out, found.kind.value)) as source:
        yield source
