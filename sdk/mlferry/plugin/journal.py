"""Which log a record goes to: this process's writers, one for each run it writes to and one for what belongs to no run.

Who answers for a run. The writer of the process that created or resumed it is its *primary*: the RUN_END in there is the
run's end, and its death without one is the run's death. With the end the primary's log is closed at once, so that the ended
runs of a notebook are over on the server while the notebook lives. Whatever else is said of a run, after its end or by
another process, goes to a *guest*, whose life and death say nothing of the run.

At the end of the process the logs are closed in order, without any RUN_END: a run that its program left running is running
on the server as well. A process that is killed closes nothing, and the agent closes its runs as KILLED.

What a write must know of a run (its params, whether it is deleted) is read once, when this process first writes to a run
that it did not create, and kept from then on: no write reads a run back.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from mlferry.automatic import user_name
from mlferry.config import OnError, read
from mlferry.errors import BadText, MlferryError, NotStored
from mlferry.plugin.consoles import Consoles
from mlferry.plugin.registry_fold import Registry
from mlferry.trouble import Trouble, warn
from mlferry_spool.blobs import Blobs
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.codec import KIND_OF, as_fields, decode, packer
from mlferry_spool.errors import RecordTooLarge
from mlferry_spool.layout import new_run_directory, store_directory, writer_name
from mlferry_spool.peek import first_record
from mlferry_spool.records import Kind, Open, Record, RunEnd, RunUpdate
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.writer import Writer

__all__ = ["Journal", "Known", "journal_for"]

#: Logs that are open at once, those of runs in progress and those of guests: each holds two descriptors.
#: Beyond: the one that was written to least recently is closed without an end; the next write to its run begins another.
#: Test: tests/unit/plugin/test_journal.py::test_no_more_logs_are_open_than_a_process_can_afford
_MOST_OPEN = 256

#: Runs of which is known what a write must know.
#: Beyond: one of them is forgotten, and read again from the spool at the next write to it.
#: Test: tests/unit/plugin/test_journal.py::test_of_very_many_runs_some_are_read_again
_MOST_KNOWN = 10_000


@dataclass(slots=True)
class Known:
    """What a write must know of a run."""

    experiment_id: str
    params: dict[str, str] = field(default_factory=dict)
    deleted: bool = False
    running: bool = True


class Journal:
    """Writes to the spool at ``root``. Thread-safe; in a forked child each inherited writer opens a log of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = read(os.environ, warn)
        self.trouble = Trouble(self.config.on_error)
        self.catalogue = catalogue = Catalogue(root)
        self.registry = Registry(lambda: catalogue.store().registry)
        self._writers: OrderedDict[str | None, Writer] = OrderedDict()
        self._primary: set[str] = set()
        self._unheard: set[str] = set()
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._directories: dict[str, Path] = {}
        self._consoles = Consoles(self)
        self._start_anew()

    def _start_anew(self) -> None:
        self._lock = threading.RLock()

    # -- runs ----------------------------------------------------------------------------------------------------------

    def create(self, opening: Open, known: Known) -> None:
        """Begin a run with this OPEN, whose ``run_id`` is set."""
        run_id = opening.run_id
        assert run_id is not None
        with self._lock:
            self._directories[run_id] = new_run_directory(self.root, run_id, opening.start_time)
            self._remember(run_id, known)
            self._primary.add(run_id)
            self._open(run_id, opening)
            if first_record(self._directories[run_id]) is None:  # the disk is full: nobody else hears of the run
                self._unheard.add(run_id)
                self.catalogue.imagine(run_id, opening)
        self._consoles.begin(run_id)

    def resume(self, run_id: str) -> None:
        """This process goes on with a run: from now on it answers for the run."""
        with self._lock:
            if run_id not in self._primary:
                self._close(run_id)
                self._primary.add(run_id)
            self.put(run_id, RunUpdate(_now_ms(), status="RUNNING"))
        self._consoles.begin(run_id)

    def end(self, run_id: str, status: str, end_time: int) -> None:
        """The run is over, as far as this process knows."""
        self._consoles.end(run_id)
        end = RunEnd(end_time, status, _now_ms())
        with self._lock:
            if run_id not in self._primary:
                self.put(run_id, end)
                return
            self._writer(run_id)
            writer = self._writers.pop(run_id)
            self._primary.discard(run_id)
            writer.close(end)
            if run_id in self._unheard:
                self.catalogue.imagine(run_id, end)

    def known(self, run_id: str) -> Known | None:
        """What a write must know of a run; None if the spool has no such run."""
        known = self._known.get(run_id)
        if known is not None:
            return known
        state = self.catalogue.run(run_id)
        if state is None or state.opening is None:
            return None
        known = Known(self.catalogue.experiment_id_of(state), state.params.values(), state.deleted_at is not None)
        known.running = state.status.value == "RUNNING"
        with self._lock:
            return self._remember(run_id, known)

    def remembered(self, run_id: str) -> Known | None:
        """As ``known``, of a run that this process has written to; None if that has to be read."""
        return self._known.get(run_id)

    def _remember(self, run_id: str, known: Known) -> Known:
        self._known[run_id] = known
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        return known

    # -- records -------------------------------------------------------------------------------------------------------

    def append(self, run_id: str | None, kind: int, fields: object) -> bool:
        """Write a record of a run (None: of no run), given as what msgpack packs for it. True: it is kept.

        Raises:
            NotStored, BadText: the disk did not take it, or no record does, and ``MLFERRY_ON_ERROR=raise``.
            Unencodable: as ``Writer.append``.
        """
        writer = self._writers.get(run_id) or self._writer(run_id)
        try:
            if writer.append(kind, fields):
                return True
            # Another thread may have closed this log since it was looked up; it is asked for again then, once.
            again = self._writer(run_id)
            return (again is not writer and again.append(kind, fields)) or self._not_stored(run_id, kind, fields)
        except RecordTooLarge as error:
            self.refuse(run_id, kind, BadText(error.detail))
            return False

    def put(self, run_id: str | None, record: Record) -> bool:
        """Write any record; as ``append``."""
        return self.append(run_id, KIND_OF[type(record)], as_fields(record))

    def blobs(self, run_id: str | None) -> Blobs:
        """Where the files of a run (None: of no run) are kept."""
        directory = store_directory(self.root) if run_id is None else self._directory(run_id)
        return Blobs(directory, durable=self.config.fsync is not Fsync.NEVER)

    def sync_soon(self, run_id: str | None) -> None:
        """What was just written shall be safe from a power cut soon."""
        writer = self._writers.get(run_id)
        if writer is not None:
            writer.sync_soon()

    def close(self) -> None:
        """End every log, without an end of any run."""
        self._consoles.end_all()
        with self._lock:
            for run_id in list(self._writers):
                self._close(run_id)

    def refuse(self, run_id: str | None, kind: int, error: MlferryError) -> None:
        """Something could not become a record: have the log state it and warn once, or raise, as the settings ask."""
        self.trouble.count(error)
        self._writer(run_id).count_dropped(kind, str(error)[:300])
        self.trouble.meet(error)

    def lose(self, run_id: str, error: MlferryError) -> None:
        """As ``refuse``, from a thread where nobody could be raised at."""
        self.trouble.count(error)
        with self._lock:
            self._writer(run_id).count_dropped(Kind.ARTIFACT, str(error)[:300])
        self.trouble.say(str(error))

    def directory(self, run_id: str) -> Path:
        """Where the run lies."""
        with self._lock:
            return self._directory(run_id)

    def _not_stored(self, run_id: str | None, kind: int, fields: object) -> bool:
        """The writer has counted it and has said why."""
        if self.config.on_error is OnError.RAISE:
            raise NotStored(str(self.root if run_id is None else self._directory(run_id)))
        record = decode(kind, packer().pack(fields))
        if record is not None:
            self.catalogue.imagine(run_id, record)
        return False

    # -- writers -------------------------------------------------------------------------------------------------------

    def _writer(self, run_id: str | None) -> Writer:
        with self._lock:
            if run_id not in self._writers:
                self._open(run_id, self._opening(run_id))
            return self._writers[run_id]

    def _open(self, run_id: str | None, opening: Open) -> None:
        directory = store_directory(self.root) if run_id is None else self._directory(run_id)
        settings = Settings(fsync=self.config.fsync)
        self._writers[run_id] = Writer(directory, opening, settings, on_trouble=self.trouble.say)
        while len(self._writers) > _MOST_OPEN:
            self._close(next(iter(self._writers)))

    def _close(self, run_id: str | None) -> None:
        writer = self._writers.pop(run_id, None)
        if writer is not None:
            writer.close()

    def _opening(self, run_id: str | None) -> Open:
        """Of a log beside others: who creates a run says more (``create``)."""
        now = _now_ms()
        return Open(
            writer_id=writer_name(now, None, os.urandom(8).hex()),
            run_id=run_id,
            user=user_name(os.environ),
            start_time=now,
            resumed=run_id is not None,
            role="primary" if run_id is None or run_id in self._primary else "guest",
            attempt=uuid.uuid4().hex,
        )

    def _directory(self, run_id: str) -> Path:
        directory = self._directories.get(run_id)
        if directory is None:
            found = self.catalogue.directories(run_id)
            directory = found[0] if found else new_run_directory(self.root, run_id, _now_ms())
            self._directories[run_id] = directory
        return directory


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_journals: dict[Path, Journal] = {}
_lock = threading.Lock()


def journal_for(root: Path) -> Journal:
    """The process's journal of a spool."""
    with _lock:
        if root not in _journals:
            _journals[root] = Journal(root)
        return _journals[root]


def close_all() -> None:
    """The process ends."""
    for journal in list(_journals.values()):
        journal.close()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for journal in _journals.values():
        journal._start_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)
