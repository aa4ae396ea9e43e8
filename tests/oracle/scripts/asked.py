"""Prompts, traces that use them, and what people and judges say of the answers: made, changed, overridden and taken back."""

import os
import time

import mlflow
from mlflow.entities import AssessmentSource, Expectation, Feedback

client = mlflow.MlflowClient()
name = os.environ["MLFLOW_EXPERIMENT_NAME"].replace(" ", "-") + "-prompt"
human = AssessmentSource("HUMAN", "someone")

for template in ("Hello {{who}}", "Good day, {{who}}"):
    mlflow.genai.register_prompt(name, template, commit_message="words", tags={"lang": "en"})
mlflow.genai.set_prompt_alias(name, "polite", 2)


@mlflow.trace(span_type="CHAIN")
def ask(who):
    time.sleep(0.003)
    text = mlflow.genai.load_prompt(f"prompts:/{name}@polite").format(who=who)
    mlflow.log_feedback(trace_id=mlflow.get_active_trace_id(), name="while asked", value=1, source=human)
    mlflow.update_current_trace(metadata={"mlflow.trace.session": "one", "mlflow.trace.user": "ü"})
    with mlflow.start_span("model", span_type="LLM") as span:
        time.sleep(0.003)
        span.set_attribute("mlflow.chat.tokenUsage", {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7})
        span.set_outputs(text)
    return text


with mlflow.start_run(run_name="asking") as run:
    prompt = mlflow.genai.load_prompt(f"prompts:/{name}/1")
    for who in ("you", "them"):
        ask(who)
        time.sleep(0.003)
    model = mlflow.create_external_model("answering")
    client.link_prompt_version_to_model(name, "2", model.model_id)
mlflow.flush_trace_async_logging()
first, second = (trace.info.trace_id for trace in mlflow.search_traces(return_type="list", order_by=["timestamp_ms"]))

good = mlflow.log_feedback(trace_id=first, name="good", value=0.5, source=human, rationale="why", metadata={"a": "1"})
mlflow.log_feedback(trace_id=first, name="failed", error=ValueError("no judge"))
mlflow.log_feedback(trace_id=first, name="listed", value=["a", 2, None, {"b": True}])
wanted = mlflow.log_expectation(trace_id=first, name="wanted", value={"text": "Hello", "n": [1, 2]}, source=human)
plain = mlflow.log_expectation(trace_id=first, name="plain", value=7)
gone = mlflow.log_feedback(trace_id=first, name="gone", value="x")
changed = mlflow.log_feedback(trace_id=second, name="changed", value=False)
mlflow.update_assessment(
    second, changed.assessment_id, Feedback("renamed", True, rationale="seen", metadata={"b": "2"})
)
mlflow.update_assessment(first, wanted.assessment_id, Expectation("wanted", "Good day"))
mlflow.delete_assessment(first, gone.assessment_id)
better = mlflow.override_feedback(trace_id=first, assessment_id=good.assessment_id, value=0.75, rationale="really")
mlflow.update_assessment(first, better.assessment_id, Feedback("good", 1.0))
back = mlflow.override_feedback(trace_id=first, assessment_id=better.assessment_id, value=0.0)
mlflow.delete_assessment(first, back.assessment_id)
mlflow.set_trace_tag(second, "mine", "ü")
mlflow.delete_trace_tag(second, "mine")
mlflow.set_trace_tag(first, "kept", "1")
with mlflow.start_run(run_name="other") as other:
    pass
client.link_traces_to_run([second], other.info.run_id)
time.sleep(1)  # what links prompts to runs and experiments does it in threads
