"""PyTorch Lightning, with the logger of MLflow or with mlferry's, which needs no MLflow in the image.

MLFLOW_TRACKING_URI=spool: python examples/lightning_training.py
python examples/lightning_training.py --logger mlferry
mlferry sync --to http://127.0.0.1:5000
"""

from __future__ import annotations

import argparse
import os

import lightning
import torch
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, TensorDataset


class Line(lightning.LightningModule):
    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        inputs, targets = batch
        loss = torch.nn.functional.mse_loss(self.layer(inputs), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["learning_rate"])


def logger_of(name: str) -> Logger:
    if name == "mlferry":
        from mlferry.lightning import MLFerryLogger

        return MLFerryLogger("lightning", run_name=name)
    from lightning.pytorch.loggers import MLFlowLogger

    return MLFlowLogger("lightning", run_name=name, tracking_uri=os.environ["MLFLOW_TRACKING_URI"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logger", choices=["mlflow", "mlferry"], default="mlflow")
    given = parser.parse_args()
    lightning.seed_everything(0)
    inputs = torch.randn(256, 3)
    loader = DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=16)
    trainer = lightning.Trainer(
        max_epochs=2,
        logger=logger_of(given.logger),
        log_every_n_steps=4,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Line(), loader)
