"""Lightning's logger on the light SDK, for images without MLflow. Owns what Lightning says -> calls of a ``Run``.

It leaves on the server what Lightning's own ``MLFlowLogger`` leaves: the same names, texts, files and statuses. Where that
one speaks to a client with a run's id, this one holds an open ``Run`` of its own, which is not the active one of the thread.

Lightning finalizes a logger after every ``fit`` and ``test``, and logs to it afterwards. So a finalized run has ended, which
lets it be delivered whole, and goes on under its id when something more is logged.
"""

from __future__ import annotations

import importlib
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mlferry import fluent
from mlferry.guard import explained
from mlferry.runs import Run
from mlferry_spool.records import Kind

__all__ = ["MLFerryLogger"]

#: Lightning is published under two names whose modules are copies of each other.
_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _import_lightning() -> tuple[Any, Any, Any]:
    """From the package that the program imported before, or else from the one that is installed."""
    for package in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            loggers = importlib.import_module(f"{package}.loggers.logger")
            ranks = importlib.import_module(f"{package}.utilities.rank_zero")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != package.partition(".")[0]:
                raise  # it is there, and something that it needs is not
        else:
            return loggers.Logger, loggers.DummyLogger, ranks.rank_zero_only
    raise ModuleNotFoundError(
        "mlferry.lightning needs Lightning, which is not installed: pip install lightning", name="lightning"
    )


if TYPE_CHECKING:
    from lightning.pytorch.loggers.logger import DummyLogger, Logger
    from lightning.pytorch.utilities.rank_zero import rank_zero_only
else:
    Logger, DummyLogger, rank_zero_only = _import_lightning()

#: Characters of a hyperparameter: where MLFlowLogger cuts, which is less than MLflow keeps.
#: Beyond: cut.
#: Test: tests/unit/sdk/test_lightning.py::test_hyperparameters_are_flattened_and_cut_and_metrics_get_their_prefix
_PARAM_CHARS = 250

_NOT_IN_A_METRIC = re.compile(r"[^a-zA-Z0-9_/. -]+")
_NOT_IN_A_FOLDER = re.compile(r"[/\\\0]|^\.+")
_RUN_NAME_TAG = "mlflow.runName"
_STATUSES = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}

#: What a checkpoint's description says of the callback that saved it; a version of Lightning may lack some.
_OF_THE_CALLBACK = (
    "monitor",
    "mode",
    "save_last",
    "save_top_k",
    "save_weights_only",
    "_every_n_train_steps",
    "_every_n_val_epochs",
)


