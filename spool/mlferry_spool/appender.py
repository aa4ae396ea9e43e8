"""The hot path: one record becomes one frame, in one ``os.write``.

Theory of operation
-------------------
``append`` is pack, two checksums, one write, under one lock. It has no branch for rare conditions: in every state in
which nothing can be written (closed, disk full, forked) ``_fd`` is -1, so that the write itself raises EBADF, and then
``_recover`` looks at why. ``append_point`` and ``append_points`` are what a training loop calls: they take plain numbers
under names that were met before, say None to everything else, and their caller looks closer.

*A call that returned is kept.* When ``os.write`` has returned, the bytes are the kernel's and survive any death of the
process. Power cuts are the caretaker's business (``fdatasync`` once an interval), or the caller's with ``Fsync.ALWAYS``.

*Twice.* What is here is also in ``_appender.c``, which costs a third of it: less than packing the record with msgpack and
writing it, bare. That is used where it was built; ``MLFERRY_PURE_PYTHON=1`` keeps it out. It hands to the methods here
whatever is rare. Both write the same frames, and tests compare them.

*Signals.* A Python signal handler runs between two bytecodes of the main thread, perhaps inside ``append``, and may log or
raise. The lock is reentrant, and the counters are taken in the same breath as the write: between the check of the sequence
number and the write lies no call, so no handler can run there, and a frame that a nested append made stale is built again.
That also keeps the counters right when a handler raises (Ctrl-C).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any
from zlib import crc32

from mlferry_spool.errors import SpoolError, Unencodable
from mlferry_spool.frames import BEYOND_LENGTH, EXT32, HEAD, HEADER, OVERHEAD
from mlferry_spool.records import Kind
from mlferry_spool.shape import SURELY_SMALL_BYTES
from mlferry_spool.templates import START, STEP, Template

__all__ = ["IS_COMPILED", "Appender", "PythonAppender"]

_pack_header = HEADER.pack
_pack_head = HEAD.pack
_OVERHEAD = OVERHEAD
_BEYOND_LENGTH = BEYOND_LENGTH
_METRICS = int(Kind.METRICS)  # a plain int packs faster than an enum's member
_LARGEST = 2**63 - 1
_time_ns = time.time_ns


class PythonAppender:
    """Appends records to the open segment of a ``Writer``, which gives it the descriptor, the salt and the lock."""

    _fd: int
    _salt: int
    _sequence: int  #: of the next frame
    _position: int  #: bytes in the segment
    _act_at: int  #: bytes from which on ``_act`` is called after a record
    _acquire: Callable[[], object]
    _release: Callable[[], None]
    _pack: Callable[[Any], bytes]
    _write: Callable[[int, bytes], int]

    def append(self, kind: int, fields: object) -> bool:
        """Write one record, given as what msgpack packs for it, or as its payload. True: it is kept. False: it was counted.

        Raises:
            Unencodable: msgpack or UTF-8 cannot hold a value. Nothing was written or counted.
            RecordTooLarge: more than ``limits.MAX_PAYLOAD_BYTES``, or than a reader takes. Nothing was written or counted.
        """
        acquire, release = (
            self._acquire,
            self._release,
        )  # as locals: CPython looks longer for attributes that are called
        pack, write = self._pack, self._write
        try:  # what ``with`` does, in half the time; inside, since a signal handler can raise when ``acquire`` returns
            acquire()
            try:
                payload = fields if type(fields) is bytes else pack(fields)
            except (TypeError, ValueError, OverflowError) as error:
                raise Unencodable(str(error)) from None
            size = len(payload)
            if size > SURELY_SMALL_BYTES:
                self._look_at(payload)
            while True:
                sequence = self._sequence
                salt = self._salt
                header = _pack_header(EXT32, size + _BEYOND_LENGTH, kind, sequence)
                check = crc32(header, salt)
                frame = _pack_head(header, check, crc32(payload, check)) + payload
                if sequence == self._sequence and salt == self._salt:
                    break
            size += _OVERHEAD
            # No call from here to the write: see "Signals".
            self._sequence = sequence + 1
            position = self._position = self._position + size
            try:
                written = write(self._fd, frame)
            except OSError as error:
                return self._recover(kind, payload, (sequence, salt), error)
            if written != size:
                return self._recover(kind, payload, (sequence, salt), written)
            return True if position < self._act_at else self._act()
        finally:
            try:  # noqa: SIM105 - which would cost every call
                release()
            except RuntimeError:  # a signal handler raised while another thread had the lock
                pass

    def append_point(
        self, templates: Mapping[str, Template], types: AbstractSet[type], key: str, value: Any, step: int | None
    ) -> bool | None:
        """Write one point of a metric, of now. Returns as ``append``, or None: not all is plain, and nothing was written.

        Args:
            templates: those of the names that are known.
            types: those of numbers that ``float`` may be asked of.
        """
        if type(value) in types and (type(step) is int or step is None):
            try:
                pack, name = templates[key]
                payload = pack(START, _time_ns() // 1_000_000, STEP, step or 0, name, value)
            except Exception:  # a name not met before, a step that does not fit
                return None
            return self._append(_METRICS, payload)
        return None

    def append_points(
        self,
        templates: Mapping[str, Template],
        types: AbstractSet[type],
        metrics: Mapping[str, Any],
        step: int | None,
    ) -> bool | None:
        """Write points of several metrics at one step, of now. As ``append_point``, but for ``types``: those of numbers that
        msgpack takes, and whose sum tells that there was none of another type among them."""
        try:
            if (type(step) is not int and step is not None) or not templates.keys() >= metrics.keys():
                return None
            values = metrics.values()
            # Plain numbers have one for their sum: one call instead of a look at each. Only where the first is one: what
            # else could be summed may be tensors on a GPU.
            if type(next(iter(values), None)) not in types or type(sum(values)) not in types:
                return None
            if (step := step or 0) > _LARGEST:
                return None
        except Exception:  # not all numbers, or no mapping at all, unless this is asked for, or a signal handler's
            return None
        try:
            return self._append(_METRICS, (_time_ns() // 1_000_000, step, metrics))
        except SpoolError:  # a step below int64, a number that msgpack does not know
            return None

    _append, _append_point, _append_points = append, append_point, append_points  #: whatever a subclass makes of them

    def _look_at(self, payload: bytes) -> None:
        """Raises RecordTooLarge."""
        raise NotImplementedError

    def _act(self) -> bool:
        """Something slower is due. True, as the record is kept."""
        raise NotImplementedError

    def _recover(self, kind: int, payload: bytes, place: tuple[int, int], failure: OSError | int) -> bool:
        """A write failed, or was short (its length). Returns as ``append``."""
        raise NotImplementedError


if TYPE_CHECKING:
    IS_COMPILED: bool
    Appender = PythonAppender
else:
    try:
        if os.environ.get("MLFERRY_PURE_PYTHON", "").lower() in ("true", "1"):
            raise ImportError("MLFERRY_PURE_PYTHON is set")
        from mlferry_spool import _appender

        class Appender(_appender.Appender, PythonAppender):
            """The one in C, with what is here for what is rare."""

    except ImportError:
        Appender = PythonAppender
    IS_COMPILED = Appender is not PythonAppender
