"""How many requests at once, and how soon the next: what keeps a fleet of agents from drowning the server they share.

Owns two decisions, each shared by all runs of an agent. Pure arithmetic over times and a random generator that are handed
in: never sleeps, never sends.

A server of MLflow does not say that it is full. It keeps requests waiting, for minutes if need be, until clients give them
up, and then does the work all the same, for nobody. So an agent must notice by itself, from how long its answers take, and
no agent knows of the others. What comes out fair between senders who do not know of each other is TCP's rule: a little
more while all is well, less by a share when it is not. Here it is applied to the number of requests on their way at once
(``Window``); and since a thousand agents with a single request each may be too many already, a window goes below one: a
tenth of a request on its way is a pause of nine times its duration after each (as in Swift, Kumar et al., SIGCOMM 2020,
and as there, the smaller a window, the more delay it bears, which is what brings all to the same size).

What is too long is judged against what the server takes when it is not busy (``Norms``): a slow line or a slow database is
no crowd, and must not be taken for one.

A server that takes nothing at all is asked by one request at a time, ever more rarely, and no two agents wait the same
(``Breaker``). When it is back each agent begins with a small window and opens it by what it sees.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable
from dataclasses import dataclass, field

from mlferry_agent.retry import Backoff

__all__ = ["HUNG_S", "Breaker", "Norms", "Window"]

#: Seconds that an answer may take: so many times what it takes when the server is not busy, not less than the second number
#: nor more than the third. MLflow's own server is the reason for so little: it has 15 connections to its database, a batch
#: needs two, and where more than 15 requests hold one each, all wait for 30 s for the second.
#: Beyond: the window is closed by a share.
#: Test: tests/unit/agent/test_pacing.py::test_an_answer_may_take_three_times_what_is_usual_within_bounds
_CROWD, _LEAST_LATE_S, _MOST_CROWD_S = 3.0, 0.1, 0.8

#: A server or a line that is slow by itself is no crowd: an answer may take so many times what is usual, up to the second
#: number: who comes late to a crowd takes that for usual.
#: Beyond: as above. The smallest window bears 2.8 times as much, far below what requests are given up after.
#: Test: tests/unit/agent/test_pacing.py::test_a_slow_server_is_no_crowd_up_to_four_seconds
_SLOW, _MOST_SLOW_S = 1.5, 4.0

#: The smaller a window, the more delay it bears: by this power of its size. Above one, most of the delay is its own doing:
#: up to so many seconds, by the root of its size.
#: Beyond: as above.
#: Test: tests/unit/agent/test_pacing.py::test_what_a_window_does_to_itself_is_no_crowd
_BORNE, _MOST_ALONE_S = 0.25, 1.0

#: Seconds for which the shortest answer is remembered, at least.
_NORM_S = 600.0

#: A window at the beginning: agents that begin together do not know of each other. A command that somebody waits for does
#: not begin with hundreds of others, and not below one.
_START = 0.125

#: What a window below one, and above, gains with an answer that comes at once; what is kept of it, at least, when one is
#: late, and when a request is refused. How late says how many are too many: a server that fifty agents ask at once may
#: need half a minute for what it does in a tenth of a second else; a window that kept most of itself stayed too large for
#: minutes.
_GAIN, _GAIN_ABOVE_ONE = 0.05, 0.5
_KEPT_WHEN_LATE, _KEPT_WHEN_REFUSED = 0.25, 0.5

#: The smallest window, the smallest that refusals alone make (a server that is back and not busy is soon asked as before),
#: and the longest pause (seconds) between two requests.
#: Beyond: neither gets any smaller or longer; a fleet that is too large even so is held back by the server's refusals.
#: Test: tests/unit/agent/test_pacing.py::test_a_window_has_bounds_whatever_happens
_LEAST_WINDOW, _LEAST_WHEN_REFUSED, _MOST_PAUSE_S = 0.015625, 0.125, 60.0

#: How many failures are remembered beyond the answer that ends them, and what each answer takes off: a server that refuses
#: most requests is full, and must not be asked as if nothing had been.
#: Beyond: a wait that long is the longest anyway.
#: Test: tests/unit/agent/test_pacing.py::test_a_server_that_answers_now_and_then_is_asked_more_rarely_than_one_that_answers
_MOST_REMEMBERED, _FORGIVEN = 8, 1.0

#: Seconds after which a request that failed had been left hanging.
HUNG_S = 10.0


@dataclass(slots=True)
class Window:
    """Requests of one kind that may be on their way at once, at most ``most``. Below one: one, and a pause after it."""

    most: int
    rng: random.Random
    size: float = _START
    _closed_at: float = field(default=-math.inf, init=False)
    _next_at: float = field(default=-math.inf, init=False)

    @property
    def whole(self) -> int:
        """Requests at once."""
        return max(1, math.floor(self.size))

    def pause_s(self, now: float) -> float:
        """Seconds until the next one may go."""
        return max(0.0, self._next_at - now)

    def limit_s(self, usual_s: float) -> float:
        """Seconds within which an answer is in good time, given what it takes when the server is not busy."""
        crowd = min(max(_CROWD * usual_s, _LEAST_LATE_S), _MOST_CROWD_S)
        slow = min(_SLOW * usual_s, _MOST_SLOW_S)
        if self.size > 1:
            return max(min(crowd * self.size, _MOST_ALONE_S / math.sqrt(self.size)), slow)
        return max(crowd, slow) / math.pow(self.size, _BORNE)

    def answered(self, began: float, took_s: float, usual_s: float, now: float, used: float = math.inf) -> None:
        """An answer came, to a request that began then. The nearer it is to being late, the less it opens the window.

        Args:
            used: requests at once that other rules allow. A window that is much larger tells nothing of the server (as of
                TCP's, RFC 7661), and is in the way when it has to be closed.
        """
        limit = self.limit_s(usual_s)
        if took_s <= limit:
            gain = _GAIN if self.size < 1 else _GAIN_ABOVE_ONE / self.size
            self.size = min(float(self.most), used + 1, self.size + gain * (1 - took_s / limit))
        else:
            self._close(max(_KEPT_WHEN_LATE, limit / took_s), _LEAST_WINDOW, began, now)
        if self.size < 1:  # a delay beyond the limit says how many are too many, not how long a request takes
            pause = min(took_s, limit) * (1 / self.size - 1) * self.rng.uniform(0.5, 1.5)
            self._next_at = now + min(pause, _MOST_PAUSE_S)

    def refused(self, began: float, now: float) -> None:
        """No answer came, or one that the server is full."""
        self._close(_KEPT_WHEN_REFUSED, _LEAST_WHEN_REFUSED, began, now)

    def _close(self, kept: float, least: float, began: float, now: float) -> None:
        """Once for all that went wrong together: what began before it was last closed says nothing new."""
        if began >= self._closed_at:
            self.size = min(self.size, max(least, self.size * kept))
            self._closed_at = now


class Norms:
    """How long answers take when the server is not busy: of requests of one kind and about one size, the shortest of the
    last ten to twenty minutes."""

    def __init__(self) -> None:
        self._recent: dict[Hashable, float] = {}
        self._before: dict[Hashable, float] = {}
        self._since = -math.inf

    def usual_s(self, kind: Hashable, took_s: float, now: float) -> float:
        """What answers of this kind take, this one included, which counts for those that come after."""
        if now - self._since >= _NORM_S:
            self._before, self._recent, self._since = self._recent, {}, now
        recent = self._recent[kind] = min(self._recent.get(kind, math.inf), took_s)
        return min(recent, self._before.get(kind, math.inf))


@dataclass(slots=True)
class Breaker:
    """Open while the server takes nothing: then one request at a time tries it, when ``wait_s`` is over.

    ``is_tried``: one does so now. ``hangs``: the last one that failed was left hanging.
    """

    backoff: Backoff
    rng: random.Random
    is_open: bool = False
    is_tried: bool = False
    hangs: bool = False
    _level: float = field(default=0.0, init=False)
    _failed_at: float = field(default=-math.inf, init=False)
    _ready_at: float = field(default=-math.inf, init=False)
    _asked_until: float = field(default=-math.inf, init=False)

    def wait_s(self, now: float) -> float:
        """Seconds until a request may go; infinity: when the one that tries it has ended."""
        if self.is_open and self.is_tried:
            return math.inf
        return max(0.0, self._ready_at - now)

    def failed(self, began: float, now: float, retry_after_s: float | None = None, wait_s: float | None = None) -> None:
        """An attempt that began then has failed now. ``wait_s``: how long to wait, where that is not for us to find."""
        is_new = began >= self._failed_at
        if not is_new and retry_after_s is None:
            return  # it was on its way already when another one failed: that is one failure
        self._level += is_new
        self.is_open, self.hangs, self._failed_at = True, now - began >= HUNG_S, now
        wait = self.backoff.delay_s(math.ceil(self._level), self.rng, retry_after_s) if wait_s is None else wait_s
        self._ready_at = max(self._ready_at, now + wait)
        if retry_after_s is not None:
            self._asked_until = self._ready_at

    def answered(self) -> None:
        """The server took a request. A time that it asked for holds all the same."""
        self.is_open = self.hangs = False
        self._level = max(0.0, min(self._level, _MOST_REMEMBERED) - _FORGIVEN)
        self._ready_at = self._asked_until
