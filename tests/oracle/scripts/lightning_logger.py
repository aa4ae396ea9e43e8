"""Lightning's own MLFlowLogger, with checkpoints as artifacts; with the word ``failing`` the training raises."""

import os
import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from torch.utils.data import DataLoader, TensorDataset


class Tiny(lightning.LightningModule):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(3, width)

    def training_step(self, batch, index):
        if "failing" in sys.argv and self.current_epoch == 1:
            raise ValueError("diverged")
        features, target = batch
        loss = torch.nn.functional.mse_loss(self.layer(features), target)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


lightning.seed_everything(0)
features = torch.randn(16, 3)
loader = DataLoader(TensorDataset(features, features.sum(1, keepdim=True)), batch_size=8)
logger = MLFlowLogger(
    experiment_name=os.environ["MLFLOW_EXPERIMENT_NAME"],
    run_name="logged",
    tracking_uri=os.environ["MLFLOW_TRACKING_URI"],
    log_model="failing" not in sys.argv,
)
trainer = lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    logger=logger,
    log_every_n_steps=1,
    enable_progress_bar=False,
    callbacks=[ModelCheckpoint(dirpath="checkpoints", monitor="loss", filename="{epoch}")],
)
trainer.fit(Tiny(), loader)
