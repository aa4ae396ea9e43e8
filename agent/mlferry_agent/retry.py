"""When to try again, and when to stop.

Owns the waits between attempts. Pure arithmetic over a random generator and a clock that are handed in: never sleeps.

Full jitter (a wait drawn evenly between nothing and the exponential bound) keeps a hundred agents that lost the same
server from coming back in step. A server that names a time with Retry-After is obeyed, up to an hour, and then
up to as long again, a minute at most: everybody else was told the same time. What is transient is tried for ever:
giving up is for answers that may be a refusal (SUSPECT), and only after a bounded number of attempts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from mlferry_agent.answers import Judgement, Verdict

SUSPECT_400_ATTEMPTS = 3
"""400 BAD_REQUEST is a wrapped SQL error: a race that the next attempt wins, or a value the database never takes.

Beyond: it counts as a refusal, and the one record that provokes it is looked for and set aside.
Test: tests/unit/agent/test_courier.py::test_what_may_be_a_refusal_is_tried_a_few_times
"""

SUSPECT_500_ATTEMPTS = 8
"""500 is mostly an overloaded server; only rarely a body that it can never take.

Beyond: it counts as a refusal if the server takes anything else, and as the server's illness if it does not.
Test: tests/unit/agent/test_courier.py::test_what_may_be_a_refusal_is_tried_a_few_times,
tests/unit/agent/test_deliveries.py::test_a_server_that_takes_nothing_is_not_the_records_fault
"""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Bounds of the waits, in seconds: the first is below `base_s`, each next bound doubles, none is above `cap_s`."""

    base_s: float = 0.5
    cap_s: float = 60.0
    retry_after_cap_s: float = 3600.0

    def delay_s(self, attempt: int, rng: random.Random, retry_after_s: float | None = None) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 1), given what the server asked for."""
        # 2.0**63 is past any cap; the bound keeps a year of failures from overflowing a float.
        bound = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 63))
        asked = min(retry_after_s or 0.0, self.retry_after_cap_s)
        return asked + rng.uniform(0.0, max(bound, min(asked, self.cap_s)))


def attempts_allowed(judgement: Judgement) -> int | None:
    """How often a request may be tried in all, given its last judgement; None is for ever."""
    if judgement.verdict is Verdict.RETRY:
        return None
    if judgement.verdict is Verdict.SUSPECT:
        return SUSPECT_400_ATTEMPTS if judgement.status < 500 else SUSPECT_500_ATTEMPTS
    return 1


@dataclass(slots=True)
class Attempts:
    """The attempts at one request: how many were made and when the last of them failed, on the injected monotonic `clock`.

    SUSPECT answers are counted apart: an hour of 503 before them says nothing about the body, and must not use up
    the few attempts that a suspect body gets. Failures that everything shared are counted apart as well: they make this
    request wait no longer than the others.
    """

    backoff: Backoff
    rng: random.Random
    clock: Callable[[], float]
    made: int = 0
    _failed_at: float = field(default=math.inf, init=False)
    _alone: int = field(default=0, init=False)
    _suspected: int = field(default=0, init=False)

    def again(self, judgement: Judgement, answered_at: float | None = None) -> float | None:
        """Count one failed attempt; seconds that this request waits by itself before the next one, or None when there shall
        be none. `answered_at`: when the server last took any request.

        None means: settle by the verdict, and take SUSPECT for REFUSED.
        """
        self.made += 1
        self._suspected += judgement.verdict is Verdict.SUSPECT
        allowed = attempts_allowed(judgement)
        if allowed is not None and max(self._suspected, 1) >= allowed:
            return None
        others_pass = answered_at is not None and answered_at >= self._failed_at
        self._failed_at = self.clock()
        if judgement.verdict is Verdict.RETRY and not others_pass:
            return 0.0
        self._alone += 1
        return self.backoff.delay_s(self._alone, self.rng, judgement.retry_after_s)
