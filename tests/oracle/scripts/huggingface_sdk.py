"""Trainers with two callbacks: MLflowCallback for a server's address, MLFerryCallback for a spool's, without MLflow.

One trains and evaluates; one raises in the third step, and the program gives it up; one is inside a run of the program's
own, with the switches of the environment.
"""
# ruff: noqa: E402

import gc
import json
import os
import sys

address = os.environ["MLFLOW_TRACKING_URI"]
offline = address.startswith("spool:")
if offline:
    os.environ.update(MLFERRY_DIR=address.removeprefix("spool://"), MLFERRY_QUIET="1")
    sys.modules["mlflow"] = None  # importing it raises, as where it is not installed

import torch
import transformers.trainer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

if offline:
    import mlferry as mlflow
    from mlferry.huggingface import MLFerryCallback as Callback
else:
    import mlflow
    from transformers.integrations import MLflowCallback as Callback

# Speed is another in each execution, and is logged.
transformers.trainer.speed_metrics = lambda split, *args, **kwargs: {f"{split}_runtime": 1.0}


class Odd(TrainerCallback):
    """Logs what no metric's name and no metric's value may be, and may raise."""

    def __init__(self, failing):
        self.failing = failing

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            trainer.log({"odd (name)=1": 2, "tensor": torch.tensor([0.5]), "text": "0.5", "several": torch.ones(2)})
        if state.global_step == 3 and self.failing:
            raise ValueError("diverged")


def trainer_of(name, failing=False):
    set_seed(0)
    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20, num_labels=2
    )
    config.notes = "long " * 2000
    rows = [{"input_ids": torch.arange(4) % 20, "labels": torch.tensor(row % 2)} for row in range(8)]
    arguments = TrainingArguments(
        output_dir="out",
        report_to="none",
        run_name=name,
        max_steps=4,
        logging_steps=1,
        per_device_train_batch_size=4,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    model, callbacks = BertForSequenceClassification(config), [Callback(), Odd(failing)]
    return Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)


trainer = trainer_of("trained")
trainer.train()
trainer.evaluate()
mlflow.end_run()

trainer = trainer_of("failing", failing=True)
try:
    trainer.train()
except ValueError:
    del trainer
gc.collect()

told = {"MLFLOW_FLATTEN_PARAMS": "yes", "MLFLOW_MAX_LOG_PARAMS": "70", "MLFLOW_TAGS": json.dumps({"team": 1})}
os.environ.update(told, MLFLOW_NESTED_RUN="1")
trainer = trainer_of(None)
with mlflow.start_run(run_name="around"):
    trainer.train()
    trainer.evaluate()
