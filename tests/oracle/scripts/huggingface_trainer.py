"""A Hugging Face Trainer that reports to MLflow, on a tiny model with random weights."""

import torch
import transformers.trainer
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

# Speed is another in each execution, and is logged.
transformers.trainer.speed_metrics = lambda split, *args, **kwargs: {f"{split}_runtime": 1.0}

set_seed(0)
config = BertConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20, num_labels=2
)
rows = [{"input_ids": torch.arange(4) % 20, "labels": torch.tensor(row % 2)} for row in range(8)]
arguments = TrainingArguments(
    output_dir="out",
    report_to="mlflow",
    run_name="trained",
    max_steps=4,
    logging_steps=1,
    per_device_train_batch_size=4,
    use_cpu=True,
    save_strategy="no",
    disable_tqdm=True,
    seed=0,
)
Trainer(model=BertForSequenceClassification(config), args=arguments, train_dataset=rows).train()
