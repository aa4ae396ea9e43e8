"""Ids of the spool become the server's where MLflow wrote them, and nothing else changes by a byte."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from mlferry_agent.rewriting import Ids, ids_in, rewrite, rewrite_mlmodel, rewrite_tag

RUN, MODEL, OTHER = "a" * 32, "m-" + "b" * 32, "c" * 32
IDS = Ids(
    run={RUN: "the-run"}.get,
    model={MODEL: "m-the-model"}.get,
    run_artifacts={RUN: "mlflow-artifacts:/1/the-run/artifacts"}.get,
    model_artifacts={MODEL: "mlflow-artifacts:/1/models/m-the-model/artifacts"}.get,
    version={OTHER: "7"}.get,
)


def test_runs_and_models_are_found_in_uris_and_in_json() -> None:
    history = json.dumps([{"run_id": RUN, "model_uuid": MODEL, "artifact_path": "model"}])
    assert json.loads(rewrite(history, IDS)) == [
        {"run_id": "the-run", "model_uuid": "m-the-model", "artifact_path": "model"}
    ]
    assert rewrite(f"runs:/{RUN}/model", IDS) == "runs:/the-run/model"
    assert rewrite(f"models:/{MODEL}", IDS) == "models:/m-the-model"


def test_a_place_in_the_spool_becomes_the_place_on_the_server() -> None:
    assert rewrite(f"spool:///a/b/artifacts/0/{RUN}/artifacts/x/y", IDS) == (
        "mlflow-artifacts:/1/the-run/artifacts/x/y"
    )
    assert rewrite(f'{{"uri": "spool:/r/artifacts/12/models/{MODEL}/artifacts"}}', IDS) == (
        '{"uri": "mlflow-artifacts:/1/models/m-the-model/artifacts"}'
    )


def test_linked_prompts_get_the_numbers_of_the_server_and_lose_their_uids() -> None:
    def linked(**more: object) -> str:
        return json.dumps([{"name": "p", "version": "1", **more}])

    key = "mlflow.linkedPrompts"
    assert json.loads(rewrite_tag(key, linked(uid=OTHER), IDS)) == [{"name": "p", "version": "7"}]
    assert json.loads(rewrite_tag(key, linked(uid=RUN), IDS)) == [{"name": "p", "version": "1"}]
    for value in (linked(), linked().replace(" ", ""), "not JSON", "[" * 100_000, '{"uid": 1}', "[1]", ""):
        assert rewrite_tag(key, value, IDS) == value
    assert rewrite_tag("mine", linked(uid=OTHER), IDS) == linked(uid=OTHER)


def test_what_nobody_knows_stays() -> None:
    for text in (OTHER, f"runs:/{OTHER}/model", f"spool:///r/artifacts/0/{OTHER}/artifacts", "x" + RUN, RUN + "0"):
        assert rewrite(text, IDS) == text


def test_every_id_that_would_be_rewritten_is_named_beforehand() -> None:
    text = f"runs:/{RUN}/model models:/{MODEL} spool:///r/artifacts/0/models/{MODEL}/artifacts {OTHER}"
    assert ids_in(text) == ({RUN, OTHER}, {MODEL})


def test_only_the_id_lines_of_an_mlmodel_change() -> None:
    before = f"# run_id: {RUN}\r\nrun_id: {RUN}\nflavors:\n  x:\n    run_id: {RUN}\nmodel_id:  '{MODEL}'\n\n"
    after = f"# run_id: {RUN}\r\nrun_id: the-run\nflavors:\n  x:\n    run_id: {RUN}\nmodel_id:  'm-the-model'\n\n"
    assert rewrite_mlmodel(before.encode(), IDS) == after.encode()


@given(st.binary())
def test_a_file_that_names_no_id_is_the_same_to_the_byte(content: bytes) -> None:
    assert rewrite_mlmodel(content, IDS) == content
