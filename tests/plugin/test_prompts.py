"""Prompts, which are registered models by another name: versions, aliases, tags, searches and links."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from tests.plugin.differential import Scenario, Stage

from mlferry.plugin import versions

pytestmark = [
    pytest.mark.skipif(not versions.SQL_TRACES, reason="prompts were elsewhere in MLflow's first versions"),
    pytest.mark.filterwarnings("ignore"),  # what MLflow says of its own models when mlflow.genai is imported
]

Both = Callable[[Scenario], Any]


def told(prompt: Any) -> Any:
    """What there is to know of a version of a prompt, or of how the call went."""
    if type(prompt).__name__ != "PromptVersion":
        return vars(prompt) if type(prompt).__name__ == "Prompt" else prompt
    return [
        *(prompt.name, prompt.version, prompt.template, prompt.commit_message, prompt.tags, sorted(prompt.aliases)),
        *(prompt.variables, prompt.response_format, prompt.uri, prompt.creation_timestamp),
    ]


def test_prompts_from_their_registration_to_their_deletion(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        genai, client = mlflow.genai, stage.client
        chat = [{"role": "user", "content": "hi {{x}}"}]
        seen = []
        for act in (
            lambda: genai.register_prompt("p", "hello {{name}}", commit_message="first", tags={"a": "1"}),
            lambda: genai.register_prompt("p", "hello {{ name }} and {{other}}", tags={"a": "2"}),
            lambda: genai.register_prompt("chat", chat, response_format={"type": "object"}),
            lambda: genai.register_prompt("bad/name", "x"),
            lambda: genai.register_prompt("", "x"),
            lambda: genai.register_prompt("p", ""),
            lambda: genai.register_prompt("long", "x" * 120_000),
            lambda: genai.load_prompt("p"),
            lambda: genai.load_prompt("p", version=1),
            lambda: genai.load_prompt("prompts:/p/2"),
            lambda: genai.load_prompt("prompts:/p/9"),
            lambda: genai.load_prompt("prompts:/p@latest"),
            lambda: genai.load_prompt("prompts:/p@absent"),
            lambda: genai.load_prompt("prompts:/absent/1"),
            lambda: genai.load_prompt("absent"),
            lambda: genai.load_prompt("absent", allow_missing=True),
            lambda: genai.set_prompt_alias("p", "prod", 1),
            lambda: genai.set_prompt_alias("p", "prod", 9),
            lambda: genai.load_prompt("prompts:/p@prod"),
            lambda: genai.delete_prompt_alias("p", "prod"),
            lambda: client.set_prompt_version_tag("p", "1", "k", "v"),
            lambda: client.set_prompt_tag("p", "k", "v"),
            lambda: client.delete_prompt_tag("p", "a"),
            lambda: client.get_prompt("p"),
            lambda: client.get_prompt("absent"),
            lambda: client.get_prompt_version("p", "1"),
            lambda: client.create_registered_model("p"),
            lambda: client.create_registered_model("model"),
            lambda: genai.register_prompt("model", "x"),
            lambda: genai.load_prompt("prompts:/model/1"),
            lambda: client.search_registered_models(),
            lambda: genai.search_prompts().to_list(),
            lambda: [prompt.name for prompt in genai.search_prompts("name LIKE 'c%'")],
            lambda: [prompt.name for prompt in genai.search_prompts(max_results=1)],
            lambda: [told(version) for version in client.search_prompt_versions("p")],
            lambda: client.delete_prompt("p"),
            lambda: client.delete_prompt_version("p", "1"),
            lambda: client.delete_prompt_version("p", "2"),
            lambda: client.delete_prompt("p"),
            lambda: genai.load_prompt("prompts:/p/1"),
        ):
            seen.append(told(stage.attempt(act)))
        return seen

    both(scenario)


def test_links_of_prompts(both: Both) -> None:
    def scenario(stage: Stage) -> Any:
        client = stage.client
        prompt = mlflow.genai.register_prompt("p", "hello {{name}}")

        @mlflow.trace
        def ask(name: str) -> str:
            return str(mlflow.genai.load_prompt("prompts:/p/1").format(name=name))

        with mlflow.start_run() as run:
            mlflow.genai.load_prompt("prompts:/p/1")
            ask("you")
            model = mlflow.create_external_model("m")
        run_id = run.info.run_id
        mlflow.flush_trace_async_logging()
        [trace] = mlflow.search_traces(return_type="list")
        return [
            stage.attempt(client.link_prompt_version_to_run, run_id, prompt),
            stage.attempt(client.link_prompt_version_to_run, "absent", prompt),
            stage.attempt(client.link_prompt_version_to_run, run_id, "prompts:/p/1"),
            stage.attempt(client.link_prompt_version_to_model, "p", "1", model.model_id),
            stage.attempt(client.link_prompt_versions_to_trace, [prompt], trace.info.trace_id),
            client.get_run(run_id).data.tags["mlflow.linkedPrompts"],
            client.get_logged_model(model.model_id).tags.get("mlflow.linkedPrompts"),
            trace.info.tags["mlflow.linkedPrompts"],
            len(mlflow.search_traces(filter_string="prompt = 'p/1'", return_type="list")),
            [told(found) for found in stage.attempt(client.list_prompts_for_run, run_id)]
            if hasattr(client, "list_prompts_for_run")
            else None,
        ]

    both(scenario)
