"""The functions that read like ``mlflow``'s: each acts on the run that is active in the calling thread.

Owns the stack of active runs, one a thread as in MLflow, and the active experiment. A run that is logged to without being
started is started. What can be wrong with a call is a ``Misuse`` and raised; what can be wrong with a value is the run's.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import FunctionType
from typing import IO, Any

from mlferry import compiling, config, ending, limits, opening
from mlferry.automatic import automatic_tags, user_name
from mlferry.errors import (
    BadExperiment,
    BadStatus,
    DescriptionTwice,
    MlferryError,
    NotLogged,
    RunAlreadyActive,
    WrongParent,
)
from mlferry.launch import Launch
from mlferry.metrics import MetricLog
from mlferry.names import name_of
from mlferry.opening import Experiment, Identity
from mlferry.runs import STATUSES, Run
from mlferry.trouble import Trouble, warn
from mlferry.validation import check_experiment_name, check_run_id, readable
from mlferry_spool.layout import writer_name, writer_names
from mlferry_spool.records import Open

_PARENT_TAG, _NAME_TAG, _NOTE_TAG = "mlflow.parentRunId", "mlflow.runName", "mlflow.note.content"


class _Active(threading.local, MetricLog):
    """What is active in one thread: a stack of runs. Logs metrics to the topmost, which it starts where there is none."""

    def __init__(self) -> None:
        self.stack: list[Run] = []
        self.last: Run | None = None
        self.follow()

    def __reduce__(self) -> str:
        return "_active"  # whoever pickles ``log_metric`` means the other process's

    @property
    def run(self) -> Run | None:
        return self.stack[-1] if self.stack else None

    def follow(self) -> None:
        """The stack has changed."""
        self._appender = None if self.run is None else self.run._appender

    def _log_slowly(self, pairs: list[tuple[Any, Any]], errors: list[MlferryError], step: Any, timestamp: Any) -> None:
        _current()._log_slowly(pairs, errors, step, timestamp)

    def _not_stored(self) -> None:
        if self.run is not None:
            self.run._not_stored()


_active = _Active()
_experiment = Experiment()


class _Origin:
    """The running process as ``mlferry.opening`` sees it, looked up when its first run opens."""

    process: opening.Process | None = None
    forked = False

    def __call__(self) -> opening.Process:
        if self.process is None:
            self.process = opening.Process.this(forked=self.forked)
        return self.process

    def after_fork(self) -> None:
        self.process, self.forked = None, True


_process = _Origin()
os.register_at_fork(after_in_child=_process.after_fork)


# -- experiments and runs -----------------------------------------------------------------------------------------------


def set_experiment(experiment_name: str | None = None, experiment_id: str | int | None = None) -> Experiment:
    """Set the experiment of the runs to come; it is created on delivery if the server does not have it.

    Child processes inherit a name through ``MLFLOW_EXPERIMENT_NAME``.

    Raises:
        BadExperiment: not exactly one of name and id is given, or the name is none.
    """
    global _experiment
    if (experiment_name is None) == (experiment_id is None):
        raise BadExperiment("exactly one of experiment_name and experiment_id is needed")
    if experiment_name is not None:
        _experiment = Experiment(name=check_experiment_name(experiment_name))
        os.environ["MLFLOW_EXPERIMENT_NAME"] = experiment_name
    else:
        _experiment = Experiment(experiment_id=readable(experiment_id))
    return _experiment


def start_run(
    run_id: str | None = None,
    experiment_id: str | int | None = None,
    run_name: str | None = None,
    nested: bool = False,
    parent_run_id: str | None = None,
    tags: Mapping[str, Any] | None = None,
    description: str | None = None,
    log_system_metrics: bool | None = None,
    *,
    experiment_name: str | None = None,
    capture: bool | None = None,
) -> Run:
    """Start a run, or go on with one by its id, and make it active in this thread.

    Args:
        run_id: a run that exists, here or on the server.
        nested: a run is active and the new one shall be its child.
        parent_run_id: the run to nest below; it must be the active one if there is one.
        log_system_metrics: log the machine's metrics; if None, ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` decides.
        capture: keep what the process prints until the end of the run as artifacts below ``console/``; if None,
            ``MLFERRY_CAPTURE`` decides. A secret that is printed is uploaded.

    Raises:
        RunAlreadyActive: a run is active in this thread and ``nested`` is not set.
        WrongParent, BadRunId, BadExperiment, DescriptionTwice: an argument makes no sense.
    """
    active = _active.run
    if active is not None and not nested:
        raise RunAlreadyActive(f"run {_active.stack[0].info.run_id} is active")
    if parent_run_id is not None and active is not None and active.info.run_id != check_run_id(parent_run_id):
        raise WrongParent(f"{active.info.run_id} is active, not {parent_run_id}")
    parent = parent_run_id or (active.info.run_id if active is not None else None)
    run = open_run(
        run_id,
        experiment_name=experiment_name,
        experiment_id=experiment_id,
        run_name=run_name,
        parent_run_id=parent,
        tags=tags,
        description=description,
        log_system_metrics=log_system_metrics,
        capture=capture,
    )
    stack = _active.stack
    stack.append(run)
    _active.follow()
    run.on_end.append(lambda ended: _leave(stack, ended))
    return run


def open_run(
    run_id: str | None = None,
    *,
    experiment_name: str | None = None,
    experiment_id: str | int | None = None,
    run_name: str | None = None,
    parent_run_id: str | None = None,
    tags: Mapping[str, Any] | None = None,
    description: str | None = None,
    log_system_metrics: bool | None = None,
    capture: bool | None = None,
) -> Run:
    """Open a run without making it active: for explicit use of the ``Run`` object. Arguments as in ``start_run``."""
    chosen = config.read(os.environ, warn)
    trouble = Trouble(chosen.on_error)
    experiment = opening.resolve_experiment(os.environ, experiment_name, experiment_id, _experiment)
    given_tags = _with_description(dict(tags or {}), description)
    if parent_run_id is not None:
        check_run_id(parent_run_id)
    name = None if run_name is None else readable(run_name)[: limits.MAX_TAG_CHARS]
    identity = _process().identify(run_id, parent_run_id)
    if _process().undecided and not identity.resumed:
        trouble.say(
            "this is one of several ranks, and nothing tells this launch from another one: this run is of this rank alone. "
            "MLFERRY_RUN_ID, or torchrun's --rdzv-id, makes it one for all ranks that log"
        )
    opened = _opening(identity, experiment, name, parent_run_id)
    run = Run(opening.locate(chosen.root, identity, opened.start_time), opened, chosen, trouble)
    run.on_end.append(_report)
    compiling.stay_out()
    ending.install()
    try:
        _introduce(run, identity, name, given_tags, parent_run_id)
    except NotLogged:  # only where errors are to be raised: the caller gets no run, so none may stay open
        run.end("FAILED")
        raise
    _monitor(run, identity, log_system_metrics)
    if capture or (capture is None and config.boolean(os.environ, "MLFERRY_CAPTURE", False, warn)):
        run.capture_console()
    return run


def _with_description(tags: dict[str, Any], description: str | None) -> dict[str, Any]:
    if description and _NOTE_TAG in tags:
        raise DescriptionTwice()
    return {**tags, _NOTE_TAG: description} if description else tags


def _opening(identity: Identity, experiment: Experiment, run_name: str | None, parent_run_id: str | None) -> Open:
    """A resumed run keeps its own name and experiment unless the caller gives others."""
    now = time.time_ns() // 1_000_000
    unnamed = experiment == Experiment()
    return Open(
        writer_id=writer_name(now, identity.rank, os.urandom(8).hex()),
        run_id=identity.run_id,
        experiment_name="Default" if unnamed and not identity.resumed else experiment.name,
        experiment_id=experiment.experiment_id,
        run_name=run_name or (None if identity.resumed else name_of(identity.run_id)),
        user=readable(user_name(os.environ)),
        start_time=now,
        parent_run_id=parent_run_id,
        resumed=identity.resumed,
        attempt=identity.attempt,
        rank=identity.rank,
    )


def _introduce(
    run: Run, identity: Identity, run_name: str | None, tags: dict[str, Any], parent_run_id: str | None
) -> None:
    """The tags with which MLflow begins a run; of several ranks only the first says what all would say."""
    if identity.resumed and run_name:
        run.rename(run_name)
    if not identity.resumed and not identity.rank:
        begun = {**automatic_tags(os.environ, run.info.user_id), _NAME_TAG: run.info.run_name}
        tags = {**begun, **tags, **({_PARENT_TAG: parent_run_id} if parent_run_id else {})}
        if run_name:
            tags[_NAME_TAG] = run_name
    if tags:
        run.set_tags(tags)


def _monitor(run: Run, identity: Identity, wanted: bool | None) -> None:
    """Have the machine sampled; of several ranks that log into one run, by the first of each node."""
    launch = _process().launch if identity.shared else Launch()
    if wanted is None:
        wanted = config.boolean(os.environ, "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", False, warn)
    if wanted and launch.local_rank == 0:
        from mlferry.system_metrics import monitor_from_environment

        several, writers = launch.nodes > 1, writer_names(run.directory)
        monitor = monitor_from_environment(
            os.environ, run.log_metrics, run.trouble.say, several_nodes=several, writers=writers
        )
        if monitor is not None:
            run.watch_system(monitor)


def _leave(stack: list[Run], ended: Run) -> None:
    """Take an ended run off the stack that it was started on, which may be another thread's."""
    if ended in stack:
        stack.remove(ended)
    if stack is _active.stack:
        _active.last = ended
        _active.follow()


