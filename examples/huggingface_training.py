"""A Hugging Face Trainer, reporting by MLflow or by mlferry's callback, which needs no MLflow in the image.

    MLFLOW_TRACKING_URI=spool: python examples/huggingface_training.py
    python examples/huggingface_training.py --report-to mlferry
    mlferry sync --to http://127.0.0.1:5000

The model is a tiny one with random weights: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments


class Parity(Dataset):
    """Sequences of eight tokens, and whether their sum is odd."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = (torch.arange(8) * (index + 1)) % 50
        return {"input_ids": tokens, "labels": tokens.sum() % 2}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report-to", choices=["mlflow", "mlferry"], default="mlflow")
    given = parser.parse_args()
    os.environ["MLFLOW_EXPERIMENT_NAME"] = "hugging face"
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, **size))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            run_name=given.report_to,
            report_to="mlflow" if given.report_to == "mlflow" else "none",
            num_train_epochs=2,
            logging_steps=4,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, settings, train_dataset=Parity())
        if given.report_to == "mlferry":
            from mlferry.huggingface import MLFerryCallback

            trainer.add_callback(MLFerryCallback())
        trainer.train()
