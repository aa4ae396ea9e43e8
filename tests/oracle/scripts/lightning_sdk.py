"""Lightning trainings with two loggers: MLFlowLogger for a server's address, MLFerryLogger for a spool's, without MLflow.

One is trained, tested and logged to afterwards, with the best checkpoint; one is resumed by its run's id, with all of its
checkpoints; one raises in the second epoch.
"""
# ruff: noqa: E402

import contextlib
import os
import sys
import warnings
from argparse import Namespace

address = os.environ["MLFLOW_TRACKING_URI"]
offline = address.startswith("spool:")
if offline:
    os.environ.update(MLFERRY_DIR=address.removeprefix("spool://"), MLFERRY_QUIET="1")
    sys.modules["mlflow"] = None  # importing it raises, as where it is not installed

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")


def logger_of(**told):
    if offline:
        from mlferry.lightning import MLFerryLogger

        return MLFerryLogger(os.environ["MLFLOW_EXPERIMENT_NAME"], **told)
    from lightning.pytorch.loggers import MLFlowLogger

    return MLFlowLogger(os.environ["MLFLOW_EXPERIMENT_NAME"], tracking_uri=address, **told)


class Tiny(lightning.LightningModule):
    def __init__(self, optimizer: dict, layers: list, data: Namespace, long: str, empty: dict, failing: bool) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(3, 1)

    def _loss(self, batch):
        features, target = batch
        return torch.nn.functional.mse_loss(self.layer(features), target)

    def training_step(self, batch, index):
        if self.hparams.failing and self.current_epoch == 1:
            raise ValueError("diverged")
        loss = self._loss(batch)
        self.log_dict({"loss": loss, "weird (name): ü@1": loss * 2})
        return loss

    def test_step(self, batch, index):
        self.log("test/loss", self._loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


lightning.seed_everything(0, verbose=False)
features = torch.randn(16, 3)
loader = DataLoader(TensorDataset(features, features.sum(1, keepdim=True)), batch_size=8)


def model_of(failing: bool = False) -> Tiny:
    return Tiny(
        optimizer={"name": "sgd", "groups": [{"lr": 0.1}, {"lr": 0.2, "momentum": None}]},
        layers=[3, 1],
        data=Namespace(path="/data", rows=16),
        long="x" * 400,
        empty={},
        failing=failing,
    )


def trainer_of(logger, epochs: int, keep: int = 1) -> lightning.Trainer:
    name = f"checkpoints{keep}"
    checkpoints = ModelCheckpoint(dirpath=name, monitor="loss", filename="{epoch}", save_top_k=keep, save_last=True)
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[checkpoints],
    )


model = model_of()
logger = logger_of(
    run_name="trained", tags={"team": "blue", "mlflow.note.content": "*tiny*"}, log_model=True, prefix="p"
)
trainer_of(logger, 2).fit(model, loader)
trainer_of(logger, 1).test(model, loader, verbose=False)
logger.log_metrics({"after": 1, "text": "none"})
logger.experiment.log_param(*([] if offline else [logger.run_id]), "last", True)

logger = logger_of(tags={"mlflow.runName": "resumed"}, log_model=True)
trainer_of(logger, 2, keep=-1).fit(model, loader)
logger = logger_of(run_id=logger.run_id, log_model="all")
trainer_of(logger, 3, keep=-1).fit(model, loader)

logger = logger_of(run_name="failing")
with contextlib.suppress(ValueError):
    trainer_of(logger, 2).fit(model_of(failing=True), loader)
logger.log_metrics({"after": 1.0}, step=9)
