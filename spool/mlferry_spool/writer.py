"""A writer's log: records in, frames on disk, one ``os.write`` each.

Theory of operation
-------------------
*The hot path* is the appender's, whose counters and descriptor stand in the writer itself while it runs, and are handed to
the ``Segment`` when anything slower does (``_slowly``).

*Why not a mapped file.* A store costs a tenth of a write; but it ends the process with SIGBUS where a write answers EIO: on
XFS that was shut down, on a truncated file, on NFS that went stale.

*Trouble never reaches the caller.* A half-written frame is cut off again (this process is the only writer). A full disk
suspends the log: records are counted, the disk is tried again once a second, and the first frame that fits is DROPPED,
which states the gap. Other errors of the file (EIO, a size limit) begin a new segment. After a failed ``fdatasync`` what was
not yet safe is written once more, into a new segment (``durability`` tells why); a reader may see it twice, and delivery
makes it one.

*Signals.* A Python signal handler runs between two bytecodes of the main thread, and may log. Inside a slow section a nested
append is counted as dropped and a nested ``close`` refuses, rather than wait for the thread that it interrupted.

*Last words.* A ballast file keeps room for DROPPED, RUN_END and SEGMENT_END on a full disk.

*fork.* A child closes its copies of the parent's descriptors and, with its first record, opens a log of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakSet

from mlferry_spool import limits
from mlferry_spool.appender import Appender
from mlferry_spool.caretaker import Caretaker, caretaker
from mlferry_spool.codec import KIND_OF, as_fields, pack, packer
from mlferry_spool.errors import RecordTooLarge
from mlferry_spool.files import Files, OsFiles
from mlferry_spool.log import Log, State
from mlferry_spool.records import Kind, Open, Record
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.shape import check_shape

__all__ = ["Fsync", "Settings", "Writer"]

_NOWHERE = -1
_OPEN = State.OPEN

T = TypeVar("T")


class Writer(Appender):
    """The log of one process in one run. Thread-safe; nothing that the disk does raises.

    Args:
        run_directory: the run's directory; the writer makes its own below it.
        opening: who writes into what. The writer fills in the machine, the process and the lock.
        on_trouble: called with a sentence when the log is suspended, once an episode. It must not call the writer.
        tended_by: whose thread does what no logging thread should wait for.

    Raises:
        Unencodable: ``opening`` has a text that UTF-8 cannot hold.
    """

    def __init__(
        self,
        run_directory: Path,
        opening: Open,
        settings: Settings | None = None,
        *,
        files: Files | None = None,
        on_trouble: Callable[[str], None] | None = None,
        tended_by: Caretaker = caretaker,
    ) -> None:
        self._settings = settings or Settings()
        files = files or OsFiles()
        self._write = files.write
        self._caretaker = tended_by
        self._start_anew(Log(run_directory, opening, self._settings, files, on_trouble, tended_by.wake))
        _writers.add(self)
        self._slowly(self._log.open)
        self._caretaker.register(self)

    def _start_anew(self, log: Log) -> None:
        """Nothing written, nothing counted: a new writer, or a parent's writer found in a forked child."""
        self._lock = threading.RLock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._pack = packer().pack
        self._log = log
        self._slow = False
        self._fd = _NOWHERE
        self._salt = self._sequence = self._position = self._act_at = 0
        self._appended = self._counted = 0

    def __repr__(self) -> str:
        state = self._log.state.value
        return f"Writer({self.writer_id!r}, {state}, appended={self.appended}, dropped={self.dropped})"

    @property
    def writer_id(self) -> str:
        """The name of this writer's directory; another one after a fork, or where the directory was somebody else's."""
        return self._log.writer_id

    @property
    def directory(self) -> Path:
        """Where the segments are, or would be if the disk took them."""
        return self._log.directory

    @property
    def appended(self) -> int:
        """Records that were kept, last words included."""
        return self._appended + self._sequence - self._counted

    @property
    def dropped(self) -> int:
        """Records that could not be kept."""
        return self._log.dropped

    @property
    def tend_every_s(self) -> float:
        """Seconds between two calls of ``tend``."""
        return min(self._settings.fsync_interval_s, self._settings.retry_s, self._settings.heartbeat_s)

    # -- everything else -------------------------------------------------------------------------------------

    def put(self, record: Record) -> bool:
        """Write a record. Returns and raises as ``append``."""
        return self.append(KIND_OF[type(record)], as_fields(record))

    def count_dropped(self, kind: int, reason: str, count: int = 1) -> None:
        """Say in the log that something could not become a record; a DROPPED frame follows with the next tending."""
        with self._lock:
            self._log.drop(kind, reason, count)
        self._caretaker.wake()

    def sync_soon(self) -> None:
        """Have the caretaker make everything so far durable, without waiting for it."""
        self._caretaker.wake()

    def close(self, *last_words: Record) -> bool:
        """End the log: DROPPED if there is a gap, the last words, SEGMENT_END, fsync. Idempotent.

        Returns False, with nothing done, only where it was called by a signal handler that interrupted this writer in a
        slow section; call it again a little later.

        Raises:
            Unencodable, RecordTooLarge: a last word cannot be written. Nothing was done.
        """
        words = [(KIND_OF[type(word)], _checked(pack(word))) for word in last_words]
        if self._slow and self._lock.acquire(blocking=False):
            # Reentrant: only the interrupted thread itself gets here while a slow section is open.
            self._lock.release()
            return False
        self._slowly(partial(self._end, words))
        self._caretaker.forget(self)
        _writers.discard(self)
        return True

    def _end(self, words: Sequence[tuple[Kind, bytes]]) -> None:
        if self._log.state in (State.OPEN, State.SUSPENDED):
            self._appended += self._log.say(words)
        self._log.close()

    def tend(self, now: float) -> None:
        """What the caretaker does each interval; ``now`` in seconds of ``time.monotonic()``."""
        segment, position, sequence = self._slowly(partial(self._log.tend, now))
        durability = self._log.durability
        durability.sync(segment, position, sequence)
        if durability.failed:
            self._slowly(self._log.mend)

    # -- slow sections ---------------------------------------------------------------------------------------

    def _slowly(self, work: Callable[[], T]) -> T:
        """Do something with the lock held, the counters in the segment and ``_fd`` closed to nested appends.

        Neither before nor after ``work()`` stands a call, so that no signal handler can raise there and leave half of it.
        """
        with self._lock:
            try:
                self._slow, self._fd = True, _NOWHERE
                self._appended, self._counted = self._appended + self._sequence - self._counted, self._sequence
                segment = self._log.segment
                if segment is not None:
                    segment.position, segment.sequence = self._position, self._sequence
                return work()
            finally:
                segment = self._log.segment
                if segment is not None:
                    self._salt, self._position, self._sequence = segment.salt, segment.position, segment.sequence
                    self._act_at = self._log.act_at
                    if self._log.state is _OPEN:
                        self._fd = segment.fd
                self._slow, self._counted = False, self._sequence

    def _act(self) -> bool:
        """The segment has grown to where something is to be done. The record is kept."""
        self._slowly(self._log.act)
        return True

    def _recover(self, kind: int, payload: bytes, place: tuple[int, int], failure: OSError | int) -> bool:
        """A write failed, or was short (its length): find out why, write again if that can help, else count."""
        if self._slow:
            return self._log.drop(kind, "logged by a signal handler while the log was busy")
        forked = self._log.state is State.FORKED
        kept = self._slowly(partial(self._log.keep, kind, payload, place, failure))
        self._appended -= not kept  # the hot path has counted it
        if forked:
            self._caretaker.register(self)
        return kept

    def _look_at(self, payload: bytes) -> None:
        """Raises RecordTooLarge."""
        try:
            _checked(payload)
        except RecordTooLarge:
            self._pack = packer().pack  # its buffer has grown and would stay so
            raise

    def _leave_parent(self) -> None:
        """In a forked child: these descriptors, locks and counts are the parent's."""
        self._start_anew(self._log.forked())


def _checked(payload: bytes) -> bytes:
    if len(payload) > limits.MAX_PAYLOAD_BYTES:
        raise RecordTooLarge(f"{len(payload)} bytes, the limit is {limits.MAX_PAYLOAD_BYTES}")
    try:
        check_shape(payload)
    except ValueError as error:
        raise RecordTooLarge(str(error)) from None
    return payload


_writers: WeakSet[Writer] = WeakSet()


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer._leave_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
