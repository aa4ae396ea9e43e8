"""The manifests of examples/kubernetes: valid for Kubernetes, careful, and in step with mlferry's commands and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.house.commands import verbs
from tests.house.test_documents import REPOSITORY, variables_of_the_code

from mlferry.validation import check_run_id
from mlferry_agent import config
from mlferry_agent.web import addresses

kubernetes_validate = pytest.importorskip("kubernetes_validate")

FOLDER = REPOSITORY / "examples/kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))

#: The first that knows sidecar containers, and the newest that the validator knows.
VERSIONS = ("1.29", kubernetes_validate.latest_version())

#: What code of MLflow or the operating system reads, besides the variables of mlferry.
_OTHERS = {"HOME", "MLFLOW_TRACKING_TOKEN"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in documents(path):
            if "template" in document.get("spec", {}):
                yield f"{path.stem}/{document['kind']}", document["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def agents() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Each container that runs our image by its entry point, and its pod."""
    for name, pod in pods():
        for container in containers(pod):
            if "/mlferry:" in container["image"] and "command" not in container:
                yield f"{name}/{container['name']}", container, pod


PODS, AGENTS = dict(pods()), {name: (container, pod) for name, container, pod in agents()}


def settings(container: dict[str, Any]) -> dict[str, str | None]:
    """Its environment; None where the value comes from elsewhere."""
    return {item["name"]: item.get("value") for item in container.get("env", [])}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_understands_every_field(path: Path, version: str) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, version, strict=True)


def test_a_field_that_is_misspelt_is_found() -> None:
    [document, _] = documents(FOLDER / "daemonset.yaml")
    document["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", PODS)
def test_no_container_has_more_rights_than_it_needs(name: str) -> None:
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(pod):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert "memory" in container["resources"]["limits"]
        assert "privileged" not in context
        if "/mlferry:" in container["image"]:
            assert context["readOnlyRootFilesystem"] is True
        if context.get("runAsUser") == 0:
            assert container["command"][0] == "install", "only what makes the folders is root"


@pytest.mark.parametrize("name", PODS)
def test_what_is_mounted_is_a_volume_of_the_pod(name: str) -> None:
    volumes = {volume["name"] for volume in PODS[name]["volumes"]}
    mounted = {mount["name"] for container in containers(PODS[name]) for mount in container["volumeMounts"]}
    assert mounted == volumes


def test_the_examples_run_agents() -> None:
    assert set(AGENTS) == {"daemonset/DaemonSet/agent", "sidecar/Job/agent"}


@pytest.mark.parametrize("name", AGENTS)
def test_the_commands_of_an_agent_are_ours(name: str) -> None:
    container, _ = AGENTS[name]
    hooks = [hook["exec"]["command"] for hook in container.get("lifecycle", {}).values()]
    assert all(hook[0] == "mlferry" for hook in hooks)
    for words in (container["args"], *(hook[1:] for hook in hooks)):
        verb = verbs()[words[0]]
        verb.make_context(words[0], [str(word) for word in words[1:]])  # raises what a wrong option would


@pytest.mark.parametrize("name", AGENTS)
def test_the_settings_of_an_agent_are_ours_and_make_sense(name: str) -> None:
    container, _ = AGENTS[name]
    told = settings(container)
    assert set(told) <= variables_of_the_code() | _OTHERS
    found = config.load({key: value for key, value in told.items() if value is not None}, {})
    assert found.to is not None
    places = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (found.dir, found.state_dir, Path(str(told["HOME"]))):
        assert any(path.is_relative_to(place) for place in places), f"{path} would be on the read-only root"


@pytest.mark.parametrize("name", AGENTS)
def test_the_probes_ask_the_page_that_the_agent_opens(name: str) -> None:
    container, _ = AGENTS[name]
    address = addresses.parse(str(settings(container)["MLFERRY_HTTP"]))
    [port] = container["ports"]
    assert f":{port['containerPort']}" in str(settings(container)["MLFERRY_HTTP"])
    assert address is not None
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}


@pytest.mark.parametrize("name", AGENTS)
def test_the_pod_is_given_longer_than_what_it_does_at_its_end(name: str) -> None:
    container, pod = AGENTS[name]
    for hook in container.get("lifecycle", {}).values():
        [seconds] = re.findall(r"--give-up-after (\d+)", " ".join(hook["exec"]["command"]))
        assert int(seconds) + 30 <= pod["terminationGracePeriodSeconds"]


def test_a_replaced_pod_of_a_job_goes_on_in_a_run_of_an_acceptable_name() -> None:
    [train] = PODS["sidecar/Job"]["containers"]
    assert "MLFERRY_RUN_ID" in settings(train)
    check_run_id("b7f3c2a4-5a0e-4c6f-9d3e-2f1b8c7d6e5f")  # the uid of a job
    assert settings(train)["MLFERRY_DIR"] == settings(AGENTS["sidecar/Job/agent"][0])["MLFERRY_DIR"]


def test_the_secret_has_what_the_agents_ask_of_it() -> None:
    [secret] = documents(FOLDER / "secret.yaml")
    for container, _ in AGENTS.values():
        asked = [item["valueFrom"]["secretKeyRef"] for item in container["env"] if "valueFrom" in item]
        assert asked == [{"name": secret["metadata"]["name"], "key": key} for key in secret["stringData"]]


def test_the_image_is_of_this_version_and_runs_as_the_user_of_the_manifests() -> None:
    version = re.search(r'(?m)^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text())
    assert version
    text = (FOLDER / "Dockerfile").read_text()
    assert f"'mlferry[agent]=={version[1]}'" in text
    assert 'ENTRYPOINT ["mlferry"]' in text
    users = {pod["securityContext"]["runAsUser"] for pod in PODS.values()}
    assert users == {int(found) for found in re.findall(r"(?m)^USER (\d+):", text)}
    images = {container["image"] for container, _ in AGENTS.values()}
    assert images == {f"registry.example.org/mlferry:{version[1]}"}
