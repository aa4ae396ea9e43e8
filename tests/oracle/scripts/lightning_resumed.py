"""Lightning's MLFlowLogger with every checkpoint as a logged model; a second trainer goes on with run and checkpoint."""

import os

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from torch.utils.data import DataLoader, TensorDataset


class Tiny(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, index):
        features, target = batch
        loss = torch.nn.functional.mse_loss(self.layer(features), target)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(epochs: int, run_id: str | None, checkpoint: str | None) -> tuple[str, str]:
    """Train up to that many epochs, in that run, from that checkpoint; the run and its last checkpoint."""
    logger = MLFlowLogger(
        experiment_name=os.environ["MLFLOW_EXPERIMENT_NAME"],
        run_name="resumed",
        tracking_uri=os.environ["MLFLOW_TRACKING_URI"],
        run_id=run_id,
        log_model="all",
        tags={"kind": "resumed"},
    )
    saving = ModelCheckpoint(dirpath="checkpoints", filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        callbacks=[saving],
    )
    trainer.fit(Tiny(), loader, ckpt_path=checkpoint)
    return logger.run_id, saving.best_model_path


lightning.seed_everything(0)
features = torch.randn(16, 3)
loader = DataLoader(TensorDataset(features, features.sum(1, keepdim=True)), batch_size=8)
run_id, path = fit(1, None, None)
assert fit(3, run_id, path)[0] == run_id
