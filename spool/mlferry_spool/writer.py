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
the gap. Other errors of the file (EIO, a size limit) begin a new segment. After a failed ``fdatasync`` what was not yet safe
is written once more, into a new segment (``durability`` tells why); a reader may see it twice, and delivery makes it one.

*Signals.* A Python signal handler runs between two bytecodes of the main thread, perhaps inside ``append``, and may log or
raise. The lock is reentrant, and the counters are taken in the same breath as the write: between the check of the sequence
number and the write lies no call, so no handler can run there, and a frame that a nested append made stale is built again.
That also keeps the counters right when a handler raises (Ctrl-C). Inside a slow section a nested append is counted as
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet
from zlib import crc32

from mlferry_spool import limits, segments
from mlferry_spool.caretaker import caretaker
from mlferry_spool.codec import KIND_OF, as_fields, pack, packer
from mlferry_spool.durability import Durability
from mlferry_spool.errors import RecordTooLarge, Unencodable
from mlferry_spool.files import Files, OsFiles
from mlferry_spool.frames import CHECKS, EXT32, HEADER, OVERHEAD
from mlferry_spool.gaps import Gap
from mlferry_spool.layout import BALLAST, writer_name
from mlferry_spool.liveness import hold, this_machine
from mlferry_spool.records import Heartbeat, Kind, Open, Record
from mlferry_spool.segments import Segment, short_write
from mlferry_spool.settings import Fsync, Settings

__all__ = ["Fsync", "Settings", "Writer"]

_pack_header = HEADER.pack
_pack_checks = CHECKS.pack
_MAX_PAYLOAD_BYTES = limits.MAX_PAYLOAD_BYTES
_NOWHERE = -1

