"""What a whole spool holds, kept up to date by reading only what is new: the thin shell around ``fold``.

Every look goes to the files, so it shows what any process has written, this one included; and it reads only what was added
since the last look. A run whose writers have all ended their logs costs one ``stat``: a new writer would change the time of
its directory. The points of a metric are kept only for the few runs whose history was asked for last. Where only a run's
opening matters, or only what was logged after some time, the logs of other runs are not read at all.

Nothing here raises for what it finds: what cannot be read is counted in ``lost`` and passed over.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from mlferry_spool.codec import decode
from mlferry_spool.errors import CorruptRecord, SpoolError
from mlferry_spool.fold import ModelState, Point, RunState, as_stored
from mlferry_spool.fold_store import DEFAULT_EXPERIMENT_ID, ExperimentState, StoreState, candidate_ids
from mlferry_spool.layout import run_id_of, store_directory, writer_directories
from mlferry_spool.peek import changed, first_record, newest_change
from mlferry_spool.reader import LogReader
from mlferry_spool.records import Metrics, Open, Record, Series, Spans
from mlferry_spool.tailer import Cursor, Lost

__all__ = ["Catalogue"]

#: A change of a directory younger than this may share its time with the next one (kernel ticks are 10 ms at most).
_TICK_NS = 100_000_000

#: Records that are kept though no file took them, about a kilobyte each.
#: Beyond: further ones cannot be read back by the process that logged them; they are counted as dropped like the others.
#: Test: tests/unit/spool/test_limits.py::test_of_what_no_file_took_so_much_is_read_back_and_no_more
_MOST_IMAGINED = 10_000

#: Stands in the place of their writer.
_NO_WRITER = ""

#: Runs whose points are all kept in memory.
#: Beyond: those of the run that was asked for least recently are forgotten, and read again when they are asked for.
#: Test: tests/unit/spool/test_catalogue.py::test_histories_of_more_runs_than_are_kept_are_still_right
_HISTORIES = 8

#: Clocks of hosts that share a spool differ by less.
_SKEW_MS = 24 * 3600 * 1000

Take = Callable[[str, int, Record], None]


class _Logs:
    """The logs in some directories: each record is given to ``take`` once. ``lose`` counts what cannot be read."""

    def __init__(self, directories: list[Path], take: Take, lose: Callable[[int], None]) -> None:
        self.directories = directories
        self._take, self._lose = take, lose
        self._readers: dict[Path, LogReader] = {}
        self._over: tuple[int, ...] = ()

    @property
    def were_read(self) -> bool:
        return bool(self._readers)

    def refresh(self) -> None:
        times = tuple(changed(directory) for directory in self.directories)
        if times == self._over:
            return
        for directory in self.directories:
            for writer in writer_directories(directory):
                reader = self._readers.get(writer) or self._readers.setdefault(writer, LogReader(writer))
                self._read(reader)
        # Taken before the directories were listed: what came meanwhile makes another time, once the clock of the file
        # system has ticked.
        settled = time.time_ns() - max(times, default=0) > _TICK_NS
        self._over = times if settled and all(reader.ended for reader in self._readers.values()) else ()

    def _read(self, reader: LogReader) -> None:
        new = reader.cursor == Cursor()
        try:
            while not reader.ended and (new or reader.pending_bytes()) and (events := reader.read()):
                new = False
                for event in events:
                    if isinstance(event, Lost):
                        self._lose(event.frames or 0)
                    else:
                        self._decode(reader.directory.name, event.offset, event.kind, event.payload)
        except (SpoolError, OSError):
            self._lose(1)

    def _decode(self, writer: str, offset: int, kind: int, payload: bytes) -> None:
        try:
            record = decode(kind, payload)
        except CorruptRecord:
            self._lose(1)
            return
        if record is not None:
            self._take(writer, offset, record)


class _Run:
    """One run's state and the logs that it is folded from."""

    def __init__(self, run_id: str, directories: list[Path]) -> None:
        self.state = RunState(run_id)
        self.logs = _Logs(directories, self.state.add, self._lose)
        self._first: Open | None = None

    @property
    def opening(self) -> Open | None:
        """The run's OPEN, of which no more is read than need be."""
        if self.logs.were_read:
            self.logs.refresh()
            return self.state.opening
        if self.state.opening is not None:
            return self.state.opening
        if self._first is None and self.logs.directories:
            found = first_record(self.logs.directories[0])
            self._first = found if isinstance(found, Open) and not found.resumed else None
        if self._first is None:
            self.logs.refresh()
            return self.state.opening
        return self._first

    def may_measure(self, since: int) -> bool:
        """Whether something was logged since then (Unix milliseconds)."""
        return self.logs.were_read or any(newest_change(directory) >= since for directory in self.logs.directories)

    def _lose(self, frames: int) -> None:
        self.state.lost += frames


