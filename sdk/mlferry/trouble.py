"""What could not be logged: counted always, said once, raised where that is asked for. Owns how a run complains.

Nothing here writes records: the run states the gap in its log itself (``Writer.count_dropped``).
"""

from __future__ import annotations

from collections import Counter

from mlferry import limits
from mlferry.config import OnError
from mlferry.errors import MlferryError

__all__ = ["Trouble", "warn"]


def warn(text: str) -> None:
    """A warning through the ``mlferry`` logger; without any logging set up, Python prints it on stderr."""
    import logging  # a tenth of the cost of importing mlferry, for something that rarely happens

    logging.getLogger("mlferry").warning("%s", text)


class Trouble:
    """The complaints of one run.

    Attributes:
        counts: what was not logged, by reason.
    """

    def __init__(self, on_error: OnError) -> None:
        self.on_error = on_error
        self.counts: Counter[str] = Counter()
        self._said: set[str] = set()

    def count(self, error: MlferryError, count: int = 1) -> None:
        """So many things were not logged, for this reason."""
        self.counts[type(error).__name__] += count

    def meet(self, error: MlferryError) -> None:
        """Say it once, or raise it, as the settings ask."""
        if self.on_error is OnError.RAISE:
            raise error
        self.say(str(error))

    def say(self, text: str) -> None:
        """Warn once of each thing, and of no more than a terminal should show."""
        if self.on_error is OnError.IGNORE or text in self._said or len(self._said) > limits.MAX_WARNINGS:
            return
        self._said.add(text)
        warn(
            text if len(self._said) <= limits.MAX_WARNINGS else "more complaints like these are not shown, only counted"
        )
