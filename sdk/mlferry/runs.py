"""A run that is open in this process: each call of a user -> one record. Owns the run's state and its end.

Theory of operation
-------------------
*The fast path.* ``log_metric`` and ``log_metrics`` first ask whether everything is as it nearly always is: a float, a name
known to be good, no explicit timestamp. If so the plain tuple goes straight to ``Writer.append``; every other case is
``_log_slowly``. The two tests cost less than the lock inside ``append``.

*Nothing raises.* What cannot be logged is an error from ``mlferry.errors``; ``_refuse`` counts it, has the log state it, and
warns once (``_guarded`` does so for whatever a method raises). With ``MLFERRY_ON_ERROR=raise`` it is raised instead.

*Ending.* An end is explicit (a status was given) or implied (the program ended well, or an exception or a signal said
otherwise before: ``implied_status``). A forked child's end is not the run's: only the process that opened the run says
RUN_END.
"""

from __future__ import annotations

import errno
import functools
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from mlferry_spool.blobs import Blob, Blobs
from mlferry_spool.errors import SpoolError
from mlferry_spool.records import (
    Artifact,
    BlobRef,
    Inputs,
    Kind,
    Open,
    Params,
    Record,
    RunEnd,
    RunUpdate,
    Tags,
    TagsDeleted,
)
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.writer import Writer

from mlferry import ending, values
from mlferry.config import Config, OnError
from mlferry.errors import BadArtifact, BadStatus, BadText, MlferryError, NotStored, ParamChanged
from mlferry.limits import MAX_INT64
from mlferry.trouble import Trouble
from mlferry.validation import KNOWN_KEYS, artifact_path, check_key, param_text, partition, tag_text
from mlferry.values import as_float, as_step, as_timestamp, defer

if TYPE_CHECKING:
    from mlferry.system_metrics import Monitor
    from mlferry.tables import Tables

__all__ = ["STATUSES", "Run", "RunInfo"]

P = ParamSpec("P")

STATUSES = frozenset({"RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"})

_METRICS = int(Kind.METRICS)  # a plain int packs faster than an enum's member
_METRICS_A_RECORD = 500  # names of 250 four-byte characters still fit a frame
_SETTLE_S = 10.0
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})

_time_ns = time.time_ns


@dataclass(slots=True)
class RunInfo:
    """What a run is called; reads like ``mlflow.entities.RunInfo``. Times are Unix milliseconds."""

    run_id: str
    run_name: str | None
    experiment_name: str | None
    experiment_id: str | None
    start_time: int
    user_id: str
    status: str = "RUNNING"
    end_time: int | None = None


def _guarded(kind: Kind) -> Callable[[Callable[Concatenate[Run, P], None]], Callable[Concatenate[Run, P], None]]:
    """Turn whatever a method raises into something counted and warned of (or raised, where that is asked for)."""

    def decorate(method: Callable[Concatenate[Run, P], None]) -> Callable[Concatenate[Run, P], None]:
        @functools.wraps(method)
        def guarded(self: Run, *args: P.args, **kwargs: P.kwargs) -> None:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self._refuse(kind, _explained(error))

        return guarded

    return decorate


def _explained(error: Exception) -> MlferryError:
    if isinstance(error, MlferryError):
        return error
    if isinstance(error, SpoolError):
        return BadText(error.detail)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return NotStored(str(error))
    return BadArtifact(f"{type(error).__name__}: {error!s:.300}")


class Run:
    """An open run. ``mlferry.start_run`` makes one and makes it active; ``mlferry.open_run`` makes one for explicit use.

    As a context manager it ends as FINISHED, as FAILED where an exception leaves the block, and as KILLED where that is a
    KeyboardInterrupt or a SIGTERM came before. (``sys.exit(0)`` is no failure.)

    Methods may be called from any thread. None raises for what it is given, or for the disk, unless
    ``MLFERRY_ON_ERROR=raise``; then each raises a ``NotLogged``.
    """

    def __init__(self, directory: Path, opening: Open, config: Config, trouble: Trouble | None = None) -> None:
        self.info = RunInfo(
            run_id=opening.run_id or "",
            run_name=opening.run_name,
            experiment_name=opening.experiment_name,
            experiment_id=opening.experiment_id,
            start_time=opening.start_time,
            user_id=opening.user or "",
        )
        self.config = config
        self.directory = directory
        self.rank = opening.rank
        self.nested = opening.parent_run_id is not None
        self.trouble = trouble or Trouble(config.on_error)
        #: The status of an end that nobody names; an uncaught exception or a signal changes it.
        self.implied_status = "FINISHED"
        #: Called once when the run has ended.
        self.on_end: list[Callable[[Run], None]] = []
        self._pid = os.getpid()
        self._ended = False
        self._params: dict[str, str] = {}
        self._tables: Tables | None = None
        self._monitor: Monitor | None = None
        self._blobs = Blobs(directory, durable=config.fsync is not Fsync.NEVER)
        self._writer = Writer(directory, opening, Settings(fsync=config.fsync), on_trouble=self.trouble.say)
        self._append = self._writer.append
        ending.watch(self)

    def __repr__(self) -> str:
        return f"<Run {self.info.run_id} {self.info.run_name or ''} {self.info.status}>"

    # -- metrics ---------------------------------------------------------------------------------------------

    def log_metric(self, key: str, value: Any, step: int | None = None, timestamp: int | None = None) -> None:
        """One point of a metric.

        Args:
            value: anything that ``mlferry.values.as_float`` takes.
            step: a whole number, 0 if not given.
            timestamp: Unix milliseconds, now if not given.
        """
        try:
            if type(value) is float and key in KNOWN_KEYS and timestamp is None and (step is None or type(step) is int):
                step = step or 0
                if step <= MAX_INT64 and self._append(_METRICS, (_time_ns() // 1_000_000, step, {key: value})):
                    return
        except (SpoolError, TypeError):  # a step below int64, a name that is no text: the slow path says so
            pass
        self._log_slowly({key: value} if isinstance(key, str) else [(key, value)], step, timestamp)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None, timestamp: int | None = None) -> None:
        """Points of several metrics at one step and time, as one record. A bad one stops only itself."""
        try:
            if (
                timestamp is None
                and type(metrics) is dict
                and (step is None or type(step) is int)
                and list(map(type, metrics.values())).count(float) == len(metrics)
                and KNOWN_KEYS.issuperset(metrics)
            ):
                step = step or 0
                if step <= MAX_INT64 and self._append(_METRICS, (_time_ns() // 1_000_000, step, metrics)):
                    return
        except (SpoolError, TypeError):
            pass
        self._log_slowly(metrics, step, timestamp)
