"""Where things of the spool are in the database: experiments, runs by their ids, and the ids that are not kept.

Ids are kept, but for what was delivered over REST before: such a run or model stands in the database under an id of the
server's, with its own as a tag. Nothing is written of it here (`mlferry sync` goes on with it), and whatever names it is
written with the server's id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlferry_agent import encoding
from mlferry_agent.database.marks import MARK_TAG, mark_of, told_before
from mlferry_agent.database.opening import Database
from mlferry_agent.errors import RecordRefused, RunParked, Unencodable
from mlferry_agent.models import MODEL_ID_TAG
from mlferry_agent.registrations import VERSION_UID_TAG
from mlferry_agent.rewriting import Ids
from mlferry_agent.translation import RUN_ID_TAG
from mlferry_spool.fold_store import DEFAULT_EXPERIMENT, DEFAULT_EXPERIMENT_ID, ExperimentState, StoreState
from mlferry_spool.records import ExperimentOperation, ModelStart, Open

__all__ = ["Place", "Places"]


@dataclass(frozen=True, slots=True)
class Place:
    """An experiment of the database: its number there, and where its artifacts are. ``is_deleted``: by the spool itself, so
    that it is no wonder if it is there."""

    experiment_id: int
    location: str
    is_deleted: bool = False


class Places:
    """Finds and makes experiments, and tells the database's names for what the spool names.

    Args:
        store: what belongs to no run.
        recreates: what somebody deleted is restored.
    """

    def __init__(self, database: Database, store: StoreState, *, recreates: bool) -> None:
        self._database = database
        self._store = store
        self._recreates = recreates
        self._experiments: dict[tuple[str | None, str | None, str | None], Place] = {}
        self._runs: dict[str, str] = {}
        self._models: dict[str, str] = {}
        self.versions: dict[str, tuple[str, str]] = {}
        self.run_artifacts: dict[str, str] = {}
        self.model_artifacts: dict[str, str] = {}
        self._read_ids()
        self.ids = Ids(self._runs.get, self._models.get, self._artifacts_of_run, self._artifacts_of_model, self._number)

    def _read_ids(self) -> None:
        """What was delivered over REST, and versions of registered models."""
        from sqlalchemy import select

        tables = self._database.tables
        with self._database.look() as connection:
            tags = tables.tags.c
            wanted = select(tags.value, tags.run_uuid).where(tags.key == RUN_ID_TAG, tags.value != tags.run_uuid)
            self._runs = {str(value): str(run_id) for value, run_id in connection.execute(wanted)}
            tags = tables.logged_model_tags.c
            wanted = select(tags.tag_value, tags.model_id).where(
                tags.tag_key == MODEL_ID_TAG, tags.tag_value != tags.model_id
            )
            self._models = {str(value): str(model_id) for value, model_id in connection.execute(wanted)}
            tags = tables.model_version_tags.c
            wanted = select(tags.value, tags.name, tags.version).where(tags.key == VERSION_UID_TAG)
            self.versions = {str(uid): (str(name), str(number)) for uid, name, number in connection.execute(wanted)}

    # -- ids ------------------------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> str:
        """The database's id of a run."""
        return self._runs.get(run_id, run_id)

    def model(self, model_id: str) -> str:
        """The database's id of a logged model."""
        return self._models.get(model_id, model_id)

    def delivered_as(self, run_id: str) -> str | None:
        """The id under which a run was delivered over REST, if it was."""
        return self._runs.get(run_id)

    def model_delivered_as(self, model_id: str) -> str | None:
        """The same for a logged model."""
        return self._models.get(model_id)

    def _artifacts_of_run(self, run_id: str) -> str | None:
        return self.run_artifacts.get(run_id) or self._look_up("runs", "run_uuid", "artifact_uri", self.run(run_id))

    def _artifacts_of_model(self, model_id: str) -> str | None:
        known = self.model_artifacts.get(model_id)
        return known or self._look_up("logged_models", "model_id", "artifact_location", self.model(model_id))

    def _look_up(self, table: str, key: str, column: str, value: str) -> str | None:
        from sqlalchemy import select

        of = getattr(self._database.tables, table).c
        with self._database.look() as connection:
            found = connection.execute(select(of[column]).where(of[key] == value)).scalar()
        return None if found is None else str(found)

    def _number(self, uid: str) -> str | None:
        found = self.versions.get(uid)
        return None if found is None else found[1]

    # -- experiments ----------------------------------------------------------------------------------------------------

    def of_run(self, opening: Open, experiment_id: str | None = None) -> Place:
        """The experiment of a run, which the database may have in another one by now. Raises RunParked: it cannot be made,
        is not there, or was deleted."""
        known = experiment_id or opening.experiment_id
        return self.experiment(opening.offline_experiment_id, opening.experiment_name, known)

    def of_model(self, start: ModelStart) -> Place:
        """The experiment of a model that no run made. Raises as ``of_run``."""
        return self.experiment(start.offline_experiment_id, start.experiment_name)

    def experiment(self, offline_id: str | None, name: str | None, experiment_id: str | None = None) -> Place:
        """An experiment, by the id that it has in the database, else by its name; made if need be. Raises as ``of_run``."""
        asked = (offline_id, name, experiment_id)
        if asked not in self._experiments:
            try:
                self._experiments[asked] = self._find(*asked)
            except Unencodable as error:
                raise RunParked(f"its experiment: {error.reason}") from error
            except Exception as error:
                if type(error).__name__ != "MlflowException":
                    raise
                raise RunParked(f"its experiment: {error!s:.300}") from error
        return self._experiments[asked]

    def _find(self, offline_id: str | None, name: str | None, experiment_id: str | None) -> Place:
        self._database.settle()
        store = self._database.store
        state = None if offline_id is None else self._store.experiments().get(offline_id)
        if experiment_id is not None:
            found = store.get_experiment(experiment_id)
        else:
            found = self._by_name(
                encoding.experiment_name((state.name if state else None) or name or DEFAULT_EXPERIMENT), state
            )
        is_wanted = state is None or state.lifecycle == "active"
        if found.lifecycle_stage == "deleted" and is_wanted:
            if not self._recreates and not self._was_deleted_by_us(found, offline_id):
                raise RunParked(f"its experiment {found.name!r} was deleted in the database")
            store.restore_experiment(found.experiment_id)
        return Place(int(found.experiment_id), str(found.artifact_location), is_deleted=not is_wanted)

    def _was_deleted_by_us(self, found: Any, offline_id: str | None) -> bool:
        """Whether an earlier import deleted it, since the spool then said so."""
        operations = [] if offline_id is None else self._store.operations_on(offline_id)
        covered = operations[: told_before(operations, found.tags.get(MARK_TAG))]
        said = [one.operation for one in covered if one.operation in ("delete", "restore")]
        return said[-1:] == ["delete"]

    def _by_name(self, name: str, state: ExperimentState | None) -> Any:
        """The experiment of this name; else one that has a name which the spool has changed since; else a new one.

        Where a record wants the artifacts is not heard: the spool may be a stranger's, and files would be written there.
        """
        store = self._database.store
        earlier = () if state is None else self._names_of(state.experiment_id)
        for known in (name, *earlier):
            found = store.get_experiment_by_name(known)
            if found is not None:
                return found
        return store.get_experiment(store.create_experiment(name))

    def _names_of(self, offline_id: str) -> list[str]:
        if offline_id == DEFAULT_EXPERIMENT_ID:
            return []
        return [one.name for one in reversed(self._store.operations_on(offline_id)) if one.operation == "rename"]

    def settle_experiments(self) -> dict[str, str]:
        """Bring names, tags and lifecycles of experiments to what the spool has made of them; by name what was refused."""
        refused: dict[str, str] = {}
        for offline_id, state in self._store.experiments().items():
            operations = self._store.operations_on(offline_id)
            if not operations:
                continue
            try:
                self._settle(state, operations)
            except (RunParked, RecordRefused, Unencodable) as error:
                refused[state.name] = error.reason
            except Exception as error:
                if type(error).__name__ != "MlflowException":
                    raise
                refused[state.name] = f"{error!s:.300}"
        return refused

    def _settle(self, state: ExperimentState, operations: list[ExperimentOperation]) -> None:
        from mlflow.entities import ExperimentTag

        store = self._database.store
        key = str(self.experiment(state.experiment_id, state.name).experiment_id)
        found = store.get_experiment(key)
        new = operations[told_before(operations, found.tags.get(MARK_TAG)) :]
        if not new:
            return
        if found.lifecycle_stage == "deleted":
            store.restore_experiment(key)
        for one in new:
            self._apply(key, one)
        named = state.experiment_id != DEFAULT_EXPERIMENT_ID
        if named and found.name != state.name:
            store.rename_experiment(key, encoding.experiment_name(state.name))
        store.set_experiment_tag(key, ExperimentTag(MARK_TAG, mark_of(operations)))
        if named and state.lifecycle == "deleted":
            store.delete_experiment(key)

    def _apply(self, key: str, one: ExperimentOperation) -> None:
        from mlflow.entities import ExperimentTag

        details, store = one.details, self._database.store
        tags: dict[str, Any] = {}
        if one.operation == "create":
            tags = dict(details.get("tags") or {})
        elif one.operation == "set_tag":
            tags = {str(details.get("key")): details.get("value")}
        elif one.operation == "delete_tag" and str(details.get("key")) in store.get_experiment(key).tags:
            store.delete_experiment_tag(key, str(details.get("key")))
        for name, value in tags.items():
            told = encoding.experiment_tag(str(name), str(value))
            if name != MARK_TAG:
                store.set_experiment_tag(key, ExperimentTag(str(told["key"]), str(told["value"])))
