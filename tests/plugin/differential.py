"""One scenario, two stores: what MLflow does on SQLite and what it does on a spool, told in the same words.

A scenario is a function that takes a ``Stage``, acts through MLflow and returns what it saw. It is run on each store in the
same process; ``same`` compares what came back. Ids, times and places differ by nature, so the answers are *told*: entities
become plain dictionaries, ids are numbered in the order in which they appear, and times become ``<now>``. Scenarios pass
their own times wherever MLflow lets them: those are compared to the millisecond.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import ViewType
from mlflow.entities._mlflow_object import _MlflowObject
from mlflow.store.entities.paged_list import PagedList
from mlflow.tracking import MlflowClient
from mlflow.tracking._model_registry.utils import _get_store as registry_store_of
from mlflow.tracking._tracking_service.utils import _get_store as tracking_store_of

__all__ = ["Clock", "Refused", "Stage", "same", "tell"]

#: Unix milliseconds that scenarios give as theirs: long past, so that no clock of this machine shows them.
T0 = 1_600_000_000_000

_RUN_OR_MODEL = re.compile(r"(?:m-|tr-|d-|a-)?(?<![0-9a-zA-Z])[0-9a-f]{32}(?![0-9a-zA-Z])|(?:m-|tr-|d-|a-)[0-9a-f]{32}")


@dataclass(frozen=True)
class Refused:
    """A call that raised: what a user of MLflow sees of it."""

    kind: str
    code: str | None
    words: str


@dataclass
class Stage:
    """One store with a folder of its own, as scenarios see it."""

    kind: str
    uri: str
    folder: Path
    began: float = field(default_factory=time.time)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    @property
    def store(self) -> Any:
        """The tracking store itself."""
        return tracking_store_of(self.uri)

    @property
    def registry(self) -> Any:
        return registry_store_of(self.uri)

    def attempt(self, call: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """What a call answers, or how it is refused."""
        try:
            return call(*args, **named)
        except Exception as error:
            return Refused(type(error).__name__, getattr(error, "error_code", None), str(error))

    def experiment(self, name: str = "an experiment", **named: Any) -> str:
        return str(self.client.create_experiment(name, **named))

    def run(self, experiment: str = "0", name: str = "a run", **named: Any) -> str:
        """A new run that started at T0; returns its id."""
        named.setdefault("start_time", T0)
        return str(self.client.create_run(experiment, run_name=name, **named).info.run_id)

    def write(self, name: str, data: str | bytes) -> str:
        """A file of the scenario's own; returns its path."""
        path = self.folder / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return str(path)


@dataclass
class Clock:
    """What both stores take for the time, in Unix milliseconds, where a scenario sets it."""

    now: int = T0


Scenario = Callable[[Stage], Any]


def same(scenario: Scenario, stages: Sequence[Stage]) -> Any:
    """Run a scenario on each stage and require one answer of all; returns it, as told."""
    told = [(stage.kind, _told_on(stage, scenario)) for stage in stages]
    (_, first), *others = told
    for kind, other in others:
        if apart := list(_apart(first, other)):
            pytest.fail(f"{kind} is not {stages[0].kind}:\n" + "\n".join(apart), pytrace=False)
    return first


def _apart(first: Any, other: Any, place: str = "") -> Iterator[str]:
    """Each place in which two told values differ."""
    if isinstance(first, dict) and isinstance(other, dict):
        for key in {**first, **other}:
            yield from _apart(first.get(key, "<absent>"), other.get(key, "<absent>"), f"{place}.{key}")
    elif isinstance(first, list) and isinstance(other, list) and len(first) == len(other):
        for number, pair in enumerate(zip(first, other, strict=True)):
            yield from _apart(*pair, f"{place}[{number}]")
    elif type(first) is not type(other) or first != other:
        yield f"  {place}\n    {first!r:.1000}\n    {other!r:.1000}"


def _told_on(stage: Stage, scenario: Scenario) -> Any:
    mlflow.set_tracking_uri(stage.uri)
    found = scenario(stage)
    return tell(found, stage)


def tell(value: Any, stage: Stage) -> Any:
    """A value in words that do not depend on the store."""
    return _Teller(stage).tell(value)


class _Teller:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._ids: dict[str, str] = {}
        experiments = tracking_store_of(stage.uri).search_experiments(view_type=ViewType.ALL, max_results=1000)
        others = [experiment for experiment in experiments if experiment.experiment_id != "0"]
        self._experiments = {e.experiment_id: f"<experiment {e.name}>" for e in others}

    def tell(self, value: Any) -> Any:
        match value:
            case Enum():
                return value.name
            case bool() | None | bytes():
                return value
            case str():
                return self._text(value)
            case int():
                return "<now>" if self._is_now(value / 1000) else value
            case float():
                return "<nan>" if math.isnan(value) else "<now>" if self._is_now(value) else value
            case Refused():
                return ("refused", value.kind, value.code, self._text(value.words, is_message=True))
            case PagedList():
                return {"items": [self.tell(item) for item in value], "more": bool(value.token)}
            case _MlflowObject():
                return {"entity": type(value).__name__, **{name: self.tell(item) for name, item in _fields(value)}}
            case Mapping():
                return {self.tell(key): self.tell(item) for key, item in value.items()}
            case list() | tuple():
                return [self.tell(item) for item in value]
            case set() | frozenset():
                return {"set": sorted(str(self.tell(item)) for item in value)}
            case Path():
                return self._text(str(value))
        if hasattr(value, "to_dict"):
            return self.tell(value.to_dict())
        return repr(value)

    def _is_now(self, seconds: float) -> bool:
        return self._stage.began - 5 <= seconds <= time.time() + 5

    def _text(self, text: str, *, is_message: bool = False) -> str:
        text = self._places(text)
        text = re.sub(r"(?<!\d)\d{18}(?!\d)", lambda found: self._experiments.get(found[0], found[0]), text)
        text = _RUN_OR_MODEL.sub(lambda found: self._id(found[0]), text)
        if is_message:
            # What a database adds of its own: the constraint and the statement.
            text = re.sub(r"( Error: )?\((raised as a result|sqlite3\.).*", "", text, flags=re.DOTALL)
        return text

    def _places(self, text: str) -> str:
        """Where artifacts are, without the place: the rest of the URI is MLflow's own layout on both."""
        folder = re.escape(str(self._stage.folder))
        text = re.sub(rf"(?:spool:/{{0,2}}|file://)?{folder}/(?:spool/artifacts|mlruns)/(\d+)", self._place, text)
        return re.sub(rf"(?:(?:spool|file|sqlite):/*)?{folder}(?:/spool|/mlflow\.db)?", "<folder>", text)

    def _place(self, found: re.Match[str]) -> str:
        return f"<artifacts>/{self._experiments.get(found[1], found[1])}"

    def _id(self, known: str) -> str:
        kind = known.partition("-")[0] if "-" in known else "id"
        return self._ids.setdefault(known, f"<{kind} {len(self._ids) + 1}>")


def _fields(entity: Any) -> Iterable[tuple[str, Any]]:
    """What an entity says of itself; lists without an order of their own are ordered."""
    for name, value in entity:
        if name in ("dataset_inputs", "model_inputs", "model_outputs", "tags") and isinstance(value, list):
            value = sorted(value, key=repr)
        yield name, value
