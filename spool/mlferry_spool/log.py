"""A log in trouble and out of it: opening, suspending, rotating, mending, ending. The slow half of ``writer``.

Owns the state of the log and everything on disk that belongs to it: the directory, the open segment, the retired ones, the
gap not yet stated. It is called with the writer's lock held and the counters handed over to the open ``Segment``; it holds
no lock while it could wait for one that a logger holds. Nothing here raises what the disk does: errors end in a record that
was written after all, or in one that is counted.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlferry_spool import limits, segments
from mlferry_spool.codec import pack
from mlferry_spool.durability import Durability
from mlferry_spool.files import Files
from mlferry_spool.frames import OVERHEAD, encode
from mlferry_spool.gaps import Gap
from mlferry_spool.homes import Home
from mlferry_spool.introductions import introduced, now_ms
from mlferry_spool.layout import writer_name
from mlferry_spool.records import Heartbeat, Kind, Open
from mlferry_spool.segments import Segment, try_again
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.succession import begins_at

__all__ = ["Log", "State"]

#: No segment grows past this, so that every frame ends before a reader stops looking.
_LAST_BYTE = limits.MAX_SEGMENT_BYTES - 4 * limits.MAX_PAYLOAD_BYTES

#: The file itself may be at fault, and a new one do better: also where another disk was mounted in the place of one that
#: failed or turned read-only, since open files stay on the old one. Everything else is the disk's or the directory's.
_FILE_ERRORS = frozenset({errno.EIO, errno.EFBIG, errno.EBADF, errno.ESTALE, errno.EROFS})


class State(enum.Enum):
    """Whether records can be written: yes; not for now; not before a forked child has a log of its own; never again."""

    OPEN = "open"
    SUSPENDED = "suspended"
    FORKED = "forked"
    CLOSED = "closed"


class Log:
    """One writer's log on disk. ``act_at``: bytes in the segment from which on the writer calls ``act`` after a record."""

    def __init__(
        self,
        run_directory: Path,
        opening: Open,
        settings: Settings,
        files: Files,
        on_trouble: Callable[[str], None] | None,
        sync_soon: Callable[[], bool],
        state: State = State.SUSPENDED,
    ) -> None:
        self._run_directory = run_directory
        self._opening = opening
        self._settings = settings
        self._files = files
        self._on_trouble = on_trouble
        self._sync_soon = sync_soon
        self.state = state
        self.segment: Segment | None = None
        self.durability = Durability(settings.fsync, files)
        self.dropped = self.act_at = self._rotate_at = self._overrun_at = 0
        self._gap = Gap()
        self._home = Home(files)
        self._closing = False
        self._trouble, self._trouble_at = "", (-1, -1)
        self._retry_at = self._spoke_at = 0.0
        self._spoke_position = 0

    @property
    def writer_id(self) -> str:
        return self._opening.writer_id

    @property
    def directory(self) -> Path:
        return self._run_directory / self._opening.writer_id

    def forked(self) -> Log:
        """In a forked child: give up the copies of the parent's descriptors. The log that takes this one's place."""
        self.durability.abandon(self.segment)
        self._home.leave()
        state = State.CLOSED if self.state is State.CLOSED else State.FORKED
        given = (self._run_directory, self._opening, self._settings, self._files, self._on_trouble, self._sync_soon)
        return Log(*given, state)

    # -- records ---------------------------------------------------------------------------------------------

    def keep(self, kind: int, payload: bytes, place: tuple[int, int], failure: OSError | int) -> bool:
        """A frame was counted at its place (sequence, salt) and not written, or only so many bytes of it: write it, or count
        it as dropped."""
        error = failure if isinstance(failure, OSError) else try_again()
        try:
            if self._take_back(len(payload) + OVERHEAD, place) and self.segment and isinstance(failure, int):
                self.segment.write(encode(kind, place[0], payload, place[1]), failure, self._files)
                return True
        except OSError as again:
            error = again
        return self._insist(partial(self._add, kind, payload), error) or self.drop(kind, self._trouble)

    def _take_back(self, size: int, place: tuple[int, int]) -> bool:
        """Uncount a frame that is still the last one of the open segment. Raises OSError."""
        segment = self.segment
        if segment is None or segment.salt != place[1]:
            return False
        if segment.sequence == place[0] + 1:
            segment.take_back(size)
            return True
        # A signal handler has logged since. The number stays unused, which a reader counts as one frame lost.
        segment.measure()
        return False

    def drop(self, kind: int, reason: str, count: int = 1) -> bool:
        self._gap.add(kind, reason, count, now_ms())
        self.dropped += count
        return False

    def act(self) -> None:
        """The segment is full, or every call is to be durable."""
        if self._settings.fsync is Fsync.ALWAYS:
            self._make_durable()
        if self.segment is not None and self.segment.position >= self._rotate_at and not self._is_left_to_others():
            self._try_rotate()

    def _is_left_to_others(self) -> bool:
        """Whether the caretaker will rotate. The thread that logs does so itself where there is none, or it is too slow."""
        if self.segment is None or self.segment.position >= self._overrun_at or not self._sync_soon():
            return False
        self._act_from(self._overrun_at)
        return True

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
        if self.state is State.CLOSED:
            self._trouble = "logged after the end of the log"
            return False
        if self.state is State.FORKED:
            return self._open_own()
        if self.state is State.SUSPENDED:
            return time.monotonic() >= self._retry_at and self._resume()
        if error.errno == errno.EAGAIN:
            return True
        if error.errno == errno.EBADF and self.segment and self.segment.answers:
            return True  # it met the closed door of a suspended log that a signal handler has resumed since
        if error.errno == errno.EBADF:
            self._forget_descriptors()
        if error.errno in _FILE_ERRORS and self._try_rotate():
            return True
        self._suspend(error)
        return False

    def _forget_descriptors(self) -> None:
        """Somebody closed them (a program that becomes a daemon): never close a number that may be another file's by now."""
        assert self.segment is not None
        self.segment.forget_descriptor()
        self._home.lock_again()

    def _add(self, kind: int, payload: bytes) -> None:
        """Write a frame, after the gap before it was stated. Raises OSError."""
        self._settle()
        assert self.segment is not None
        self.segment.add(kind, payload, self._files)

    def _settle(self) -> None:
        """State in the log what was dropped since the last time. Raises OSError."""
        segment = self.segment
        if not self._gap or segment is None:
            return
        gap, before = self._gap.take(), segment.sequence
        try:
            if gap is not None:
                segment.add(Kind.DROPPED, pack(gap), self._files)
        except BaseException:  # also where a signal handler raises, but not where it does so after the write
            if segment.sequence == before:
                self._gap.put_back(gap)
            raise

    # -- what the caretaker does -----------------------------------------------------------------------------

    def tend(self, now: float) -> tuple[Segment | None, int, int]:
        """Resume, mend, state a gap, give a sign of life, rotate; ``now``: seconds of ``time.monotonic()``.

        Returns what is to be synced then: the open segment with its length in bytes and in frames.
        """
        self._tend(now)
        segment = self.segment
        return (segment, segment.position, segment.sequence) if segment else (None, 0, 0)

    def _tend(self, now: float) -> None:
        if self.state is State.SUSPENDED and now >= self._retry_at:
            self._resume()
        self.mend()
        segment = self.segment
        if self.state is not State.OPEN or segment is None:
            return
        try:
            self._settle()
            self._speak(segment, now)
        except OSError as error:
            self._ready(error)
        else:
            old = now - segment.begun_at >= self._settings.segment_age_s and segment.sequence > 1
            if old or segment.position >= self._rotate_at:
                self._try_rotate()

    def _speak(self, segment: Segment, now: float) -> None:
        """A sign of life, where nothing else was one for a while. Raises OSError."""
        if segment.position != self._spoke_position:
            self._spoke_position, self._spoke_at = segment.position, now
        elif now - self._spoke_at >= self._settings.heartbeat_s:
            segment.add(Kind.HEARTBEAT, pack(Heartbeat(now_ms())), self._files)

    # -- opening, suspending, rotating -----------------------------------------------------------------------

    def open(self) -> bool:
        """Make the directory and enter it; or be suspended."""
        try:
            try:
                self._enter()
            except (FileExistsError, BlockingIOError):  # somebody else's, or what a failed attempt could not take back
                self._opening = replace(self._opening, writer_id=self._new_name())
                self._enter()
        except OSError as error:
            self._suspend(error)
            return False
        return True

    def _enter(self) -> None:
        """Take the directory, begin the first segment, lay the ballast. Raises OSError."""
        self._home.enter(self.directory)
        began, heartbeat_s = begins_at(self._run_directory, self._opening), self._settings.heartbeat_s
        self._opening = introduced(self._opening, opened=began, locked=self._home.locked, heartbeat_s=heartbeat_s)
        self._begin(0)
        if not self._closing:
            self._home.lay_ballast()

    def _new_name(self) -> str:
        return writer_name(now_ms(), self._opening.rank, os.urandom(8).hex())

    def _open_own(self) -> bool:
        """In a forked child: a log of its own in the same run, whose end is not the run's."""
        self._opening = replace(self._opening, writer_id=self._new_name(), role="helper")
        self.state = State.SUSPENDED
        return self.open()

    def _begin(self, base: int) -> None:
        """Begin a segment and retire the one before. Raises OSError, and then nothing has changed."""
        segment = segments.begin(self.directory, base, self._opening, time.monotonic(), self._files)
        if self.segment is not None:
            self.durability.retire(self.segment)
        self.segment, self.state = segment, State.OPEN
        self._set_limit(min(self._settings.segment_bytes, _LAST_BYTE))
        if self._settings.fsync is not Fsync.NEVER:
            self._sync_soon()

    def _set_limit(self, rotate_at: int) -> None:
        self._rotate_at = rotate_at
        self._overrun_at = max(rotate_at, min(2 * rotate_at, _LAST_BYTE))
        self._act_from(rotate_at)

    def _act_from(self, byte: int) -> None:
        self.act_at = 0 if self._settings.fsync is Fsync.ALWAYS else byte

    def _rotate(self) -> None:
        """Go on in a new segment. The old one's SEGMENT_END comes after, so that a full disk cannot leave neither.

        Raises OSError, and then nothing has changed.
        """
        old = self.segment
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
            assert self.segment is not None
            self._set_limit(self.segment.position + limits.MAX_PAYLOAD_BYTES)
            if self._rotate_at > _LAST_BYTE or self.segment.broken:
                self._suspend(error)
            return False
        return True

    def _suspend(self, error: OSError) -> None:
        """Nothing can be written for now: try again in a while."""
        self.state, self._trouble = State.SUSPENDED, error.strerror or str(error)
        self._retry_at = time.monotonic() + self._settings.retry_s
        reached = (-1, 0) if self.segment is None else (self.segment.base, self.segment.sequence)
        if reached != self._trouble_at:  # something got through since the last time, so this is new trouble
            self._trouble_at = reached
            self._tell(f"{self._trouble} ({self.directory}): logging is suspended, what is logged meanwhile is counted")

    def _tell(self, sentence: str) -> None:
        if self._on_trouble is not None:
            with contextlib.suppress(Exception):
                self._on_trouble(sentence)

    def _resume(self) -> bool:
        if self.segment is None:
            return self.open()
        if self.segment.broken or self.segment.position >= _LAST_BYTE:
            return self._try_rotate()
        self.state = State.OPEN
        return True

    # -- durability ------------------------------------------------------------------------------------------

    def _make_durable(self) -> None:
        for _ in range(3):
            segment = self.segment
            if segment is None:
                return
            self.durability.sync(segment, segment.position, segment.sequence)
            if not self.durability.failed:
                return
            self.mend()

    def mend(self) -> None:
        """Write again what failed syncs may have lost; what does not succeed is left for the next time."""
        try:
            while self.durability.failed and self.state is State.OPEN:
                segment, error = self.durability.failed[0]
                if segment is self.segment:
                    self._rotate()
                self._write_again(segment, error)
                self.durability.failed.pop(0)
        except OSError as again:
            self._suspend(again)

    def _write_again(self, segment: Segment, error: OSError) -> None:
        entries, lost = segment.unsynced()
        if lost:
            self.drop(0, f"fdatasync: {error.strerror}; records could not be read back", lost)
        for entry in entries:
            assert self.segment is not None
            self.segment.add(entry.kind, entry.payload, self._files)
            segment.synced = (entry.after.byte, entry.after.sequence)
            if self.segment.position >= self._rotate_at:
                self._rotate()

    # -- ending ----------------------------------------------------------------------------------------------

    def say(self, words: Sequence[tuple[Kind, bytes]]) -> int:
        """The last words, with the ballast's room if there is none other. Returns how many were written."""
        self._closing = True
        self._home.lift_ballast()
        said = 0
        for kind, payload in words:
            if self._insist_now(partial(self._add, kind, payload)):
                said += 1
            else:
                self.drop(kind, self._trouble)
        self._insist_now(self._settle)
        self._make_durable()
        if self.segment is not None:
            self.segment.end(None, self._files)
            self.durability.sync(self.segment, self.segment.position, self.segment.sequence)
        return said

    def _insist_now(self, write: Callable[[], None]) -> bool:
        """The last chance: whatever the time of the next attempt, and more than once."""
        for _ in range(3):
            self._retry_at = 0.0
            if self._insist(write, try_again()):
                return True
        return False

    def close(self) -> None:
        """Give every descriptor and the lock back."""
        self.durability.close(self.segment)
        self.segment = None
        self._home.leave()
        self.state = State.CLOSED