class MLFerryLogger(Logger):
    """Log a Lightning training to the spool: ``Trainer(logger=MLFerryLogger("mnist"))``.

    Of several ranks the first one logs; in the others every method does nothing.

    Args:
        experiment_name: the experiment, created on delivery if the server does not have it.
        run_name: the name of the new run; one is made up if it has none.
        tags: tags of the new run.
        save_dir: below this Lightning puts checkpoints that have no ``dirpath``; its default root if None.
        log_model: log the checkpoints of ``ModelCheckpoint`` as artifacts: at the end of the training, or during it
            where this is ``"all"`` or the callback keeps all of them (``save_top_k=-1``).
        prefix: put before the name of every metric, with a dash between.
        run_id: go on with this run, here or on the server; its experiment, name and tags stay.
        synchronous: accepted as ``MLFlowLogger`` does and ignored: no call waits.

    Raises:
        BadRunId, BadExperiment: on first use, an argument makes no sense.
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        save_dir: str | None = None,
        log_model: bool | Literal["all"] = False,
        prefix: str = "",
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        super().__init__()
        self.tags = dict(tags or {})
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._save_dir = save_dir
        self._log_model = log_model
        self._prefix = f"{prefix}{self.LOGGER_JOIN_CHAR}" if prefix else ""
        self._run_id = run_id
        self._run: Run | None = None
        self._checkpoint_callback: Any = None
        self._logged_checkpoints: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned process or a copy gets: the run's id, not the open run."""
        return {**self.__dict__, "_run": None}

    @property
    def experiment(self) -> Run:
        """The run, opened when it is first asked for, and again where it has ended. In other ranks a stand-in that does
        nothing."""
        if rank_zero_only.rank > 0:
            return cast(Run, DummyLogger().experiment)
        if self._run is None or self._run.ended:
            self._run = self._open()
        return self._run

    def _open(self) -> Run:
        if self._run_id is not None:
            run = fluent.open_run(self._run_id)
            if self._run is not None:  # a failed training stays one, whatever is logged after it
                run.imply(self._run.info.status)
            return run
        name = self._run_name or self.tags.get(_RUN_NAME_TAG)
        tags = {key: value for key, value in self.tags.items() if key != _RUN_NAME_TAG}
        run = fluent.open_run(experiment_name=self._experiment_name, run_name=name, tags=tags)
        self._run_id = run.info.run_id
        return run

    @property
    def run_id(self) -> str | None:
        """The run's id, for which the run is opened; None in a rank that does not log."""
        return self.experiment.info.run_id if rank_zero_only.rank == 0 else self._run_id

    @property
    def save_dir(self) -> str | None:
        """Where Lightning puts checkpoints that have no place of their own; None: its default root."""
        return self._save_dir

    @property
    def name(self) -> str:
        """The experiment's name, as the folder that Lightning makes of it."""
        return _NOT_IN_A_FOLDER.sub("_", self._experiment_name)

    @property
    def version(self) -> str | None:
        """The run's id."""
        return self.run_id

    def log_hyperparams(self, params: Mapping[str, Any] | Namespace | None, *args: Any, **kwargs: Any) -> None:
        """Log nested hyperparameters as params ``outer/inner``, each text cut at 250 characters as ``MLFlowLogger`` does."""
        if rank_zero_only.rank > 0:
            return
        given = vars(params) if isinstance(params, Namespace) else params or {}
        self.experiment.log_params({key: str(value)[:_PARAM_CHARS] for key, value in _flattened(given)})

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log points at one step; characters that ``MLFlowLogger`` takes out of a name are taken out here too."""
        if rank_zero_only.rank > 0:
            return
        run, named = self.experiment, {}
        for key, value in metrics.items():
            if isinstance(value, str):
                run.trouble.say(f"the metric {key} is no number but a text, and was not logged")
                continue
            name = _NOT_IN_A_METRIC.sub("", f"{self._prefix}{key}")
            if name != f"{self._prefix}{key}":
                run.trouble.say(f"the metric {self._prefix}{key} is logged as {name}, which MLflow accepts as a name")
            named[name] = value
        run.log_metrics(named, step)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Log new checkpoints, now or at the end, as ``log_model`` says."""
        if self._log_model == "all" or (self._log_model and checkpoint_callback.save_top_k == -1):
            self._log_checkpoints(checkpoint_callback)
        elif self._log_model:
            self._checkpoint_callback = checkpoint_callback

    def finalize(self, status: str = "success") -> None:
        """End the run: ``"success"`` and ``"finished"`` as FINISHED, ``"failed"`` as FAILED, or one of MLflow's own.

        Raises BadStatus.
        """
        if rank_zero_only.rank > 0 or self._run is None:
            return
        if self._checkpoint_callback is not None:
            self._log_checkpoints(self._checkpoint_callback)
        status = _STATUSES.get(status, status)
        if not (self._run.ended and self._run.info.status == status):
            self.experiment.end(status)

    def _log_checkpoints(self, callback: Any) -> None:
        if rank_zero_only.rank > 0:
            return
        for path, score, saved in _saved(callback):
            if self._logged_checkpoints.get(path, float("-inf")) < saved:
                _log_checkpoint(self.experiment, path, score, callback)
                self._logged_checkpoints[path] = saved


def _flattened(params: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, dataclasses, namespaces and lists of mappings; what is empty has none."""
    for key, value in params.items():
        name = f"{within}/{key}" if within else str(key)
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        elif isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, MutableMapping):
            yield from _flattened(value, name)
        elif isinstance(value, list) and all(isinstance(item, MutableMapping) for item in value):
            for index, item in enumerate(value):
                yield from _flattened(item, f"{name}/{index}")
        else:
            yield name, value


def _saved(callback: Any) -> list[tuple[str, Any, float]]:
    """Path, score and time of each checkpoint file that the callback keeps, the oldest first."""
    scores: dict[str, Any] = {}
    for path, score in (("last_model_path", "current_score"), ("best_model_path", "best_model_score")):
        if hasattr(callback, path) and hasattr(callback, score):
            scores[getattr(callback, path)] = getattr(callback, score)
    scores.update(getattr(callback, "best_k_models", {}))
    found = [(path, score, Path(path).stat().st_mtime) for path, score in scores.items() if Path(path).is_file()]
    return sorted(found, key=lambda one: (one[2], one[0]))


def _log_checkpoint(run: Run, path: str, score: Any, callback: Any) -> None:
    """The file, and beside it what it is worth, in a folder that is called as the file without its suffix."""
    file = Path(path)
    described = {name: getattr(callback, name) for name in _OF_THE_CALLBACK if hasattr(callback, name)}
    aliases = ["latest", "best"] if path == callback.best_model_path else ["latest"]
    run.log_artifact(file, file.stem)
    try:
        number = score.item() if hasattr(score, "item") else score
        metadata = {"score": number, "original_filename": file.name, "Checkpoint": described}
    except Exception as error:  # whatever a score does when it is asked for a number
        run.refuse(Kind.ARTIFACT, explained(error))
    else:
        run.log_dict(metadata, f"{file.stem}/metadata.yaml")
    run.log_text(str(aliases), f"{file.stem}/aliases.txt")
