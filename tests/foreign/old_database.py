"""A database as MLflow 1.30 of 2022 left it, with a run in it: made by the migrations of the MLflow here, up to that one."""

from __future__ import annotations

import contextlib
import sqlite3
import sys

from alembic import command
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine

#: "Add creation_time and last_update_time to experiments table".
_REVISION = "97727af70f4d"

_ROWS = """
INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)
    VALUES (1, 'birds', './mlruns/1', 'active');
INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri,
    experiment_id) VALUES (
    '00000000000000000000000000000001', 'old', 'LOCAL', 'ann', 'FINISHED', 1700000000000, 1700000000009,
    'active', './mlruns/1/00000000000000000000000000000001/artifacts', 1);
INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES
    ('loss', 0.5, 1700000000000, '00000000000000000000000000000001', 0, 0),
    ('loss', 0.25, 1700000000001, '00000000000000000000000000000001', 1, 0);
"""


def make(path: str) -> None:
    """Make it."""
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = _get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, _REVISION)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(_ROWS)


if __name__ == "__main__":
    make(sys.argv[1])