#: No segment grows past this, so that every frame ends before a reader stops looking.
_LAST_BYTE = limits.MAX_SEGMENT_BYTES - 4 * limits.MAX_PAYLOAD_BYTES

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
        on_trouble: called with a sentence when the log is suspended, once an episode. It must not call the writer.
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
        self._start_anew(_State.SUSPENDED)
        _writers.add(self)
        with self._slowly():
            self._open_log()
        caretaker.register(self)

    def _start_anew(self, state: _State) -> None:
        """No file, no lock, nothing counted: a new writer, or a parent's writer found in a forked child."""
        self._lock = threading.RLock()
        self._pack = packer().pack
        self._state, self._slow = state, False
        self._segment: Segment | None = None
        self._durability = Durability(self._settings.fsync, self._files)
        self._gap = Gap()
        self._ballast = limits.BALLAST_BYTES
        self._lock_fd = self._fd = _NOWHERE
        self._salt = self._sequence = self._position = self._act_at = self._rotate_at = 0
        self._trouble, self._trouble_since = "", -1
        self._retry_at = self._spoke_at = 0.0
        self._spoke_position = 0
        self.appended = self.dropped = 0

    def __repr__(self) -> str:
        return f"Writer({self.writer_id!r}, {self._state.value}, appended={self.appended}, dropped={self.dropped})"

    @property
    def writer_id(self) -> str:
        """The name of this writer's directory; another one after a fork, or where the directory was somebody else's."""
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
                self._pack = packer().pack  # its buffer has grown and would stay so
                raise RecordTooLarge(f"{size} bytes, the limit is {_MAX_PAYLOAD_BYTES}")
            while True:
                sequence = self._sequence
                salt = self._salt
                header = _pack_header(EXT32, size + 12, kind, sequence)
                check = crc32(header, salt)
                frame = header + _pack_checks(check, crc32(payload, check)) + payload
                if sequence == self._sequence and salt == self._salt:
                    break
            # No call from here to the write: see "Signals".
            self._sequence = sequence + 1
            position = self._position = self._position + size + 18
            self.appended += 1
            try:
                written = self._write(self._fd, frame)
            except OSError as error:
                return self._recover(kind, payload, (sequence, salt), error)
            if written != size + 18:
                return self._recover(kind, payload, (sequence, salt), written)
            if position >= self._act_at:
                self._act()
            return True

    # -- everything else -------------------------------------------------------------------------------------

    def put(self, record: Record) -> bool:
        """Write a record. Returns and raises as ``append``."""
        return self.append(KIND_OF[type(record)], as_fields(record))

    def count_dropped(self, kind: int, reason: str, count: int = 1) -> None:
        """Say in the log that something could not become a record; a DROPPED frame follows with the next tending."""
        self._drop(kind, reason, count)
        caretaker.wake()

    def sync_soon(self) -> None:
        """Have the caretaker make everything so far durable, without waiting for it."""
        caretaker.wake()

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
        with self._slowly():
            if self._state is not _State.FORKED and self._state is not _State.CLOSED:
                self._say(words)
            self._durability.close(self._segment)
            self._segment = None
            self._unlock()
            self._state = _State.CLOSED
        caretaker.forget(self)
        _writers.discard(self)
        return True

    def tend(self, now: float) -> None:
        """What the caretaker does each interval; ``now`` in seconds of ``time.monotonic()``."""
        with self._slowly():
            self._tend(now)
            segment = self._segment
            due = (segment, segment.position, segment.sequence) if segment else (None, 0, 0)
        self._durability.sync(*due)
        if self._durability.failed:
            with self._slowly():
                self._mend()

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

    def _recover(self, kind: int, payload: bytes, place: tuple[int, int], failure: OSError | int) -> bool:
        """A write failed, or was short (its length): find out why, write again if that can help, else count."""
        self.appended -= 1
        sequence, salt = place
        if self._sequence == sequence + 1 and self._salt == salt:
            self._sequence = sequence
            self._position -= len(payload) + OVERHEAD
        # Otherwise a signal handler has logged meanwhile: the number stays unused, which a reader counts as one frame lost.
        if self._slow:
            return self._drop(kind, "logged by a signal handler while the log was busy")
        with self._slowly():
            error = failure if isinstance(failure, OSError) else self._cut_off(failure, salt)
            return self._insist(lambda: self._add(kind, payload), error) or self._drop(kind, self._trouble)

    def _cut_off(self, part: int, salt: int) -> OSError:
        segment = self._segment
        if segment is None or segment.salt != salt:  # it went out of use meanwhile
            return short_write()
        return segment.cut_off(part, self._files)

    def _insist(self, write: Callable[[], None], error: OSError) -> bool:
        """Write after an error, as often as that makes sense."""
        for _ in range(3):
            if not self._ready(error):
                return False
            try:
                write()
                return True
            except OSError as again:
                error = again
        self._suspend(error)
        return False

    def _ready(self, error: OSError) -> bool:
        """Whether, after this error, another attempt is worth its system call; does what must come before it."""
        if self._state is _State.CLOSED:
            self._trouble = "logged after the end of the log"
            return False
        if self._state is _State.FORKED:
            return self._open_own()
        if self._state is _State.SUSPENDED:
            return time.monotonic() >= self._retry_at and self._resume()
        if error.errno == errno.EAGAIN:
            return True
        if error.errno in _FILE_ERRORS and self._try_rotate():
            return True
        self._suspend(error)
        return False

    def _act(self) -> None:
        """The segment is full, or every call is to be durable."""
        with self._slowly():
            if self._settings.fsync is Fsync.ALWAYS:
                self._make_durable()
            if self._segment is not None and self._segment.position >= self._rotate_at:
                self._try_rotate()

    def _tend(self, now: float) -> None:
        if self._state is _State.SUSPENDED and now >= self._retry_at:
            self._resume()
        if self._state is _State.OPEN:
            self._mend()
        segment = self._segment
        if self._state is not _State.OPEN or segment is None:
            return
        try:
            self._settle()
            self._speak(segment, now)
        except OSError as error:
            self._ready(error)
        else:
            if now - segment.begun_at >= self._settings.segment_age_s and segment.sequence > 1:
                self._try_rotate()

    def _speak(self, segment: Segment, now: float) -> None:
        """A sign of life, where nothing else was one for a while. Raises OSError."""
        if segment.position != self._spoke_position:
            self._spoke_position, self._spoke_at = segment.position, now
        elif now - self._spoke_at >= self._settings.heartbeat_s:
            segment.add(Kind.HEARTBEAT, pack(Heartbeat(_now_ms())), self._files)

    def _add(self, kind: int, payload: bytes) -> None:
        """Write a frame, after the gap before it was stated. Raises OSError."""
        self._settle()
        assert self._segment is not None
        self._segment.add(kind, payload, self._files)
        self.appended += 1

    def _settle(self) -> None:
        """State in the log what was dropped since the last time. Raises OSError."""
        if self._gap and self._segment is not None:
            gap = self._gap.take()
            assert gap is not None
            try:
                self._segment.add(Kind.DROPPED, pack(gap), self._files)
            except OSError:
                self._gap.put_back(gap)
                raise

    def _drop(self, kind: int, reason: str, count: int = 1) -> bool:
        self._gap.add(kind, reason, count, _now_ms())
        self.dropped += count
        return False

    # -- opening, suspending, rotating -----------------------------------------------------------------------

    def _open_log(self) -> bool:
        """Make the directory and enter it; or be suspended."""
        try:
            try:
                self._enter()
            except (FileExistsError, BlockingIOError):  # somebody else's, or what a failed attempt could not take back
                self._unlock()
                self._opening = replace(self._opening, writer_id=self._new_name())
                self._enter()
        except OSError as error:
            self._suspend(error)
            return False
        return True

    def _enter(self) -> None:
        """Make the directory, take the lock, begin the first segment, lay the ballast. Raises OSError."""
        self._files.make_directory(self.directory)
        if self._lock_fd == _NOWHERE:
            held = hold(self.directory)
            self._lock_fd = _NOWHERE if held is None else held
        self._opening = self._introduction()
        self._begin(0)
        if self._ballast:
            with contextlib.suppress(OSError):
                self._files.reserve(self.directory / BALLAST, self._ballast)

    def _new_name(self) -> str:
        return writer_name(_now_ms(), self._opening.rank, os.urandom(8).hex())

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
            program=_printable(Path(sys.argv[0] if sys.argv else "").name[:200]),
        )

    def _open_own(self) -> bool:
        """In a forked child: a log of its own in the same run, whose end is not the run's."""
        self._opening = replace(self._opening, writer_id=self._new_name(), role="helper")
        self._state = _State.SUSPENDED
        caretaker.register(self)
        return self._open_log()

    def _begin(self, base: int) -> None:
        """Begin a segment and retire the one before. Raises OSError, and then nothing has changed."""
        segment = segments.begin(self.directory, base, self._opening, time.monotonic(), self._files)
        if self._segment is not None:
            self._durability.retire(self._segment)
        self._segment, self._state = segment, _State.OPEN
        self._set_limit(min(self._settings.segment_bytes, _LAST_BYTE))
        if self._settings.fsync is not Fsync.NEVER:
            caretaker.wake()

    def _set_limit(self, rotate_at: int) -> None:
        self._rotate_at = rotate_at
        self._act_at = 0 if self._settings.fsync is Fsync.ALWAYS else rotate_at

    def _rotate(self) -> None:
        """Go on in a new segment. The old one's SEGMENT_END comes after, so that a full disk cannot leave neither.

        Raises OSError, and then nothing has changed.
        """
        old = self._segment
        assert old is not None
        base = old.base + old.sequence + 1
        for _ in range(3):  # past a file that a failed attempt could not take back
            with contextlib.suppress(FileExistsError):
                self._begin(base)
                return old.end(base, self._files)
            base += 1
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _try_rotate(self) -> bool:
        try:
            self._rotate()
        except OSError as error:
            assert self._segment is not None
            self._set_limit(self._segment.position + limits.MAX_PAYLOAD_BYTES)
            if self._rotate_at > _LAST_BYTE or self._segment.broken:
                self._suspend(error)
            return False
        return True

    def _suspend(self, error: OSError) -> None:
        """Nothing can be written for now: try again in a while."""
        self._state, self._trouble = _State.SUSPENDED, error.strerror or str(error)
        self._retry_at = time.monotonic() + self._settings.retry_s
        if self._trouble_since != self.appended:  # something got through since the last time, so this is new trouble
            self._trouble_since = self.appended
            if self._on_trouble is not None:
                with contextlib.suppress(Exception):
                    self._on_trouble(
                        f"{self._trouble} ({self.directory}): logging is suspended, what is logged meanwhile is counted"
                    )

    def _resume(self) -> bool:
        if self._segment is None:
            return self._open_log()
        if self._segment.broken or self._segment.position >= _LAST_BYTE:
            return self._try_rotate()
        self._state = _State.OPEN
        return True

    # -- durability ------------------------------------------------------------------------------------------

    def _make_durable(self) -> None:
        for _ in range(3):
            segment = self._segment
            if segment is None:
                return
            self._durability.sync(segment, segment.position, segment.sequence)
            if not self._durability.failed:
                return
            self._mend()

    def _mend(self) -> None:
        """Write again what failed syncs may have lost; what does not succeed is left for the next time."""
        try:
            while self._durability.failed:
                segment, error = self._durability.failed[0]
                if segment is self._segment:
                    self._rotate()
                self._write_again(segment, error)
                self._durability.failed.pop(0)
        except OSError as again:
            self._suspend(again)

    def _write_again(self, segment: Segment, error: OSError) -> None:
        entries, lost = segment.unsynced()
        if lost:
            self._drop(0, f"fdatasync: {error.strerror}; records could not be read back", lost)
        for entry in entries:
            assert self._segment is not None
            self._segment.add(entry.kind, entry.payload, self._files)
            segment.synced = (entry.after.byte, entry.after.sequence)
            if self._segment.position >= self._rotate_at:
                self._rotate()

    # -- ending ----------------------------------------------------------------------------------------------

    def _say(self, words: list[tuple[Kind, bytes]]) -> None:
        """The last words, with the ballast's room if there is none other."""
        self._ballast = 0
        with contextlib.suppress(OSError):
            (self.directory / BALLAST).unlink(missing_ok=True)
        for kind, payload in words:
            if not self._insist_now(lambda kind=kind, payload=payload: self._add(kind, payload)):  # type: ignore[misc]
                self._drop(kind, self._trouble)
        self._insist_now(self._settle)
        self._make_durable()
        if self._segment is not None:
            self._segment.end(None, self._files)
            self._durability.sync(self._segment, self._segment.position, self._segment.sequence)

    def _insist_now(self, write: Callable[[], None]) -> bool:
        """The last chance: whatever the time of the next attempt, and once more after that."""
        for _ in range(2):
            self._retry_at = 0.0
            if self._insist(write, short_write()):
                return True
        return False

    def _unlock(self) -> None:
        fd, self._lock_fd = self._lock_fd, _NOWHERE
        if fd != _NOWHERE:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _leave_parent(self) -> None:
        """In a forked child: these descriptors and counts are the parent's."""
        self._durability.close(self._segment)
        self._unlock()
        self._start_anew(_State.CLOSED if self._state is _State.CLOSED else _State.FORKED)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _checked(payload: bytes) -> bytes:
    if len(payload) > _MAX_PAYLOAD_BYTES:
        raise RecordTooLarge(f"{len(payload)} bytes, the limit is {_MAX_PAYLOAD_BYTES}")
    return payload


def _printable(text: str) -> str:
    """A program's name as UTF-8 can hold it: ``sys.argv`` carries other bytes as lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


_writers: WeakSet[Writer] = WeakSet()


def _after_fork_in_child() -> None:
    for writer in list(_writers):
        writer._leave_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
