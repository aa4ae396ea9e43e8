"""Lightning with ``mlflow.pytorch.autolog()``; told ``failing`` it raises half-way, told ``saving`` it keeps models."""

import sys
from types import SimpleNamespace

import cloudpickle.cloudpickle
import lightning
import mlflow
import torch
from torch.utils.data import DataLoader, TensorDataset

# A pickled class carries a random id.
cloudpickle.cloudpickle.uuid = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex="0" * 32))


class Tiny(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, index):
        if "failing" in sys.argv and self.current_epoch == 1:
            raise ValueError("diverged")
        features, target = batch
        loss = torch.nn.functional.mse_loss(self.layer(features), target)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


lightning.seed_everything(0)
features = torch.randn(16, 3)
loader = DataLoader(TensorDataset(features, features.sum(1, keepdim=True)), batch_size=8)
saving = "saving" in sys.argv
mlflow.pytorch.autolog(
    checkpoint=saving, checkpoint_monitor="train_loss", checkpoint_save_best_only=False, log_models=saving
)
trainer = lightning.Trainer(
    max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
with mlflow.start_run(run_name="autologged"):
    trainer.fit(Tiny(), loader)