class _History:
    """Every point of one run, by metric, in the order in which they were read."""

    def __init__(self, directories: list[Path]) -> None:
        self.points: dict[str, list[Point]] = {}
        self.logs = _Logs(directories, self._add, lambda frames: None)

    def _add(self, writer: str, offset: int, record: Record) -> None:
        if isinstance(record, Metrics):
            links = (record.model_id, record.dataset_name, record.dataset_digest)
            for key, value in record.values.items():
                point = Point(as_stored(value), record.timestamp, record.step, *links)
                self.points.setdefault(key, []).append(point)
        elif isinstance(record, Series):
            links = (record.model_id, record.dataset_name, record.dataset_digest)
            of_key = self.points.setdefault(record.key, [])
            of_key += [Point(as_stored(value), time, step, *links) for value, step, time in record.points()]


class Catalogue:
    """The runs, experiments, models and traces of the spool at ``root``. Thread-safe; a forked child may go on with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runs: dict[str, _Run] = {}
        self._names: set[str] = set()
        self._listed = 0
        self._imagined = 0
        self._histories: OrderedDict[str, _History] = OrderedDict()
        self._model_runs: dict[str, str] = {}
        self._store = StoreState()
        self._store_logs = _Logs([store_directory(root)], self._store.add, self._lose)
        self._start_anew()
        _catalogues.append(self)

    def _start_anew(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    # -- runs ----------------------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> RunState | None:
        """The state of one run, or None if the spool has none."""
        with self._lock:
            if run_id not in self._runs:
                self._discover()
            run = self._runs.get(run_id)
            if run is None:
                return None
            run.logs.refresh()
            return run.state

    def runs(self) -> list[RunState]:
        """The state of every run whose opening can be read."""
        with self._lock:
            self._discover()
            for run in self._runs.values():
                run.logs.refresh()
            return [run.state for run in self._runs.values() if run.state.opening is not None]

    def directories(self, run_id: str) -> list[Path]:
        """Where a run lies; its writers may have made more than one directory. Empty if the spool has no such run."""
        with self._lock:
            if run_id not in self._runs:
                self._discover()
            run = self._runs.get(run_id)
            return [] if run is None else list(run.logs.directories)

    def history(self, run_id: str, key: str) -> list[Point]:
        """Every point of a metric, in the order logged by each writer."""
        with self._lock:
            history = self._histories.pop(run_id, None) or _History(self.directories(run_id))
            self._histories[run_id] = history
            while len(self._histories) > _HISTORIES:
                self._histories.popitem(last=False)
            history.logs.directories = self.directories(run_id)
            history.logs.refresh()
            return list(history.points.get(key, []))

    def imagine(self, run_id: str | None, record: Record) -> None:
        """Fold in what no file took (None: of no run), for this process alone: what it reads back goes on as if its disk
        were well. Points of metrics, spans, and what exceeds a memory's worth are left out."""
        if isinstance(record, Metrics | Series | Spans) or self._imagined >= _MOST_IMAGINED:
            return
        with self._lock:
            self._imagined += 1
            if run_id is None:
                self._store.add(_NO_WRITER, self._imagined, record)
                return
            if run_id not in self._runs:
                self._discover()
            run = self._runs.setdefault(run_id, _Run(run_id, []))
            run.logs.refresh()
            run.state.add(_NO_WRITER, self._imagined, record)

    def _discover(self) -> None:
        time_listed = changed(self.root / "runs")
        if time_listed and time_listed == self._listed:
            return
        settled = time.time_ns() - time_listed > _TICK_NS
        names = _names(self.root / "runs")
        if not names >= self._names:
            self._runs.clear()
            self._names.clear()
        for name in sorted(names - self._names):
            self._add(name)
        self._names = names
        self._listed = time_listed if settled else 0

    def _add(self, name: str) -> None:
        run_id, directory = run_id_of(name), self.root / "runs" / name
        if run_id is None:
            return
        known = self._runs.get(run_id)
        if known is None:
            self._runs[run_id] = _Run(run_id, [directory])
        else:
            known.logs.directories = sorted([*known.logs.directories, directory])

    # -- what belongs to no run ----------------------------------------------------------------------------------------

    def store(self) -> StoreState:
        """Experiments, registered models, traces, and the models that no run made."""
        with self._lock:
            self._store_logs.refresh()
            return self._store

    def experiment(self, experiment_id: str) -> ExperimentState | None:
        """An experiment by its offline id. One that the store knows costs no look at the runs."""
        return self.store().experiments().get(experiment_id) or self.experiments().get(experiment_id)

    def experiment_by_name(self, name: str) -> ExperimentState | None:
        """An experiment by the name that it has now."""
        for states in (self.store().experiments, self.experiments):
            for state in states().values():
                if state.name == name:
                    return state
        return None

    def experiments(self) -> dict[str, ExperimentState]:
        """Every experiment by its offline id, with those that only a run names."""
        states = dict(self.store().experiments())
        by_name = {state.name: state for state in states.values()}
        for opening in self._openings():
            if opening is None or opening.offline_experiment_id is not None:
                continue
            name = opening.experiment_name
            if name is None and opening.experiment_id is not None:
                states.setdefault(opening.experiment_id, ExperimentState(opening.experiment_id, opening.experiment_id))
            elif name is not None and name not in by_name:
                by_name[name] = states.setdefault(*_made_by_run(name, opening.start_time))
        return states

    def _openings(self) -> Iterator[Open]:
        with self._lock:
            self._discover()
            for run in self._runs.values():
                opening = run.opening
                if opening is not None:
                    yield opening

    def experiment_id_of(self, run: RunState) -> str:
        """The offline id of a run's experiment."""
        opening = run.opening
        if opening is None:
            return DEFAULT_EXPERIMENT_ID
        if opening.offline_experiment_id is not None:
            return opening.offline_experiment_id
        if opening.experiment_name is None:
            return opening.experiment_id or DEFAULT_EXPERIMENT_ID
        named = (known for known in self.store().experiments().values() if known.name == opening.experiment_name)
        known = next(named, None)
        return next(candidate_ids(opening.experiment_name)) if known is None else known.experiment_id

    def model(self, model_id: str) -> tuple[ModelState, str | None] | None:
        """A logged model, and the run in whose logs it stands (None: the store's)."""
        with self._lock:
            found = self.store().models.get(model_id)
            if found is not None and found.start is not None:
                return found, None
            known = self.run(self._model_runs.get(model_id, ""))
            if known is not None and model_id in known.models:
                return known.models[model_id], known.run_id
            self._discover()
            for run in reversed(self._runs.values()):  # the newest first: most models are asked for by who made them
                run.logs.refresh()
                if model_id in run.state.models and run.state.opening is not None:
                    self._model_runs[model_id] = run.state.run_id
                    return run.state.models[model_id], run.state.run_id
            return None

    def measured(self, model: ModelState) -> list[tuple[str, str, Point]]:
        """What was measured of a model, by any run: (run id, metric, point)."""
        since = 0 if model.start is None else model.start.timestamp - _SKEW_MS
        with self._lock:
            self._discover()
            for run in self._runs.values():
                if run.may_measure(since):
                    run.logs.refresh()
            return [
                (run_id, key, point)
                for run_id, run in self._runs.items()
                for key, point in dict.fromkeys(run.state.model_points.get(model.model_id, ()))
            ]

    def measured_by_model(self) -> dict[str, list[tuple[str, str, Point]]]:
        """The same of every model, by its id."""
        found: dict[str, list[tuple[str, str, Point]]] = {}
        for state in self.runs():
            for model_id, points in state.model_points.items():
                found.setdefault(model_id, []).extend((state.run_id, *point) for point in dict.fromkeys(points))
        return found

    def models(self) -> Iterator[tuple[ModelState, str | None]]:
        """Every logged model with the run in whose logs it stands."""
        for model in self.store().models.values():
            if model.start is not None:
                yield model, None
        for state in self.runs():
            for model in state.models.values():
                if model.start is not None:
                    yield model, state.run_id

    def _lose(self, frames: int) -> None:
        self._store.lost += frames


def _made_by_run(name: str, created: int) -> tuple[str, ExperimentState]:
    experiment_id = next(candidate_ids(name))
    return experiment_id, ExperimentState(experiment_id, name, created=created, updated=created)


def _names(directory: Path) -> set[str]:
    try:
        return set(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return set()


_catalogues: list[Catalogue] = []


def _after_fork_in_child() -> None:
    for catalogue in _catalogues:
        catalogue._start_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)
