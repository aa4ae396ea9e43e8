"""MLflow's model registry on a spool: operations are records, what it holds is folded from them.

The semantics are those of MLflow's SQL store. Version numbers are this spool's own; the server gives its own when the
records are delivered, and aliases and tags follow.
"""

from __future__ import annotations

import uuid
from typing import Any

from mlflow.entities.model_registry import (
    ModelVersion,
    ModelVersionTag,
    RegisteredModel,
    RegisteredModelAlias,
    RegisteredModelTag,
)
from mlflow.entities.model_registry.model_version_stages import (
    ALL_STAGES,
    DEFAULT_STAGES_FOR_GET_LATEST_VERSIONS,
    get_canonical_stage,
)
from mlflow.exceptions import MlflowException
from mlflow.prompt.registry_utils import has_prompt_tag
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.model_registry import (
    SEARCH_MODEL_VERSION_MAX_RESULTS_DEFAULT,
    SEARCH_MODEL_VERSION_MAX_RESULTS_THRESHOLD,
    SEARCH_REGISTERED_MODEL_MAX_RESULTS_DEFAULT,
    SEARCH_REGISTERED_MODEL_MAX_RESULTS_THRESHOLD,
)
from mlflow.store.model_registry.abstract_store import AbstractStore
from mlflow.utils.validation import (
    _validate_model_alias_name,
    _validate_model_name,
    _validate_model_renaming,
    _validate_model_version_tag,
    _validate_registered_model_tag,
    _validate_tag_name,
)

from mlferry.plugin import uri, versions
from mlferry.plugin.journal import journal_for
from mlferry.plugin.registry_fold import DELETED, RegisteredState, VersionState
from mlferry.plugin.registry_search import models_found, page_of, versions_found
from mlferry.plugin.search import in_session, invalid, no_such
from mlferry_spool.records import RegistryOperation

__all__ = ["SpoolRegistryStore"]