def _report(run: Run) -> None:
    """Say on stderr where the run is and how it is delivered; the first rank speaks for the others."""
    if run.config.quiet or run.nested or not run.mine or (run.rank and not run.dropped):
        return
    import shlex

    info = run.info
    named = f"{info.run_name} ({info.run_id})" if info.run_name else info.run_id  # a run gone on with has no name here
    lines = [f"run {named} {info.status}: {run.recorded} records in {run.directory}"]
    if run.dropped:
        reasons = ", ".join(f"{name} {count}" for name, count in run.trouble.counts.most_common())
        lines.append(f"{run.dropped} could not be stored ({reasons or 'see the warnings above'})")
    where = f"MLFERRY_DIR={shlex.quote(str(run.config.root))} " if run.config.root_given else ""
    lines.append(f"deliver it with: {where}mlferry sync {info.run_id} --to http://your-mlflow-server:5000")
    try:
        sys.stderr.write("".join(f"mlferry: {line}\n" for line in lines))
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # stderr closed, or none at all
        pass


def end_run(status: str | None = None) -> None:
    """End the active run, if there is one: as ``status``, else as the circumstances imply (usually FINISHED).

    Raises BadStatus.
    """
    if status is not None and status not in STATUSES:
        raise BadStatus(f"{status!r:.60}")
    if _active.run is not None:
        _active.run.end(status)
        _tidy()


