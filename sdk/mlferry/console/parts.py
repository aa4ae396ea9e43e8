"""Which files the output of a process is kept in, and when they are due. Pure.

MLflow takes files as wholes: one that grows is sent again from its beginning. So the output is cut into parts. A part
that is full or old is stored once more and never again; the one that grows is stored after a pause that doubles each
time, so that a part is sent a few times and the last line of a program that prints now and then is still seen soon.

All that a process prints may be too much. Then the first parts are kept, and of what follows the last lines: the reason why
it ended stands there.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["File", "Parts"]

#: Bytes of one part.
#: Beyond: the part is closed and another one begins.
#: Test: tests/unit/sdk/test_console_parts.py::test_a_part_that_is_full_is_stored_and_another_one_begins
_PART_BYTES = 1 << 20

#: Seconds after which a part is closed although it is not full.
#: Beyond: another one begins with what comes next.
#: Test: tests/unit/sdk/test_console_parts.py::test_an_old_part_is_closed_although_it_is_not_full
_PART_S = 3600.0

#: Seconds after a part was stored until it is stored again, at first and at most.
#: Beyond: what was printed is seen on the server that much later.
#: Test: tests/unit/sdk/test_console_parts.py::test_the_pause_until_a_growing_part_is_stored_again_doubles
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 2.0, 600.0

#: Bytes that are kept of one process.
#: Beyond: of what follows the last `_PART_BYTES` are kept, in a file that says so.
#: Test: tests/unit/sdk/test_console_parts.py::test_of_too_much_the_beginning_and_the_end_are_kept
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class File:
    """Something to store: the name of a part, and all of it."""

    name: str
    content: bytes


class Parts:
    """The parts of one process. Times are seconds of any clock that does not go back."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._left = max_bytes
        self._number = 0
        self._skipped = 0
        self._is_end = False
        self._begin()

    def _begin(self) -> None:
        self._number += 1
        self._content = bytearray()
        self._began = 0.0
        self._next, self._pause = 0.0, _FIRST_PAUSE_S
        self._stored = b""

    def add(self, lines: bytes, now: float) -> list[File]:
        """Take lines; the parts that are full are returned."""
        full = []
        while lines and not self._is_end:
            taken = _whole_lines(lines, min(_PART_BYTES - len(self._content), self._left))
            self._take(lines[:taken], now)
            self._left -= taken
            lines = lines[taken:]
            if lines:
                full += self._close()
                self._is_end = not _whole_lines(lines, self._left)
        self._take(lines, now)
        self._forget()
        return full

    def _take(self, lines: bytes, now: float) -> None:
        if lines and not self._content:
            self._began = now
        self._content += lines

    def _forget(self) -> None:
        """Of what is too much the end stays."""
        beyond = len(self._content) - _PART_BYTES
        if beyond > 0:
            end = self._content.find(b"\n", beyond) + 1
            self._skipped += end
            del self._content[:end]

    def look(self, now: float, begun: bytes = b"") -> list[File]:
        """What is to be stored now. ``begun``: of lines that have not ended, which may become others yet."""
        if self._content and not self._is_end and now - self._began >= _PART_S:
            return self._close()
        if now < self._next:
            return []
        files = self._file(begun)
        if files:
            self._next, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_PAUSE_S)
        return files

    def end(self, begun: bytes = b"") -> list[File]:
        """What is still to be stored when nothing more comes."""
        return self._file(begun)

    def _close(self) -> list[File]:
        files = self._file(b"")
        self._begin()
        return files

    def _file(self, begun: bytes) -> list[File]:
        """The part that grows, if it is another than was stored."""
        content = bytes(self._content) + begun
        if content == self._stored:
            return []
        self._stored = content
        if not self._is_end:
            return [File(f"{self._number:04d}.log", content)]
        note = f"[mlferry: {self._skipped:,} bytes before this were not kept]\n" if self._skipped else ""
        return [File("end.log", note.encode() + content)]


def _whole_lines(lines: bytes, room: int) -> int:
    """How many bytes of them fit, as whole lines. (No line is as long as a part: see ``lines``.)"""
    return len(lines) if len(lines) <= room else lines.rfind(b"\n", 0, room) + 1
