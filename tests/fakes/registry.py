"""The rest of the MLflow server in memory: logged models, what runs put out, registered models and their versions.

As ``tracking``: ids and numbers are the server's, a create of a model or of a version makes another one each time, and what
the real server answers 400 to is answered 400 here (a param of a model once more, an output once more).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tests.fakes.tracking import FakeRun, FakeTracking, refusal, said

from mlferry_agent.answers import Answer
from mlferry_agent.requests import API, ARTIFACTS, Request

__all__ = ["FakeModel", "FakeServer", "FakeVersion"]


@dataclass
class FakeModel:
    """A logged model as the server stores it."""

    model_id: str
    experiment_id: str
    params: dict[str, str]
    tags: dict[str, str]
    status: str = "LOGGED_MODEL_PENDING"
    artifacts: dict[str, str] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """What artifacts are filed under."""
        return self.model_id

    def described(self) -> dict[str, Any]:
        info = {
            "model_id": self.model_id,
            "artifact_uri": f"mlflow-artifacts:/{self.experiment_id}/models/{self.model_id}/artifacts",
            "tags": _pairs(self.tags),
            "creation_timestamp_ms": 0,
        }
        return {"info": info, "data": {"params": _pairs(self.params)}}


@dataclass
class FakeVersion:
    """A version of a registered model."""

    number: int
    source: str
    run_id: str
    tags: dict[str, str]


class FakeServer(FakeTracking):
    """Everything that a spool may be delivered to."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.models: dict[str, FakeModel] = {}
        self.outputs: dict[str, set[str]] = {}
        self.registered: dict[str, dict[int, FakeVersion]] = {}
        self.aliases: dict[tuple[str, str], str] = {}

    def _answer(self, request: Request) -> Answer:
        endpoint = request.path[len(API) :]
        if not endpoint.startswith("logged-models") or request.path.startswith(ARTIFACTS):
            return super()._answer(request)
        body = {} if request.body is None else json.loads(request.body)
        _, *rest = endpoint.split("/")
        if not rest:
            return self._create_model(body)
        if rest == ["search"]:
            return self._search_models(body)
        model = self.models.get(rest[0])
        if model is None:
            return refusal(404, "RESOURCE_DOES_NOT_EXIST", "no such model")
        return self._about_model(model, "/".join([request.method, *rest[1:]]), body)

    def _create_model(self, body: dict[str, Any]) -> Answer:
        name = f"m-{hashlib.md5(f'model {len(self.models)}'.encode(), usedforsecurity=False).hexdigest()}"
        self.models[name] = FakeModel(name, body["experiment_id"], _mapped(body["params"]), _mapped(body["tags"]))
        self.heard.append(("logged-models", {"run_id": body.get("source_run_id")}))
        return said(model=self.models[name].described())

    def _search_models(self, body: dict[str, Any]) -> Answer:
        found = re.fullmatch(r"tags\.`(.+)` = '(.*)'", body["filter"])
        assert found is not None
        fitting = [model.described() for model in self.models.values() if model.tags.get(found[1]) == found[2]]
        return said(models=fitting) if fitting else said()

    def _about_model(self, model: FakeModel, verb: str, body: dict[str, Any]) -> Answer:
        if verb == "PATCH":
            model.status = body["status"]
        elif verb == "PATCH/tags":
            model.tags.update(_mapped(body["tags"]))
        elif verb == "POST/params":
            given = _mapped(body["params"])
            if given.keys() & model.params.keys():
                return refusal(400, "INVALID_PARAMETER_VALUE", "a param of a model is written once")
            model.params.update(given)
        else:
            assert verb == "GET", verb
        return said(model=model.described())

    def _described(self, run: FakeRun) -> dict[str, Any]:
        outputs = [{"model_id": model_id} for model_id in sorted(self.outputs.get(run.run_id, ()))]
        return {**run.described(), "outputs": {"model_outputs": outputs}}

    def _runs_outputs(self, run: FakeRun, body: dict[str, Any]) -> Answer:
        given = {item["model_id"] for item in body["models"]}
        there = self.outputs.setdefault(run.run_id, set())
        if given & there:
            return refusal(400, "INVALID_PARAMETER_VALUE", "the model is an output already")
        there |= given
        return said()

    def _artifact(self, request: Request) -> tuple[Any, str]:
        found = re.fullmatch(rf"{ARTIFACTS}/\d+/models/([\w-]+)/artifacts/(.+)", unquote(request.path))
        return (self.models[found[1]], found[2]) if found else super()._artifact(request)

    # -- the registry -------------------------------------------------------------------------------------------------------

    def _registered_models_create(self, body: dict[str, Any]) -> Answer:
        if body["name"] in self.registered:
            return refusal(400, "RESOURCE_ALREADY_EXISTS", "Registered Model already exists")
        self.registered[body["name"]] = {}
        return said(registered_model={"name": body["name"]})

    def _registered_models_alias(self, body: dict[str, Any]) -> Answer:
        self.aliases[body["name"], body["alias"]] = str(body["version"])
        return said()

    def _route(self, endpoint: str, body: dict[str, Any]) -> Answer:
        # A version names a run, and is not of it: whether that run is deleted is nobody's concern.
        return (
            self._model_versions_create(body) if endpoint == "model-versions/create" else super()._route(endpoint, body)
        )

    def _model_versions_create(self, body: dict[str, Any]) -> Answer:
        if body["name"] not in self.registered:
            return refusal(404, "RESOURCE_DOES_NOT_EXIST", "no such registered model")
        versions = self.registered[body["name"]]
        number = len(versions) + 1
        versions[number] = FakeVersion(number, body["source"], body.get("run_id", ""), _mapped(body["tags"]))
        return said(model_version={"version": str(number)})

    def _model_versions_search(self, body: dict[str, Any]) -> Answer:
        found = re.fullmatch(r"name = '(.*)' and tags\.`(.+)` = '(.*)'", body["filter"])
        assert found is not None
        versions = self.registered.get(found[1], {}).values()
        fitting = [{"version": str(one.number)} for one in versions if one.tags.get(found[2]) == found[3]]
        return said(model_versions=fitting) if fitting else said()


def _pairs(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _mapped(pairs: list[dict[str, str]]) -> dict[str, str]:
    return {pair["key"]: pair["value"] for pair in pairs}