def active_run() -> Run | None:
    """The run that is active in this thread, or None."""
    _tidy()
    return _active.run


def last_active_run() -> Run | None:
    """The active run of this thread, else the last one that ended in it."""
    return active_run() or _active.last


def _tidy() -> None:
    """Runs that ended in another thread are not active in this one any more."""
    while _active.stack and _active.stack[-1].ended:
        _active.last = _active.stack.pop()
    _active.follow()


def _current() -> Run:
    return active_run() or start_run()


# -- logging --------------------------------------------------------------------------------------------------------------


log_metric = _active.log_metric
log_metrics = _active.log_metrics


def log_series(key: str, values: Any, steps: Any = None, timestamps: Any = None) -> None:
    """Log many points of one metric at once: one-dimensional arrays, tensors, buffers or sequences of one length."""
    _current().log_series(key, values, steps, timestamps)


def log_param(key: str, value: Any, synchronous: bool | None = None) -> Any:
    """Log a param, which is written once. Returns the value."""
    return _current().log_param(key, value)


def log_params(params: Mapping[str, Any], synchronous: bool | None = None) -> None:
    """Log several params; a bad one stops only itself."""
    _current().log_params(params)


def set_tag(key: str, value: Any, synchronous: bool | None = None) -> None:
    """Set a tag of the run."""
    _current().set_tag(key, value)


