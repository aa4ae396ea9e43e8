"""How many requests at once serve best, learnt by trying. Pure: fed with what came back when, never looks at a clock.

Why it has to be learnt. A server on SQLite writes one batch at a time, in one process: with four on their way it does no
more than with one, and its threads get in each other's way (about 15 % fewer points a second, and single requests that wait
for seconds for the database's lock). A server of several processes on PostgreSQL takes up to twice as much by two at once as
by one. No answer tells the agent which it talks to, or how busy others keep it, so it tries.

How. It begins with one at a time, which is the best for an MLflow as it comes, and tries two soon. Requests are counted by
windows in which the present number was used to the full. After a window, the next one is of half as many requests at once,
or of twice as many, in turn. Fewer are kept where they serve nearly as well, more only where they serve clearly better: what
gains nothing is left to others. A trial that gains nothing is repeated later and later. In quiet times nothing is learnt,
and nothing depends on it.

The work of a request is its bytes and a fixed part, since that is what it costs a server: some 10 ms a request and 0.1 ms
a point.
"""

from __future__ import annotations

__all__ = ["Pace", "work_of"]

#: Bytes of body that cost a server as much as a request without any.
_FIXED = 8_192

#: A window is this long (seconds) and holds so many answers for each request at once.
_WINDOW_S, _WINDOW_ANSWERS = 1.5, 5

#: What part of the allowed number must have been on its way, on average, for a window to tell anything.
_FULL = 0.7

#: How much more work a second justifies twice as many requests at once.
_WORTH = 1.08

#: Windows between two trials: first, and at most.
_PAUSE, _LONGEST_PAUSE = 4, 64


def work_of(body: bytes | None) -> int:
    """What a request costs a server, in bytes."""
    return _FIXED + len(body or b"")


class Pace:
    """``limit``: requests at once now, between 1 and ``most``; ``begin`` at first."""

    def __init__(self, most: int, begin: int = 1) -> None:
        self.limit, self._most = begin, most
        self._pause, self._rest = _PAUSE, 0
        self._up = True
        # While another limit is tried: the one before, and its work a second.
        self._usual: tuple[int, float] | None = None
        self._begin: float | None = None
        self._work = self._busy_s = 0.0
        self._answers = 0

    def __repr__(self) -> str:
        return f"Pace(limit={self.limit}, most={self._most})"

    def note(self, work: int, began: float, ended: float) -> None:
        """A good answer came; both moments in seconds of one monotonic clock."""
        if self._begin is None:
            self._begin = ended  # what went before it was begun under another limit
            return
        self._work += work
        self._busy_s += ended - max(began, self._begin)
        self._answers += 1
        taken = ended - self._begin
        if taken < _WINDOW_S or self._answers < _WINDOW_ANSWERS * self.limit:
            return
        rate, is_full = self._work / taken, self._busy_s / taken >= _FULL * self.limit
        self.forget()
        if is_full:
            self._learn(rate)
        elif self._usual is not None:
            self._settle(self._usual[0])  # the trial told nothing

    def forget(self) -> None:
        """What was counted in this window tells nothing: the server is unwell, say."""
        self._begin, self._work, self._busy_s, self._answers = None, 0.0, 0.0, 0

    def _learn(self, rate: float) -> None:
        if self._usual is None:
            self._rest -= 1
            if self._rest < 0:
                self._try(rate)
            return
        limit, before = self._usual
        if rate > before * _WORTH if self.limit > limit else rate * _WORTH > before:
            self._pause = _PAUSE
            self._usual = None
            self._try(rate)  # go on in the same direction
        else:
            self._settle(limit)

    def _try(self, rate: float) -> None:
        other = min(self.limit * 2, self._most) if self._up else max(self.limit // 2, 1)
        if other == self.limit:
            self._up, self._rest = not self._up, self._pause
            return
        self._usual, self.limit = (self.limit, rate), other

    def _settle(self, limit: int) -> None:
        """Stay at a limit, and try the other direction after a while."""
        self.limit, self._usual, self._up = limit, None, not self._up
        self._rest = self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
