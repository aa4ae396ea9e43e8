"""Records of a run but for its points -> its state, by the spool's own fold, of what a server would take. Pure.

The same gate as in delivery stands before it: what ``translation`` refuses to say to a server is refused here, with the same
words. What a server refuses in answer (a param of another value) is refused here too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from mlferry_agent import encoding
from mlferry_agent.database.marks import MARK_TAG
from mlferry_agent.errors import Unencodable
from mlferry_agent.lanes import Action, Item
from mlferry_agent.translation import translate
from mlferry_spool.fold import Place, RunState
from mlferry_spool.records import (
    ExperimentOperation,
    Inputs,
    ModelStart,
    ModelUpdate,
    Open,
    Params,
    Record,
    RegistryOperation,
    RunUpdate,
    Spans,
    Tags,
    TagsDeleted,
    Trace,
)

__all__ = ["Gathered"]

_NAME_TAG = "mlflow.runName"

#: As long as its column is, and no path.
_MODEL_ID = re.compile(r"[\w-]{1,36}", re.ASCII)

Refuse = Callable[[str, str, str], None]

_FOREIGN = (ExperimentOperation, RegistryOperation, Trace, Spans)


class Gathered:
    """A run's state so far. ``refuse``: told (what, name, reason) of what is left out of it."""

    def __init__(self, run_id: str, refuse: Refuse) -> None:
        self.state = RunState(run_id)
        self.end_time: int | None = None
        self._refuse = refuse
        self._params: dict[str, str] = {}

    def open(self, writer: str, opening: Open) -> None:
        """Take a writer's OPEN."""
        self.state.add(writer, 0, opening)

    def add(self, writer: str, offset: int, record: Record) -> None:
        """Take any record that is no metric's."""
        match record:
            case Params():
                self._add_params(writer, offset, record)
            case Tags() | TagsDeleted():
                self._add_tags(writer, offset, record)
            case Inputs():
                self._add_inputs(writer, offset, record)
            case ModelStart() | ModelUpdate():
                self._add_model(writer, offset, record)
            case RunUpdate():
                self._add_update(writer, offset, record)
            case _ if isinstance(record, _FOREIGN):
                kind = type(record).__name__
                self._refuse("record", kind, "a record of this kind does not belong into a run's log")
            case _:
                self.state.add(writer, offset, record)

    def _taken(self, writer: str, offset: int, record: Record) -> list[tuple[Action, object]]:
        """What of a record a server could be told; the rest is refused."""
        done = translate(Item(writer, offset, 0), record)
        for refusal in done.refusals:
            self._refuse(refusal.action, refusal.name, refusal.reason)
        return [(piece.action, piece.entity) for piece in done.pieces]

    def _add_params(self, writer: str, offset: int, record: Params) -> None:
        taken: dict[str, str] = {}
        for _, entity in self._taken(writer, offset, record):
            key, value = str(entity["key"]), str(entity["value"])  # type: ignore[index]
            if self._params.setdefault(key, value) != value:
                self._refuse("param", key, "it was logged with another value before, and params never change")
            else:
                taken[key] = value
        self.state.add(writer, offset, replace(record, values=taken))

    def _add_tags(self, writer: str, offset: int, record: Tags | TagsDeleted) -> None:
        taken = self._taken(writer, offset, record)
        if isinstance(record, TagsDeleted):
            keys = tuple(str(entity) for _, entity in taken if entity != MARK_TAG)
            self.state.add(writer, offset, replace(record, keys=keys))
            return
        values = {str(entity["key"]): str(entity["value"]) for _, entity in taken}  # type: ignore[index]
        if values.pop(MARK_TAG, None) is not None:
            self._refuse("tag", MARK_TAG, "mlferry itself sets this tag")
        self.state.add(writer, offset, replace(record, values=values))

    def _add_inputs(self, writer: str, offset: int, record: Inputs) -> None:
        whole = [
            one
            for one in record.datasets
            if self._taken(writer, offset, replace(record, datasets=(one,), model_ids=()))
        ]
        self.state.add(writer, offset, replace(record, datasets=tuple(whole)))

    def _add_model(self, writer: str, offset: int, record: ModelStart | ModelUpdate) -> None:
        try:
            check_model(record)
        except Unencodable as error:
            self._refuse("model", record.model_id, error.reason)
            return
        self.state.add(writer, offset, record)

    def _add_update(self, writer: str, offset: int, record: RunUpdate) -> None:
        if record.run_name is not None:
            try:
                encoding.run_name(record.run_name)
            except Unencodable as error:
                self._refuse("run update", "run", error.reason)
                record = replace(record, run_name=None)
        self.state.add(writer, offset, record)
        if record.end_time is not None:
            self.end_time = record.end_time
        if record.run_name:
            self.state.tags.set(_NAME_TAG, record.run_name, Place(record.timestamp, writer, offset))


def check_model(record: ModelStart | ModelUpdate) -> None:
    """Raises Unencodable: a name or text of a logged model is none that a database takes."""
    if not _MODEL_ID.fullmatch(record.model_id):
        raise Unencodable("its id is none that a database has room for")
    texts = {**record.params, **record.tags}
    for what, text in (
        ("model id", record.model_id),
        *((f"value of {key[:80]!a}", text) for key, text in texts.items()),
    ):
        encoding.text(text, what)
    for key in texts:
        if len(encoding.text(key, "key")) > _MAX_MODEL_KEY_LENGTH:
            raise Unencodable(f"key {key[:80]!a} has {len(key)} characters, MLflow takes {_MAX_MODEL_KEY_LENGTH}")
    if isinstance(record, ModelStart):
        for part in (record.name, record.model_type):
            if part is not None and len(encoding.text(part, "model name")) > _MAX_MODEL_NAME_LENGTH:
                raise Unencodable(f"a name of {len(part)} characters, MLflow takes {_MAX_MODEL_NAME_LENGTH}")


#: The columns of keys, and of the name and type, of logged models.
#: Beyond: the record of the model is set aside with the reason, everything else of the run is written.
#: Test: tests/unit/database/test_gathering.py::test_a_model_whose_texts_no_database_takes_is_set_aside
_MAX_MODEL_KEY_LENGTH, _MAX_MODEL_NAME_LENGTH = 255, 500