def set_tags(tags: Mapping[str, Any], synchronous: bool | None = None) -> None:
    """Set several tags of the run."""
    _current().set_tags(tags)


def delete_tag(key: str) -> None:
    """Take a tag away from the run."""
    _current().delete_tag(key)


def log_artifact(local_path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
    """Log a file (or a directory, under its name), below ``artifact_path``; it is copied before this returns."""
    _current().log_artifact(local_path, artifact_path)


def log_artifacts(local_dir: str | os.PathLike[str], artifact_path: str | None = None) -> None:
    """Log what a directory holds, below ``artifact_path``."""
    _current().log_artifacts(local_dir, artifact_path)


def open_artifact(artifact_file: str, mode: str = "wb") -> AbstractContextManager[IO[bytes]]:
    """A binary file whose content is an artifact once its ``with`` block has ended: ``torch.save(state, file)`` without a
    copy. An exception that leaves the block leaves nothing behind. Raises BadMode."""
    return _current().open_artifact(artifact_file, mode)


def log_text(text: str, artifact_file: str) -> None:
    """Log a text as an artifact, in UTF-8."""
    _current().log_text(text, artifact_file)


def log_dict(dictionary: Any, artifact_file: str) -> None:
    """Log a dictionary or list as a YAML (``.yml``, ``.yaml``) or JSON artifact."""
    _current().log_dict(dictionary, artifact_file)


def log_figure(figure: Any, artifact_file: str, *, save_kwargs: dict[str, Any] | None = None) -> None:
    """Log a matplotlib or plotly figure as an artifact."""
    _current().log_figure(figure, artifact_file, save_kwargs=save_kwargs)


def log_image(
    image: Any,
    artifact_file: str | None = None,
    key: str | None = None,
    step: int | None = None,
    timestamp: int | None = None,
    synchronous: bool | None = None,
) -> None:
    """Log an image as the artifact ``artifact_file``, or as image ``key`` of a step for MLflow's image charts."""
    _current().log_image(image, artifact_file, key, step, timestamp)


def log_table(data: Any, artifact_file: str) -> None:
    """Log a dictionary of columns or a DataFrame; under a name used before, its rows are appended."""
    _current().log_table(data, artifact_file)


def log_input(dataset: Any, context: str | None = None, tags: Mapping[str, Any] | None = None) -> None:
    """Log a dataset (``mlferry.Dataset`` or one of ``mlflow.data``) that the run uses."""
    _current().log_input(dataset, context, tags)


def flush() -> None:
    """Wait until all that every open run of the process has logged is written and safe from a power cut."""
    for run in ending.open_runs():
        run.flush()


compiling.untraced(
    *(MetricLog.log_metric, MetricLog.log_metrics, log_series, log_param, log_params, set_tag, set_tags, delete_tag),
    *(log_artifact, log_artifacts, open_artifact, log_text, log_dict, log_figure, log_image, log_table, log_input),
    *(flush, start_run, end_run, active_run),
    *(method for name, method in vars(Run).items() if name[:1] != "_" and isinstance(method, FunctionType)),
)
