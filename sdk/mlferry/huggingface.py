"""A callback for Hugging Face's Trainer on the light SDK, for images without MLflow. Owns what the Trainer says -> calls.

It leaves on the server what the ``MLflowCallback`` of transformers leaves, and obeys the same variables. But a training that
does not get to its end leaves a run that is FAILED, where MLflow's says FINISHED.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mlferry import fluent
from mlferry.limits import MAX_PARAM_CHARS
from mlferry.runs import Run
from mlferry.trouble import warn

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as missing:
    if missing.name != "transformers":
        raise
    raise ModuleNotFoundError(
        "mlferry.huggingface needs transformers, which is not installed: pip install transformers", name="transformers"
    ) from None

__all__ = ["MLFerryCallback"]

_NOT_IN_A_METRIC = re.compile(r"[^0-9A-Za-z_\-. :/]")
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as transformers reads its switches


class MLFerryCallback(TrainerCallback):
    """Log a training to the spool: ``Trainer(..., callbacks=[MLFerryCallback()])``, with ``report_to="none"``.

    It logs to the run that is active, else to one that it starts and ends. Only the first rank logs.
    """

    def __init__(self) -> None:
        self._initialized = False
        self._log_artifacts = False
        self._training = False
        self._run: Run | None = None

    def setup(self, args: Any, state: Any, model: Any) -> None:
        """Start the run and log the arguments and the model's configuration. Called when the training begins.

        These environment variables are read:

        * ``MLFLOW_EXPERIMENT_NAME``: the experiment of a run that is started.
        * ``MLFLOW_NESTED_RUN``: start a run below the active one.
        * ``MLFLOW_RUN_ID``: go on with this run.
        * ``MLFLOW_TAGS``: tags, as a JSON object.
        * ``MLFLOW_FLATTEN_PARAMS``: log nested arguments as ``outer.inner``.
        * ``MLFLOW_MAX_LOG_PARAMS``: log no more params than this.
        * ``HF_MLFLOW_LOG_ARTIFACTS``: log each checkpoint that is saved, as the artifacts ``checkpoint-<step>``.

        Raises:
            RunAlreadyActive, BadRunId, BadExperiment: the variables make no sense here.
        """
        self._log_artifacts = _switch("HF_MLFLOW_LOG_ARTIFACTS")
        if state.is_world_process_zero:
            nested = _switch("MLFLOW_NESTED_RUN")
            if fluent.active_run() is None or nested or os.environ.get("MLFLOW_RUN_ID"):
                if name := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
                    fluent.set_experiment(name)
                self._run = fluent.start_run(run_name=args.run_name, nested=nested)
            fluent.log_params(_params(args, model))
            fluent.set_tags(_tags())
        self._initialized = True

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Set up, where that was not done before."""
        if not self._initialized:
            self.setup(args, state, model)
        self._training = True

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Log the numbers among ``logs`` at the global step, under names that MLflow accepts."""
        if not self._initialized:
            self.setup(args, state, model)
        if state.is_world_process_zero:
            metrics = {}
            for key, value in (logs or {}).items():
                if _is_number(value):
                    metrics[_NOT_IN_A_METRIC.sub("_", key)] = value
                elif (run := fluent.active_run()) is not None:
                    run.trouble.say(f"the metric {key} is no number but a {type(value).__name__}, and was not logged")
            fluent.log_metrics(metrics, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the checkpoint that was saved, where ``HF_MLFLOW_LOG_ARTIFACTS`` asks for it."""
        if self._initialized and state.is_world_process_zero and self._log_artifacts:
            folder = f"checkpoint-{state.global_step}"
            fluent.log_artifacts(Path(args.output_dir) / folder, folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run, where it was started here."""
        self._training = False
        if self._initialized and state.is_world_process_zero and self._run is not None:
            fluent.end_run()

    def __del__(self) -> None:
        """A training that failed and was given up must not stand in the way of the next one's run."""
        run = getattr(self, "_run", None)
        if run is not None and not run.ended:
            with contextlib.suppress(Exception):  # the interpreter may be half gone
                if self._training:
                    run.imply("FAILED")
                run.end()


def _switch(name: str) -> bool:
    return os.environ.get(name, "").upper() in _TRUE


def _is_number(value: Any) -> bool:
    """A Python number, or a tensor of one element, whose number is not asked for here: it may be on a GPU."""
    return isinstance(value, (int, float)) or (hasattr(value, "numel") and value.numel() == 1)


def _params(args: Any, model: Any) -> dict[Any, Any]:
    """The model's configuration and the arguments, which win; without what is too long to be kept."""
    configuration = getattr(model, "config", None)
    told = {**(configuration.to_dict() if configuration is not None else {}), **args.to_dict()}
    if _switch("MLFLOW_FLATTEN_PARAMS"):
        told = dict(_flattened(told))
    for name in [name for name, value in told.items() if len(str(value)) > MAX_PARAM_CHARS]:
        warn(
            f"the param {name} is longer than {MAX_PARAM_CHARS} characters and was not logged; "
            "MLFLOW_FLATTEN_PARAMS=true may divide it"
        )
        del told[name]
    most = os.environ.get("MLFLOW_MAX_LOG_PARAMS", "")
    return dict(list(told.items())[: int(most)]) if most.isdecimal() else told


def _flattened(params: Mapping[Any, Any], within: str = "") -> Iterator[tuple[Any, Any]]:
    """The leaves of nested mappings; an empty one is a leaf."""
    for key, value in params.items():
        name = f"{within}.{key}" if within else key
        if value and isinstance(value, MutableMapping):
            yield from _flattened(value, name)
        else:
            yield name, value


def _tags() -> dict[str, Any]:
    given = os.environ.get("MLFLOW_TAGS")
    try:
        found = json.loads(given) if given else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        warn(f"MLFLOW_TAGS={given!r:.200} is no JSON object; no tags are set")
        return {}
    return found
