"""A writer's log: records in, frames on disk, one ``os.write`` each.

Theory of operation
-------------------
*The hot path* is ``append``: pack, two checksums, one write, under one lock. It has no branch for rare conditions: in every
state in which nothing can be written (closed, disk full, forked) ``_fd`` is -1, so that the write itself raises EBADF and
``_recover`` looks at why. The counters of the open segment stand in the writer itself while the hot path runs, and are
handed to the ``Segment`` when anything slower does (``_slowly``).

*A call that returned is kept.* When ``os.write`` has returned, the bytes are the kernel's and survive any death of the
process. Power cuts are the caretaker's business (``fdatasync`` once an interval), or the caller's with ``Fsync.ALWAYS``.

*Trouble never reaches the caller.* A short write is cut off again (this process is the only writer). A full disk suspends
the log: records are counted, the disk is tried again once a second, and the first frame that fits is DROPPED, which states
the gap. Other errors of the file (EIO, a size limit) begin a new segment. After a failed ``fdatasync`` the kernel may have
marked pages clean that never reached the disk, so what was not yet safe is written once more, into a new segment; a reader
may see it twice, and delivery makes it one.

*Signals.* A Python signal handler runs between two bytecodes of the main thread, perhaps inside ``append``, and may log.
The lock is reentrant, and the sequence number is taken in the same breath as the write (no call lies between the check and
the write, so no handler can), which keeps a nested append whole. Inside a slow section a nested append is counted as
dropped and a nested ``close`` refuses, rather than wait for the thread that it interrupted.

*Last words.* A ballast file keeps room for DROPPED, RUN_END and SEGMENT_END on a full disk.

*fork.* A child closes its copies of the parent's descriptors and, with its first record, opens a log of its own.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet
from zlib import crc32

from mlferry_spool import limits, segments
from mlferry_spool.caretaker import caretaker
from mlferry_spool.codec import KIND_OF, as_fields, pack, packer
from mlferry_spool.errors import RecordTooLarge, Unencodable
from mlferry_spool.files import Files, OsFiles, sync_directory
from mlferry_spool.frames import CHECKS, EXT32, HEADER
from mlferry_spool.layout import BALLAST, writer_name
from mlferry_spool.liveness import hold, this_machine
from mlferry_spool.records import Dropped, Heartbeat, Kind, Open, Record
from mlferry_spool.settings import Fsync, Settings

__all__ = ["Fsync", "Settings", "Writer"]

_pack_header = HEADER.pack
_pack_checks = CHECKS.pack
_MAX_PAYLOAD_BYTES = limits.MAX_PAYLOAD_BYTES
_NOWHERE = -1

#: The file itself is at fault: a new one may do better. Everything else is the disk's or the directory's.
_FILE_ERRORS = frozenset({errno.EIO, errno.EFBIG, errno.EBADF, errno.ESTALE})


class _State(enum.Enum):
    OPEN = "open"
    SUSPENDED = "suspended"
    FORKED = "forked"
    CLOSED = "closed"


class Writer:
    """The log of one process in one run. Thread-safe; nothing that the disk does raises.

    Args:
        run_directory: the run's directory; the writer makes its own below it.
        opening: who writes into what. The writer fills in the machine, the process and the lock.
        on_trouble: called with a sentence when the log is suspended. It must not call the writer.
    """

    def __init__(
        self,
        run_directory: Path,
        opening: Open,
        settings: Settings | None = None,
        *,
        files: Files | None = None,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        self._run_directory = run_directory
        self._opening = opening
        self._settings = settings or Settings()
        self._files = files or OsFiles()
        self._on_trouble = on_trouble
        self._write = self._files.write
        self._pack = packer().pack
        self.appended = self.dropped = 0
        self._start_anew(_State.SUSPENDED)
        with self._slowly():
            self._open_log()
        _writers.add(self)
        caretaker.register(self)

    def _start_anew(self, state: _State) -> None:
        """No file, no lock, nothing counted: a new writer, or a parent's writer found in a forked child."""
        self._lock, self._sync_lock = threading.RLock(), threading.RLock()
        self._state, self._slow = state, False
        self._segment: segments.Segment | None = None
        self._retired: list[segments.Segment] = []
        self._lock_fd = self._fd = _NOWHERE
        self._salt = self._sequence = self._position = self._act_at = 0
        self._pending: Counter[str] = Counter()
        self._reason, self._first_drop = "", 0
        self._retry_at = self._spoke_at = 0.0
        self._spoke_position = 0

    def __repr__(self) -> str:
        return f"Writer({self.writer_id!r}, {self._state.value}, appended={self.appended}, dropped={self.dropped})"

    @property
    def writer_id(self) -> str:
        """The name of this writer's directory; another one after a fork."""
        return self._opening.writer_id

    @property
    def directory(self) -> Path:
        """Where the segments are, or would be if the disk took them."""
        return self._run_directory / self._opening.writer_id

    @property
    def tend_every_s(self) -> float:
        """Seconds between two calls of ``tend``."""
        return min(self._settings.fsync_interval_s, self._settings.retry_s, self._settings.heartbeat_s)

    # -- the hot path ----------------------------------------------------------------------------------------

    def append(self, kind: int, fields: object) -> bool:
        """Write one record, given as what msgpack packs for it. True: it is kept. False: it was counted as dropped.

        Raises:
            Unencodable: msgpack or UTF-8 cannot hold a value. Nothing was written or counted.
            RecordTooLarge: the packed record exceeds ``limits.MAX_PAYLOAD_BYTES``. Nothing was written or counted.
        """
        with self._lock:
            try:
                payload = self._pack(fields)
            except (TypeError, ValueError, OverflowError) as error:
                raise Unencodable(str(error)) from None
            size = len(payload)
            if size > _MAX_PAYLOAD_BYTES:
                raise RecordTooLarge(f"{size} bytes, the limit is {_MAX_PAYLOAD_BYTES}")
            while True:
                sequence = self._sequence
                header = _pack_header(EXT32, size + 12, kind, sequence)
                check = crc32(header, self._salt)
                frame = header + _pack_checks(check, crc32(payload, check)) + payload
                if sequence == self._sequence:
                    break
            self._sequence = sequence + 1
            try:
                written = self._write(self._fd, frame)
            except OSError as error:
                return self._recover(kind, payload, error)
            if written != len(frame):
                return self._recover(kind, payload, None)
            self._position += written
            self.appended += 1
            if self._position >= self._act_at:
                self._act()
            return True

    # -- everything else -------------------------------------------------------------------------------------

    def put(self, record: Record) -> bool:
        """Write a record. Returns and raises as ``append``."""
        return self.append(KIND_OF[type(record)], as_fields(record))

    def count_dropped(self, kind: int, reason: str, count: int = 1) -> None:
        """Say in the log that something could not become a record; a DROPPED frame follows with the next tending."""
        with self._lock:
            self._drop(kind, reason, count)
        caretaker.wake()

    def sync_soon(self) -> None:
        """Have the caretaker make everything so far durable, without waiting for it."""
        caretaker.wake()

    def close(self, *last_words: Record) -> bool:
        """End the log: DROPPED if there is a gap, the last words, SEGMENT_END, fsync. Idempotent.

        Returns False, with nothing done, only where it was called by a signal handler that interrupted this writer in a
        slow section; call it again a little later.
        """
        if self._slow and self._lock.acquire(blocking=False):
            # Reentrant: only the interrupted thread itself gets here while a slow section is open.
            self._lock.release()
            return False
        with self._sync_lock, self._slowly():
            if self._state is not _State.FORKED and self._state is not _State.CLOSED:
                self._say(last_words)
            self._release(sync=self._settings.fsync is not Fsync.NEVER)
            self._state = _State.CLOSED
        caretaker.forget(self)
        _writers.discard(self)
        return True

    def tend(self, now: float) -> None:
        """What the caretaker does each interval; ``now`` in seconds of ``time.monotonic()``."""
        with self._slowly():
            self._tend(now)
            due = None if self._segment is None else (self._segment, self._segment.position, self._segment.sequence)
        self._sync(due)

    # -- slow sections ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _slowly(self) -> Iterator[None]:
        """Hold the lock with the counters in the segment and ``_fd`` closed to nested appends."""
        with self._lock:
            self._slow, self._fd = True, _NOWHERE
            if self._segment is not None:
                self._segment.position, self._segment.sequence = self._position, self._sequence
            try:
                yield
            finally:
                self._quicken()

    def _quicken(self) -> None:
        segment = self._segment
        if segment is not None:
            self._salt, self._position, self._sequence = segment.salt, segment.position, segment.sequence
        if segment is not None and self._state is _State.OPEN:
            self._fd = segment.fd
        self._slow = False

    def _recover(self, kind: int, payload: bytes, error: OSError | None) -> bool:
        """A write failed (or was short: no error): find out why, write again if that can help, else count."""
        self._sequence -= 1
        if self._slow:
            return self._drop(kind, "logged by a signal handler while the log was busy")
        with self._slowly():
            if error is None:
                assert self._segment is not None
                error = self._segment.cut_off(self._files)
            for _ in range(3):
                if not self._ready(error):
                    return self._drop(kind, self._reason)
                try:
                    self._add(kind, payload)
                    return True
                except OSError as again:
                    error = again
            self._suspend(error)
            return self._drop(kind, self._reason)

    def _ready(self, error: OSError) -> bool:
        """Whether, after this error, another attempt is worth its system call; does what must come before it."""
        if self._state is _State.CLOSED:
            self._reason = "logged after the end of the log"
            return False
        if self._state is _State.FORKED:
            return self._open_own()
        if self._state is _State.SUSPENDED:
            return time.monotonic() >= self._retry_at and self._resume()
        if error.errno == errno.EAGAIN:
            return True
        if error.errno in _FILE_ERRORS and self._rotate():
            return True
        self._suspend(error)
        return False

    def _act(self) -> None:
        """The segment is full, or every call is to be durable."""
        with self._slowly():
            segment = self._segment
            assert segment is not None
            if self._settings.fsync is Fsync.ALWAYS:
                self._sync_now(segment)
            if segment.position >= self._settings.segment_bytes and segment is self._segment:
                self._rotate()

    def _tend(self, now: float) -> None:
        if self._state is _State.SUSPENDED and now >= self._retry_at:
            self._resume()
        segment = self._segment
        if self._state is not _State.OPEN or segment is None:
            return
        try:
            self._settle()
            if segment.position != self._spoke_position:
                self._spoke_position, self._spoke_at = segment.position, now
            elif now - self._spoke_at >= self._settings.heartbeat_s:
                segment.add(Kind.HEARTBEAT, pack(Heartbeat(_now_ms())), self._files)
        except OSError as error:
            self._suspend(error)
        if now - segment.begun_at >= self._settings.segment_age_s and segment.sequence > 1:
            self._rotate()

    def _add(self, kind: int, payload: bytes) -> None:
        """Write a frame, after the gap before it was stated. Raises OSError."""
        self._settle()
        assert self._segment is not None
        self._segment.add(kind, payload, self._files)
        self.appended += 1

    def _settle(self) -> None:
        """State in the log what was dropped since the last time. Raises OSError."""
        if self._pending and self._segment is not None:
            kinds = dict(self._pending)
            gap = Dropped(self._first_drop, _now_ms(), sum(kinds.values()), self._reason[:500], kinds)
            self._segment.add(Kind.DROPPED, pack(gap), self._files)
            self._pending.clear()

    def _drop(self, kind: int, reason: str, count: int = 1) -> bool:
        if not self._pending:
            self._first_drop = _now_ms()
        name = Kind(kind).name.lower() if kind in Kind._value2member_map_ else str(kind)
        self._pending[name] += count
        self._reason = reason
        self.dropped += count
        return False

    # -- opening, suspending, rotating -----------------------------------------------------------------------

    def _open_log(self) -> bool:
        """Make the directory, take the lock, lay the ballast, begin the first segment; or be suspended."""
        try:
            self._files.make_directory(self.directory)
            if self._lock_fd == _NOWHERE:
                held = hold(self.directory)
                self._lock_fd = _NOWHERE if held is None else held
            with contextlib.suppress(OSError):
                self._files.reserve(self.directory / BALLAST, limits.BALLAST_BYTES)
            self._opening = self._introduction()
            self._begin(0)
        except OSError as error:
            self._suspend(error)
            return False
        return True

    def _introduction(self) -> Open:
        machine = this_machine()
        return replace(
            self._opening,
            host=machine.host,
            machine_id=machine.machine_id,
            boot_id=machine.boot_id,
            pid=os.getpid(),
            opened=_now_ms(),
            locked=self._lock_fd != _NOWHERE,
            heartbeat_s=self._settings.heartbeat_s,
            program=Path(sys.argv[0] if sys.argv else "").name[:200],
        )

    def _open_own(self) -> bool:
        """In a forked child: a log of its own in the same run, whose end is not the run's."""
        name = writer_name(_now_ms(), self._opening.rank, os.urandom(8).hex())
        self._opening = replace(self._opening, writer_id=name, role="helper")
        self._state = _State.SUSPENDED
        _writers.add(self)
        caretaker.register(self)
        return self._open_log()

    def _begin(self, base: int) -> None:
        """Begin a segment and retire the one before. Raises OSError, and then nothing has changed."""
        segment = segments.begin(self.directory, base, self._opening, time.monotonic(), self._files)
        if self._segment is not None:
            self._retired.append(self._segment)
        self._segment, self._state = segment, _State.OPEN
        self._act_at = 0 if self._settings.fsync is Fsync.ALWAYS else self._settings.segment_bytes
        if self._settings.fsync is not Fsync.NEVER:
            caretaker.wake()

    def _rotate(self) -> bool:
        """Go on in a new segment. The old one's SEGMENT_END comes after, so that a full disk cannot leave neither."""
        old = self._segment
        assert old is not None
        base = old.base + old.sequence + 1
        try:
            self._begin(base)
        except OSError as error:
            self._act_at = old.position + limits.MAX_PAYLOAD_BYTES
            if self._act_at > limits.MAX_SEGMENT_BYTES - 2 * limits.MAX_PAYLOAD_BYTES:
                self._suspend(error)
            return False
        old.end(base, self._files)
        return True

    def _suspend(self, error: OSError) -> None:
        """Nothing can be written for now: try again in a while."""
        reason = error.strerror or str(error)
        if self._on_trouble is not None and reason != self._reason:
            self._on_trouble(f"{reason} ({self.directory}): logging is suspended, what is logged meanwhile is counted")
        self._state, self._reason = _State.SUSPENDED, reason
        self._retry_at = time.monotonic() + self._settings.retry_s

    def _resume(self) -> bool:
        if self._segment is None:
            return self._open_log()
        if self._segment.position >= limits.MAX_SEGMENT_BYTES - 2 * limits.MAX_PAYLOAD_BYTES:
            return self._rotate()
        self._state = _State.OPEN
        return True

    # -- durability ------------------------------------------------------------------------------------------

    def _sync(self, due: tuple[segments.Segment, int, int] | None) -> None:
        """fdatasync what stood in the open segment and in retired ones, outside the lock that loggers need."""
        with self._sync_lock:
            while self._retired:
                segment = self._retired[0]
                self._sync_one(segment, segment.position, segment.sequence)
                self._files.close(segment.fd)
                self._retired.pop(0)
            if due is not None and due[0] is self._segment and due[0].synced[0] < due[1]:
                self._sync_one(*due)

    def _sync_one(self, segment: segments.Segment, position: int, sequence: int) -> None:
        if self._settings.fsync is Fsync.NEVER:
            return
        try:
            self._files.sync(segment.fd)
            if segment.synced[1] == 0:
                sync_directory(self.directory)
                sync_directory(self._run_directory)
            segment.synced = (position, sequence)
        except OSError as error:
            with self._slowly():
                self._salvage(segment, error)

    def _sync_now(self, segment: segments.Segment) -> None:
        try:
            self._files.sync(segment.fd)
            segment.synced = (segment.position, segment.sequence)
        except OSError as error:
            self._salvage(segment, error)

    def _salvage(self, segment: segments.Segment, error: OSError) -> None:
        """Write again what a failed fdatasync may have lost; the file is not trusted any more."""
        entries, lost = segment.unsynced()
        segment.synced = (segment.position, segment.sequence)
        if lost:
            self._drop(Kind.HEARTBEAT, f"fdatasync: {error.strerror}; records could not be read back", lost)
        try:
            if segment is self._segment and not self._rotate():
                raise error
            for entry in entries:
                self._add(entry.kind, entry.payload)
                self.appended -= 1
        except OSError as again:
            self._suspend(again)

    # -- ending ----------------------------------------------------------------------------------------------

    def _say(self, last_words: tuple[Record, ...]) -> None:
        """The last words, with the ballast's room if there is none other."""
        with contextlib.suppress(OSError):
            (self.directory / BALLAST).unlink(missing_ok=True)
        if self._state is _State.SUSPENDED and not self._resume():
            return
        assert self._segment is not None
        try:
            for record in last_words:
                self._add(KIND_OF[type(record)], pack(record))
            self._settle()
        except OSError as error:
            self._suspend(error)
        self._segment.end(None, self._files)

    def _release(self, *, sync: bool) -> None:
        for segment in [*self._retired, *([self._segment] if self._segment else [])]:
            with contextlib.suppress(OSError):
                if sync:
                    self._files.sync(segment.fd)
            with contextlib.suppress(OSError):
                self._files.close(segment.fd)
        if sync and self._segment is not None:
            sync_directory(self.directory)
            sync_directory(self._run_directory)
        self._retired, self._segment = [], None
        self._unlock()

    def _unlock(self) -> None:
        if self._lock_fd != _NOWHERE:
            os.close(self._lock_fd)
            self._lock_fd = _NOWHERE

    def _leave_parent(self) -> None:
        """In a forked child: these descriptors and counts are the parent's."""
        for fd in [segment.fd for segment in (*self._retired, self._segment) if segment is not None]:
            with contextlib.suppress(OSError):
                self._files.close(fd)
        with contextlib.suppress(OSError):
            self._unlock()
        self.appended = self.dropped = 0
        self._start_anew(_State.FORKED)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


_writers: WeakSet[Writer] = WeakSet()


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer._leave_parent()
    _writers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
