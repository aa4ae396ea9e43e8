"""Lines out of what is printed, and of a progress bar its last state. Pure.

A bar writes its states over each other: a carriage return, and the line anew. Of such a line what stands behind the last
return is kept, as a terminal would show it (but for the rest of a longer state, which a terminal shows behind a shorter
one).
"""

from __future__ import annotations

__all__ = ["Lines"]

#: Bytes of a line that has not ended.
#: Beyond: they are kept as they are, as if the line had ended there.
#: Test: tests/unit/sdk/test_console_lines.py::test_a_line_without_end_is_cut_into_pieces
_MAX_LINE_BYTES = 65_536


class Lines:
    """The lines of several streams. A line is kept when it has ended, so that streams do not mix within one."""

    def __init__(self) -> None:
        self._begun: dict[str, bytes] = {}

    def feed(self, stream: str, data: bytes) -> bytes:
        """Take what was printed; the lines that ended with it are returned."""
        *ended, begun = (self._begun.get(stream, b"") + data).split(b"\n")
        begun = _shown(begun)
        lines = b"".join(_shown(line).removesuffix(b"\r") + b"\n" for line in ended)
        if len(begun) > _MAX_LINE_BYTES:
            lines, begun = lines + begun + b"\n", b""
        self._begun[stream] = begun
        return lines

    @property
    def begun(self) -> bytes:
        """What stands there of lines that have not ended."""
        return b"".join(line.removesuffix(b"\r") + b"\n" for line in self._begun.values() if line.strip())


def _shown(line: bytes) -> bytes:
    """What is left of a line when it was written over. A return at its end writes over nothing yet."""
    end = b"\r" if line.endswith(b"\r") else b""
    return line.removesuffix(b"\r").rpartition(b"\r")[2] + end
