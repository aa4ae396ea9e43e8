"""What was printed -> lines -> parts. Pure: bytes and seconds in, bytes out. Owns how a console looks in a file.

A progress bar writes ``\\r`` and its line anew: of such a line its last state stays. Lines of two streams are never mixed.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Lines", "Part", "Parts"]

#: Bytes of a part, after which it is closed.
#: Beyond: a new part begins; the closed one is not sent again.
#: Test: tests/unit/sdk/test_console_text.py::test_a_full_part_is_closed_and_is_not_sent_again
MAX_PART_BYTES = 1 << 20

#: How often one part is sent.
#: Beyond: it is closed, so that no byte is uploaded more often than this, and a new part begins.
#: Test: tests/unit/sdk/test_console_text.py::test_no_part_is_sent_more_often_than_sixteen_times
MAX_SENDINGS = 16

#: Bytes of a line without an end.
#: Beyond: it is cut in two.
#: Test: tests/unit/sdk/test_console_text.py::test_a_line_without_an_end_takes_no_memory_without_end
MAX_LINE_BYTES = 1 << 16

#: Bytes that wait for a disk that does not answer.
#: Beyond: what is printed meanwhile is shown and not kept; a line of the artifact says how much.
#: Test: tests/unit/sdk/test_console_text.py::test_while_the_disk_does_not_answer_text_is_lost_and_counted
MAX_WAITING_BYTES = 8 << 20

#: Seconds until a part that has grown is sent again: at first, and at most; each time twice as long.
_SOON_S, _LATE_S = 2.0, 60.0


class Lines:
    """The lines of one stream."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._returned = False

    def feed(self, data: bytes) -> bytes:
        """The lines that are complete with this."""
        out = bytearray()
        for piece in data.splitlines(keepends=True):  # of bytes: at \n and \r alone
            self._feed(piece, out)
        return bytes(out)

    def _feed(self, piece: bytes, out: bytearray) -> None:
        text = piece.rstrip(b"\r\n")
        if text:
            if self._returned:
                self._line.clear()
            self._returned = False
            self._line += text
        if piece.endswith(b"\n"):
            out += self._line + b"\n"
            self._line.clear()
            self._returned = False
        elif piece.endswith(b"\r"):
            self._returned = True
        elif len(self._line) > MAX_LINE_BYTES:
            out += self._line + b"\n"
            self._line.clear()

    @property
    def open(self) -> bytes:
        """The line that has no end yet, as if it had one."""
        return bytes(self._line) + b"\n" if self._line else b""


@dataclass(frozen=True, slots=True)
class Part:
    """A part to be sent: its number, from 1, and all of its bytes."""

    number: int
    content: bytes


class Parts:
    """The console of one process, in parts. ``limit``: bytes that are kept in all."""

    def __init__(self, limit: int, now: float) -> None:
        self._limit = limit
        self._kept = self._beyond = self._lost = 0
        self._number, self._sent, self._sent_bytes = 1, 0, b""
        self._content = bytearray()
        self._closed: list[Part] = []
        self._waiting = 0
        self._interval, self._due_at = _SOON_S, now + _SOON_S
        self._ended = False

    def add(self, lines: bytes) -> bool:
        """Whole lines. True: a part is full, and due."""
        if self._beyond or self._kept + len(lines) > self._limit:
            self._beyond += len(lines)
        elif self._waiting + len(self._content) + len(lines) > MAX_WAITING_BYTES:
            self._lost += len(lines)
        else:
            if self._lost:
                self._content += _said(f"{self._lost} bytes are missing here: the disk did not take them in time")
                self._lost = 0
            self._kept += len(lines)
            self._content += lines
            if len(self._content) >= MAX_PART_BYTES:
                self._close()
                return True
        return False

    def _close(self) -> None:
        self._closed.append(Part(self._number, bytes(self._content)))
        self._waiting += len(self._content)
        self._number, self._sent, self._sent_bytes = self._number + 1, 0, b""
        self._content.clear()

    def due(self, now: float, tail: bytes = b"") -> list[Part]:
        """What is to be sent now: parts that are full, and the last one if it has grown and its time has come.

        ``tail``: lines that are not complete, to be shown behind the others."""
        out, self._closed, self._waiting = self._closed, [], 0
        if now >= self._due_at or self._ended:
            is_last = self._sent + 1 >= MAX_SENDINGS
            content = bytes(self._content) + (b"" if is_last else tail) + self._last_words()
            if content and content != self._sent_bytes:
                self._sent, self._sent_bytes = self._sent + 1, content
                out.append(Part(self._number, content))
                self._interval = min(2 * self._interval, _LATE_S)
                if is_last and not self._beyond:
                    self._number, self._sent, self._sent_bytes = self._number + 1, 0, b""
                    self._content.clear()
            self._due_at = now + self._interval
        return out

    def end(self, tail: bytes) -> None:
        """Nothing more comes: the next ``due`` is the last."""
        self.add(tail)
        self._ended = True

    def _last_words(self) -> bytes:
        if self._beyond:
            more = f"{self._beyond} bytes came after it" if self._ended else "what comes after it is not kept"
            return _said(f"the capture ended here, at its limit of {self._limit} bytes; {more}")
        return _said(f"{self._lost} bytes are missing here: the disk did not take them in time") if self._lost else b""


def _said(text: str) -> bytes:
    return f"mlferry: {text}\n".encode()
