"""Who takes part, in which packages exactly. The one place with versions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MLFLOW = ("mlflow==3.17.2", "msgpack==1.2.4")
OURS = ("msgpack==1.2.4",)


@dataclass(frozen=True, slots=True)
class Peer:
    """``requirements``: of its virtual environment; systems with the same share one. ``has_mlferry``: this working tree is
    installed beside them. ``environment``: on top of the adapter's; ``{directory}`` and ``{server}`` are filled in."""

    name: str
    title: str
    adapter: str
    requirements: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    has_mlferry: bool = False

    @property
    def needs_server(self) -> bool:
        return any("{server}" in value for value in self.environment.values())


PEERS = (
    Peer("floor", "floor: pack, checksum, one write", "floor"),
    Peer("mlferry", "mlferry", "mlferry_sdk", OURS, has_mlferry=True),
    Peer(
        *("mlflow-spool", "MLflow 3.17.2 on mlferry's `spool:`", "mlflow_api", MLFLOW),
        {"MLFLOW_TRACKING_URI": "spool://{directory}/spool"},
        has_mlferry=True,
    ),
    Peer(
        *("mlflow-file", "MLflow 3.17.2, file store", "mlflow_api", MLFLOW),
        {"MLFLOW_TRACKING_URI": "file://{directory}/mlruns"},
    ),
    Peer(
        *("mlflow-sqlite", "MLflow 3.17.2, SQLite store", "mlflow_api", MLFLOW),
        {"MLFLOW_TRACKING_URI": "sqlite:///{directory}/mlflow.db"},
    ),
    Peer(
        *("mlflow-server", "MLflow 3.17.2, server on loopback", "mlflow_api", MLFLOW),
        {"MLFLOW_TRACKING_URI": "{server}"},
    ),
    Peer(
        *("mlflow-async", "MLflow 3.17.2, server, `synchronous=False`", "mlflow_api", MLFLOW),
        {"MLFLOW_TRACKING_URI": "{server}", "MLFLOW_ENABLE_ASYNC_LOGGING": "true"},
    ),
    Peer("wandb", "W&B 0.31.0, offline", "wandb_offline", ("wandb==0.31.0",)),
    Peer("neptune", "Neptune-scale 0.30.0, offline", "neptune_offline", ("neptune-scale==0.30.0",)),
    Peer("comet", "Comet 3.58.8, offline", "comet_offline", ("comet-ml==3.58.8",)),
    Peer("clearml", "ClearML 2.1.12, offline", "clearml_offline", ("clearml==2.1.12",)),
    Peer("swanlab", "SwanLab 0.10.3, offline", "swanlab_offline", ("swanlab==0.10.3",)),
    Peer("trackio", "Trackio 0.43.0, local", "trackio_local", ("trackio==0.43.0",)),
    Peer("aim", "Aim 3.29.1, local", "aim_local", ("aim==3.29.1",)),
    Peer("dvclive", "DVCLive 3.49.1, `log_metric` only", "dvclive_local", ("dvclive==3.49.1",)),
    Peer(
        *("tensorboardx", "TensorBoard: tensorboardX 2.6.5", "tensorboard_x"),
        ("tensorboardX==2.6.5", "tensorboard==2.21.0"),
    ),
    Peer(
        *("tensorboard", "TensorBoard: PyTorch 2.13.0", "tensorboard_torch"),
        ("torch==2.13.0", "tensorboard==2.21.0", "numpy", "setuptools"),
    ),
)