class SpoolRegistryStore(AbstractStore):
    """``mlflow.store.model_registry.AbstractStore`` on the spool that ``store_uri`` names.

    Raises:
        BadSpoolUri: the URI names none.
    """

    def __init__(self, store_uri: str | None = None, tracking_uri: str | None = None) -> None:
        versions.init_registry(super().__init__, store_uri, tracking_uri)
        self.root = uri.root_of(store_uri or "spool:")
        self._journal = journal_for(self.root)

    # -- registered models ---------------------------------------------------------------------------------------------

    def create_registered_model(
        self,
        name: str,
        tags: list[RegisteredModelTag] | None = None,
        description: str | None = None,
        deployment_job_id: str | None = None,
    ) -> RegisteredModel:
        _validate_model_name(name)
        for tag in tags or []:
            _validate_registered_model_tag(tag.key, tag.value)
        known = self._models().get(name)
        if known is not None:
            versions.already_registered(name, known.tags, tags)
        told = {tag.key: str(tag.value) for tag in tags or ()}
        self._tell("create_registered_model", name, tags=told, description=description)
        return self.get_registered_model(name)

    def update_registered_model(
        self, name: str, description: str | None, deployment_job_id: str | None = None
    ) -> RegisteredModel:
        self._model(name)
        self._tell("update_registered_model", name, description=description)
        return self.get_registered_model(name)

    def rename_registered_model(self, name: str, new_name: str) -> RegisteredModel:
        _validate_model_renaming(new_name)
        self._model(name)
        if new_name != name and new_name in self._models():
            raise MlflowException(f"Registered Model (name={new_name}) already exists.", RESOURCE_ALREADY_EXISTS)
        self._tell("rename_registered_model", name, new_name=new_name)
        return self.get_registered_model(new_name)

    def delete_registered_model(self, name: str) -> None:
        self._model(name)
        self._tell("delete_registered_model", name)

    def get_registered_model(self, name: str) -> RegisteredModel:
        return _model_entity(self._model(name))

    def search_registered_models(
        self,
        filter_string: str | None = None,
        max_results: int = SEARCH_REGISTERED_MODEL_MAX_RESULTS_DEFAULT,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[RegisteredModel]:
        _check_most(max_results, SEARCH_REGISTERED_MODEL_MAX_RESULTS_THRESHOLD)
        models = [_model_entity(state) for state in self._models().values()]
        return page_of(models_found(models, filter_string, order_by), max_results, page_token)

    def get_latest_versions(self, name: str, stages: list[str] | None = None) -> list[ModelVersion]:
        state = self._model(name)
        with in_session():
            wanted = {get_canonical_stage(stage) for stage in stages or ALL_STAGES}
        return [_version_entity(state, version) for version in _latest(state) if version.stage in wanted]

    def set_registered_model_tag(self, name: str, tag: RegisteredModelTag) -> None:
        _validate_model_name(name)
        _validate_registered_model_tag(tag.key, tag.value)
        self._model(name)
        self._tell("set_registered_model_tag", name, key=tag.key, value=str(tag.value))

    def delete_registered_model_tag(self, name: str, key: str) -> None:
        _validate_model_name(name)
        _validate_tag_name(key)
        self._model(name)
        self._tell("delete_registered_model_tag", name, key=key)

    # -- versions ------------------------------------------------------------------------------------------------------

    def create_model_version(
        self,
        name: str,
        source: str,
        run_id: str | None = None,
        tags: list[ModelVersionTag] | None = None,
        run_link: str | None = None,
        description: str | None = None,
        local_model_path: str | None = None,
        model_id: str | None = None,
    ) -> ModelVersion:
        _validate_model_name(name)
        for tag in tags or []:
            _validate_model_version_tag(tag.key, tag.value)
        storage, run_id = self._origin(source, run_id, model_id)
        self._model(name)
        uid = uuid.uuid4().hex
        told = {tag.key: str(tag.value) for tag in tags or ()}
        details = {"source": source, "storage": storage, "run_id": run_id, "run_link": run_link, "tags": told}
        details |= {"description": description, "model_id": model_id}
        self._tell("create_model_version", name, uid, **details)
        state = self._model(name)
        made = state.find(uid)
        if made is None:
            raise MlflowException(f"the spool did not take the version of {name}; see the warnings before")
        return _version_entity(state, made)

    def _origin(self, source: str | None, run_id: str | None, model_id: str | None) -> tuple[str | None, str | None]:
        """Where the files of a version are, and the run that made it. Raises MlflowException as the SQL store."""
        storage = source
        if source is not None and source.startswith("models:/"):
            try:
                storage, run_id = self._of_model(source, run_id)
            except Exception as error:
                raise MlflowException(
                    f"Unable to fetch model from model URI source artifact location '{source}'.Error: {error}"
                ) from error
        if not run_id and model_id:
            run_id = self._logged_model(model_id).source_run_id
        return storage, run_id

    def _of_model(self, source: str, run_id: str | None) -> tuple[str | None, str | None]:
        parsed = versions.parse_model_uri(source)
        if parsed.model_id is None:
            return self.get_model_version_download_uri(parsed.name, parsed.version), run_id
        model = self._logged_model(parsed.model_id)
        return model.artifact_location, run_id or model.source_run_id

    def _logged_model(self, model_id: str) -> Any:
        from mlferry.plugin.tracking import SpoolTrackingStore

        store: Any = SpoolTrackingStore
        return store(uri.store_uri(self.root)).get_logged_model(model_id)

    def update_model_version(self, name: str, version: str | int, description: str | None = None) -> ModelVersion:
        uid = self._version(name, version).uid
        self._tell("update_model_version", name, version=str(version), uid_of=uid, description=description)
        return self.get_model_version(name, version)

    def transition_model_version_stage(
        self, name: str, version: str | int, stage: str, archive_existing_versions: bool
    ) -> ModelVersion:
        canonical = get_canonical_stage(stage)
        if archive_existing_versions and canonical not in DEFAULT_STAGES_FOR_GET_LATEST_VERSIONS:
            raise MlflowException(
                "Model version transition cannot archive existing model versions because "
                f"'{stage}' is not an Active stage. Valid stages are {DEFAULT_STAGES_FOR_GET_LATEST_VERSIONS}"
            )
        uid = self._version(name, version).uid
        details = {"stage": canonical, "archive_existing_versions": bool(archive_existing_versions)}
        self._tell("transition_model_version_stage", name, version=str(version), uid_of=uid, **details)
        return self.get_model_version(name, version)

    def delete_model_version(self, name: str, version: str | int) -> None:
        uid = self._version(name, versions.version_number(version)).uid
        self._tell("delete_model_version", name, version=str(version), uid_of=uid)

    def get_model_version(self, name: str, version: str | int) -> ModelVersion:
        found = self._version(name, version)
        return _version_entity(self._model(name), found)

    def get_model_version_download_uri(self, name: str, version: str | int) -> str | None:
        return self._version(name, version).storage

    def search_model_versions(
        self,
        filter_string: str | None = None,
        max_results: int = SEARCH_MODEL_VERSION_MAX_RESULTS_DEFAULT,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[ModelVersion]:
        if not isinstance(max_results, int) or max_results < 1:
            raise invalid(f"Invalid value for max_results. It must be a positive integer, but got {max_results}")
        _check_most(max_results, SEARCH_MODEL_VERSION_MAX_RESULTS_THRESHOLD)
        known = [
            (_version_entity(state, version, with_aliases=False), has_prompt_tag(state.tags))
            for state in self._models().values()
            for version in state.versions
            if version.stage != DELETED
        ]
        return page_of(versions_found(known, filter_string, order_by), max_results, page_token)

    def set_model_version_tag(self, name: str, version: str | int, tag: ModelVersionTag) -> None:
        version = versions.version_number(version)
        _validate_model_version_tag(tag.key, tag.value)
        uid = self._version(name, version).uid
        self._tell("set_model_version_tag", name, uid_of=uid, key=tag.key, value=str(tag.value))

    def delete_model_version_tag(self, name: str, version: str | int, key: str) -> None:
        version = versions.version_number(version)
        _validate_tag_name(key)
        uid = self._version(name, version).uid
        self._tell("delete_model_version_tag", name, uid_of=uid, key=key)

    # -- aliases -------------------------------------------------------------------------------------------------------

    def set_registered_model_alias(self, name: str, alias: str, version: str | int) -> None:
        _validate_model_name(name)
        _validate_model_alias_name(alias)
        versions.validate_reserved_alias(alias)
        version = versions.version_number(version)
        uid = self._version(name, version).uid
        self._tell("set_registered_model_alias", name, uid_of=uid, alias=alias, version=str(version))

    def delete_registered_model_alias(self, name: str, alias: str) -> None:
        _validate_model_alias_name(alias)
        self._model(name)
        self._tell("delete_registered_model_alias", name, alias=alias)

    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        _validate_model_name(name)
        _validate_model_alias_name(alias)
        state = self._model(name)
        if alias.lower() == "latest":
            there = [version for version in state.versions if version.stage != DELETED]
            if not there:
                raise no_such(f"Latest version not found for model {name}.")
            return _version_entity(state, there[-1])
        if alias not in state.aliases:
            raise invalid(f"Registered model alias {alias} not found.")
        return self.get_model_version(name, state.aliases[alias])

    # -- looking up ----------------------------------------------------------------------------------------------------

    def _models(self) -> dict[str, RegisteredState]:
        return self._journal.registry.models()

    def _model(self, name: str) -> RegisteredState:
        with in_session():
            _validate_model_name(name)
        state = self._models().get(name)
        if state is None:
            raise no_such(f"Registered Model with name={name} not found")
        return state

    def _version(self, name: str, version: str | int) -> VersionState:
        with in_session():
            _validate_model_name(name)
            number = versions.version_number(version)
        state = self._models().get(name)
        for found in state.versions if state is not None else ():
            if found.version == number and found.stage != DELETED:
                return found
        raise no_such(f"Model Version (name={name}, version={number}) not found")

    def list_webhooks(self, max_results: int | None = None, page_token: str | None = None) -> PagedList[Any]:
        """None: a spool calls nobody. MLflow's server asks at every change."""
        return PagedList([], None)

    def list_webhooks_by_event(self, event: Any, *page: Any, **named: Any) -> PagedList[Any]:
        """None, as ``list_webhooks``."""
        return PagedList([], None)

    def _tell(self, operation: str, name: str, uid: str | None = None, **details: Any) -> None:
        if "uid_of" in details:
            details["uid"] = details.pop("uid_of")
        told = {key: value for key, value in details.items() if value is not None}
        self._journal.put(None, RegistryOperation(versions.now_ms(), operation, name, uid, told))
        self._journal.sync_soon(None)


def _latest(state: RegisteredState) -> list[VersionState]:
    """The last version of each stage."""
    by_stage = {version.stage: version for version in state.versions if version.stage != DELETED}
    return list(by_stage.values())


def _model_entity(state: RegisteredState) -> RegisteredModel:
    return RegisteredModel(
        name=state.name,
        creation_timestamp=state.created,
        last_updated_timestamp=state.updated,
        description=state.description,
        latest_versions=[_version_entity(state, version, with_aliases=False) for version in _latest(state)],
        tags=[RegisteredModelTag(key, value) for key, value in state.tags.items()],
        aliases=[_alias(alias, number) for alias, number in state.aliases.items()],
    )


def _alias(alias: str, number: Any) -> RegisteredModelAlias:
    """The number stays an int, as the SQL store gives it."""
    return RegisteredModelAlias(alias, number)


def _version_entity(state: RegisteredState, version: VersionState, *, with_aliases: bool = True) -> ModelVersion:
    """The SQL store tells aliases of one version and not of several; the id of a logged model it does not keep at all."""
    number: Any = version.version  # an int, as the SQL store gives it
    return ModelVersion(
        name=state.name,
        version=number,
        creation_timestamp=version.created,
        last_updated_timestamp=version.updated,
        description=version.description,
        current_stage=version.stage,
        source=version.source,
        run_id=version.run_id,
        run_link=version.run_link,
        tags=[ModelVersionTag(key, value) for key, value in version.tags.items()],
        aliases=[alias for alias, aliased in state.aliases.items() if with_aliases and aliased == version.version],
    )


def _check_most(max_results: int, most: int) -> None:
    if max_results > most:
        raise invalid(
            f"Invalid value for request parameter max_results. It must be at most {most}, but got value {max_results}"
        )


versions.refuse(SpoolRegistryStore, AbstractStore)
