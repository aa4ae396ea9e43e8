"""Plain MLflow code, online and through the spool: the servers cannot be told apart."""

from __future__ import annotations

import json

import pytest
from tests.oracle import killed, snapshot
from tests.oracle.stage import Stage
from tests.spooling import Ferry


@pytest.mark.parametrize("script", ["basics", "media", "asked"])
def test_what_a_plain_script_logs_arrives_as_if_it_had_been_online(stage: Stage, script: str) -> None:
    assert stage.differences(script) == []


@pytest.mark.parametrize(("script", "seed"), [("basics", 0), ("basics", 9), ("media", 3), ("media", 13), ("media", 6)])
def test_what_was_logged_before_a_kill_arrives_and_the_run_is_killed(stage: Stage, script: str, seed: int) -> None:
    assert killed.wrong(stage, script, seed=seed) == []


def test_a_model_is_linked_to_its_versions_by_the_numbers_that_the_server_gave_them(stage: Stage) -> None:
    stage.perform_online("media", "Double")
    offline = stage.perform_offline("media", "Double", title="numbers")
    assert offline.code == 0, offline.words
    for verb in ("sync", "verify"):
        done = Ferry(stage.spool("numbers"), stage.folder / "state" / "numbers", stage.online.url)(verb)
        assert done.returncode == 0, done.stdout + done.stderr
    held = snapshot.take(stage.online.url)
    [made] = [name["versions"] for name in held.registered if name["name"] == "Double"]
    tags = {model["model_id"]: model["tags"] for model in held.models}
    models = {name: json.loads(of["mlflow.modelVersions"]) for name, of in tags.items() if "mlflow.modelVersions" in of}
    ours = [version for version in made.values() if "mlferry.version_uid" in version["tags"]]
    assert len(ours) == 2 and len(made) > len(ours)
    for version in ours:
        [link] = models[version["source"].removeprefix("models:/")]
        assert (link["name"], str(link["version"])) == ("Double", str(version["version"]))
