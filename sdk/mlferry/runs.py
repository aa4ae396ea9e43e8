"""A run that is open in this process: each call of a user -> one record. Owns the run's state and its end.

Theory of operation
-------------------
*The fast path* of metrics is ``mlferry.metrics``; what is not as it nearly always is comes to ``_log_slowly``.

*Nothing raises.* What cannot be logged is an error from ``mlferry.errors``; ``refuse`` counts it, has the log state it, and
warns once (``guarded`` does so for whatever a method raises). With ``MLFERRY_ON_ERROR=raise`` it is raised instead.

*Ending.* An end is explicit (a status was given) or implied (the program ended well, or an exception or a signal said
otherwise before: ``implied_status``). A forked child's end is not the run's: only the process that opened the run says
RUN_END.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from mlferry import ending, values
from mlferry.config import Config, OnError
from mlferry.errors import BadArtifact, BadMetric, BadStatus, BadStep, BadText, MlferryError, NotStored, ParamChanged
from mlferry.guard import explained, guarded
from mlferry.keeping import Keeper
from mlferry.metrics import MetricLog, learn_type
from mlferry.trouble import Trouble
from mlferry.validation import check_key, entries, learn_metric, param_text, partition, readable, tag_text
from mlferry.values import Call, Later, as_float, as_step, as_timestamp, defer, later_of
from mlferry_spool.blobs import Blobs
from mlferry_spool.codec import KIND_OF, as_fields
from mlferry_spool.errors import SpoolError
from mlferry_spool.records import (
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

if TYPE_CHECKING:
    from mlferry.console.capture import Capture
    from mlferry.system_metrics import Monitor
    from mlferry.tables import Tables

__all__ = ["STATUSES", "Run", "RunInfo"]

STATUSES = frozenset({"RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"})

#: Metrics, and texts, of one record: names of 250 characters of four bytes, and texts of 8000, still fit a frame.
#: Beyond: the call writes several records.
#: Test: tests/unit/sdk/test_limits.py::test_however_much_one_call_logs_it_fits_into_records
_METRICS_A_RECORD, _TEXTS_A_RECORD = 500, 25

#: Seconds that the end of a run waits for values that a GPU has not computed yet; where the program was told to die, fewer
#: than it is given for all of its end.
#: Beyond: `NeverCame`: the run ends; a value that comes later is counted as dropped.
#: Test: tests/unit/sdk/test_limits.py::test_a_value_that_never_comes_does_not_keep_a_run_from_its_end
_SETTLE_S, _SETTLE_KILLED_S = 10.0, 3.0


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


class Run(MetricLog):
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
        self._capture: Capture | None = None
        blobs = Blobs(directory, durable=config.fsync is not Fsync.NEVER)
        self._keeper = Keeper(blobs, self.put, partial(self.refuse, Kind.ARTIFACT))
        self._writer = Writer(directory, opening, Settings(fsync=config.fsync), on_trouble=self.trouble.say)
        self._appender = self._writer
        ending.watch(self)

    def __repr__(self) -> str:
        return f"<Run {self.info.run_id} {self.info.run_name or ''} {self.info.status}>"

    # -- metrics ---------------------------------------------------------------------------------------------

    def _log_slowly(self, pairs: list[tuple[Any, Any]], errors: list[MlferryError], step: Any, timestamp: Any) -> None:
        """Look at each name and value on its own; what is good is written, what is not yet known will be."""
        try:
            at, when = as_step(step), as_timestamp(timestamp, _now_ms())
        except Exception as error:  # also what somebody else's class raises when it is shown
            return self.refuse(Kind.METRICS, explained(error, BadStep), len(pairs) + len(errors))
        good: dict[str, float] = {}
        unknown: dict[Later, dict[str, Any]] = {}
        for key, value in pairs:
            try:
                name = learn_metric(key)
                if type(value) is float or (later := later_of(value)) is None:
                    good[name] = as_float(value)
                    learn_type(type(value))
                else:
                    unknown.setdefault(later, {})[name] = value
            except Exception as error:  # whatever somebody else's class raises
                errors.append(explained(error, BadMetric))
        names = list(good)
        for start in range(0, len(names), _METRICS_A_RECORD):
            self._write(
                Kind.METRICS, (when, at, {name: good[name] for name in names[start : start + _METRICS_A_RECORD]})
            )
        if unknown:
            errors += defer(unknown, Call(self, at, when))
        self._refuse_all(Kind.METRICS, errors)

    def deliver(self, step: int, timestamp: int, values: dict[str, float]) -> None:
        """Numbers that were not known when they were logged; the record bears the step and the time of the call."""
        self._write(Kind.METRICS, (timestamp, step, values))

    @guarded(Kind.SERIES)
    def log_series(self, key: str, values: Any, steps: Any = None, timestamps: Any = None) -> None:
        """Many points of one metric at once, as columns.

        Args:
            values: a one-dimensional array, tensor, buffer or sequence of numbers.
            steps: whole numbers, one for each value; 0, 1, 2... if not given.
            timestamps: Unix milliseconds, one for each value; now for all if not given.
        """
        from mlferry.series import series_records

        for record in series_records(check_key(key), values, steps, timestamps, _now_ms()):
            self.put(record)

    # -- params and tags -------------------------------------------------------------------------------------

    def log_param(self, key: str, value: Any) -> Any:
        """A param, written once: another value for it is refused. Returns the value."""
        self._log_params([(key, value)], [])
        return value

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Several params, as one record. A bad one stops only itself."""
        self._log_params(*entries(params))

    def _log_params(self, pairs: list[tuple[Any, Any]], errors: list[MlferryError]) -> None:
        good, refused = partition(pairs, self._accept_param)
        self._put_texts(Params, good)
        self._refuse_all(Kind.PARAMS, errors + refused)

    def _accept_param(self, key: str, value: Any) -> str:
        text = param_text(key, value, truncate=self.config.truncate, warn=self.trouble.say)
        kept = self._params.setdefault(key, text)
        if kept != text:
            raise ParamChanged(f"{key}: {kept!r:.100} is kept, {text!r:.100} is not")
        return text

    def set_tag(self, key: str, value: Any) -> None:
        """A tag; the last value counts."""
        self._set_tags([(key, value)], [])

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Several tags, as one record. A bad one stops only itself."""
        self._set_tags(*entries(tags))

    def _set_tags(self, pairs: list[tuple[Any, Any]], errors: list[MlferryError]) -> None:
        good, refused = partition(
            pairs, lambda key, value: tag_text(key, value, truncate=self.config.truncate, warn=self.trouble.say)
        )
        self._put_texts(Tags, good)
        self._refuse_all(Kind.TAGS, errors + refused)

    def _put_texts(self, record: type[Params] | type[Tags], texts: dict[str, str]) -> None:
        names, when = list(texts), _now_ms()
        for start in range(0, len(names), _TEXTS_A_RECORD):
            self.put(record(when, {name: texts[name] for name in names[start : start + _TEXTS_A_RECORD]}))
        if names:
            self._writer.sync_soon()

    @guarded(Kind.TAGS_DELETED)
    def delete_tag(self, key: str) -> None:
        """Take a tag away."""
        self.put(TagsDeleted(_now_ms(), (check_key(key),)))

    # -- artifacts -------------------------------------------------------------------------------------------

    @guarded(Kind.ARTIFACT)
    def log_artifact(self, local_path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """A file or directory, copied before this returns. A directory keeps its name, as in MLflow."""
        source = Path(local_path)
        if source.is_dir():
            self._keeper.files(source, "/".join(part for part in (artifact_path, source.resolve().name) if part))
        else:
            self._keeper.file(source, artifact_path, source.name)

    @guarded(Kind.ARTIFACT)
    def log_artifacts(self, local_dir: str | os.PathLike[str], artifact_path: str | None = None) -> None:
        """What a directory holds. A file that cannot be read stops only itself."""
        self._keeper.files(Path(local_dir), artifact_path)

    def open_artifact(self, artifact_file: str, mode: str = "wb") -> AbstractContextManager[IO[bytes]]:
        """A binary file, for a ``with`` block: what is written to it is an artifact at the end of the block, without a copy.

        It can seek, and not be read. An exception that leaves the block leaves nothing behind. Raises BadMode.
        """
        from mlferry.opened import check_mode

        check_mode(mode)
        return self._keeper.opened(artifact_file)

    @guarded(Kind.ARTIFACT)
    def log_text(self, text: str, artifact_file: str) -> None:
        """A text, in UTF-8."""
        self._keeper.content(artifact_file, text.encode())

    @guarded(Kind.ARTIFACT)
    def log_dict(self, dictionary: Any, artifact_file: str) -> None:
        """A dictionary or list as YAML (``.yml``, ``.yaml``) or JSON (everything else)."""
        from mlferry.artifacts import dictionary_bytes

        self._keeper.content(artifact_file, dictionary_bytes(dictionary, artifact_file))

    @guarded(Kind.ARTIFACT)
    def log_figure(self, figure: Any, artifact_file: str, *, save_kwargs: dict[str, Any] | None = None) -> None:
        """A matplotlib or plotly figure, in the format that the file's suffix names."""
        from mlferry.artifacts import figure_writer

        self._keeper.rendered(artifact_file, figure_writer(figure, artifact_file, save_kwargs))

    @guarded(Kind.ARTIFACT)
    def log_image(
        self,
        image: Any,
        artifact_file: str | None = None,
        key: str | None = None,
        step: int | None = None,
        timestamp: int | None = None,
    ) -> None:
        """An image (PIL, numpy, torch): as the file ``artifact_file``, or as the image ``key`` of a step."""
        import uuid

        from mlferry import images

        pil = images.to_pil(image)
        if artifact_file is not None and key is None and step is None and timestamp is None:
            return self._keeper.image(pil, artifact_file)
        if artifact_file is not None or key is None:
            raise BadArtifact("an image has either artifact_file, or key with step and timestamp")
        name = images.stepped_name(key, as_step(step), as_timestamp(timestamp, _now_ms()), str(uuid.uuid4()))
        self._keeper.image(pil, f"{name}.png")
        self._keeper.image(images.thumbnail(pil), f"{name}+compressed.webp")
        self.set_tag("mlflow.loggedImages", True)

    @guarded(Kind.ARTIFACT)
    def log_table(self, data: Any, artifact_file: str) -> None:
        """A dictionary of columns, or a DataFrame; under a name used before, its rows are appended."""
        from mlferry import tables

        tables.check_table_name(artifact_file)
        if self._tables is None:
            self._tables = tables.Tables()
        content = self._tables.extended(artifact_file, data, partial(self._keeper.cell, artifact_file))
        self._keeper.content(artifact_file, content)
        self.set_tag(tables.TABLES_TAG, self._tables.tag)

    # -- inputs ----------------------------------------------------------------------------------------------

    @guarded(Kind.INPUTS)
    def log_input(self, dataset: Any, context: str | None = None, tags: Mapping[str, Any] | None = None) -> None:
        """A dataset that the run uses: an ``mlferry.Dataset`` or one of ``mlflow.data``."""
        from mlferry.datasets import dataset_record

        self.put(Inputs(_now_ms(), (dataset_record(dataset, context, tags, self._keeper.text),)))

    # -- writing ---------------------------------------------------------------------------------------------

    def put(self, record: Record) -> bool:
        """Write any record of the spool. True: it is kept. False: it was counted (and said)."""
        return self._write(KIND_OF[type(record)], as_fields(record))

    def _write(self, kind: Kind, fields: Any) -> bool:
        try:
            stored = self._writer.append(kind, fields)
        except SpoolError as error:
            self.refuse(kind, BadText(error.detail))
            return False
        if not stored:
            self._not_stored()
        return stored

    def _not_stored(self) -> None:
        """The writer has counted it and has said why, unless the run has ended."""
        if self._ended:
            self.trouble.meet(NotStored(f"run {self.info.run_id} has ended"))
        elif self.config.on_error is OnError.RAISE:
            raise NotStored(str(self.directory))

    def refuse(self, kind: Kind, error: MlferryError, count: int = 1) -> None:
        """Count what could not be logged, have the log state it, and warn once; or raise, where that is asked for."""
        self.trouble.count(error, count)
        self._writer.count_dropped(kind, str(error)[:300], count)
        self.trouble.meet(error)

    def _refuse_all(self, kind: Kind, errors: list[MlferryError]) -> None:
        for error in errors:
            self.refuse(kind, error)

    def flush(self) -> None:
        """Wait until all that was logged is written, and safe from a power cut (unless ``MLFERRY_FSYNC=never``)."""
        if not values.settle(_SETTLE_S):
            self.trouble.say(
                f"after {_SETTLE_S:g} s a device has not computed all values yet; they are written when it has"
            )
        self._writer.tend(time.monotonic())

    # -- ending ----------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def mine(self) -> bool:
        """This process opened the run; in a forked child it is the parent's."""
        return self._pid == os.getpid()

    @property
    def recorded(self) -> int:
        """Frames stored by this process."""
        return self._writer.appended

    @property
    def dropped(self) -> int:
        """Things that this process could not store."""
        return self._writer.dropped

    def watch_system(self, monitor: Monitor) -> None:
        """Log the machine's metrics until the end of the run."""
        self._monitor = monitor
        monitor.start()

    def capture_console(self) -> None:
        """Keep what this process prints as an artifact, until the end of the run."""
        from mlferry.console.capture import Target, begin

        info = self.info
        self._capture = begin(Target(self.directory, info.run_id, self.rank, self.config.fsync.value, self._lose))

    def _lose(self, error: MlferryError) -> None:
        """As ``refuse``, from a thread where nobody could be raised at."""
        self.trouble.count(error)
        self._writer.count_dropped(Kind.ARTIFACT, str(error)[:300])
        self.trouble.say(str(error))

    @guarded(Kind.RUN_UPDATE)
    def rename(self, run_name: str) -> None:
        """Give the run another name."""
        self.info.run_name = readable(run_name)
        self.put(RunUpdate(_now_ms(), run_name=self.info.run_name))

    def imply(self, status: str) -> None:
        """What an end that nobody names shall be from now on; a kill is not undone by the exceptions that follow it."""
        if self.implied_status != "KILLED":
            self.implied_status = status

    def foretell(self, status: str) -> None:
        """Write the end into the log but go on: should the process not get any further, this was the end."""
        self.imply(status)
        if self.mine and not self._ended:
            self.put(RunEnd(_now_ms(), status))

    def end(self, status: str | None = None) -> None:
        """End the run, as ``status`` or as what is implied. Idempotent; in a forked child the run itself goes on.

        Raises BadStatus.
        """
        if status is not None and status not in STATUSES:
            raise BadStatus(f"{status!r:.60}")
        if self._ended:
            return
        if self._monitor is not None:
            self._monitor.stop()
        if self._capture is not None and self.mine:
            self._capture.stop(*((_SETTLE_KILLED_S,) if self.implied_status == "KILLED" else ()))
        if self.mine:
            values.settle(_SETTLE_KILLED_S if self.implied_status == "KILLED" else _SETTLE_S, owner=self)
        self.info.status, self.info.end_time = status or self.implied_status, _now_ms()
        last_words = (RunEnd(self.info.end_time, self.info.status),) if self.mine else ()
        if not self._writer.close(*last_words):
            return
        self._ended = True
        ending.forget(self)
        for call in self.on_end:
            call(self)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.imply(ending.status_of(error))
        self.end()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
