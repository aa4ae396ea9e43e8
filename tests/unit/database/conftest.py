"""A spool and an MLflow database beside it, and the fast lane between them, in this process."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.servers import template_database

from mlferry_agent.config import load
from mlferry_agent.database.importing import import_into
from mlferry_agent.database.report import Report
from mlferry_agent.status import everything


@dataclass(frozen=True, slots=True)
class Lane:
    """Writes the spool at ``root`` into ``database``."""

    root: Path
    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "mlflow.sqlite"

    def carry(self, **flags: Any) -> Report:
        """Import everything. ``flags`` are those of the configuration, and ``artifacts``."""
        artifacts = flags.pop("artifacts", None)
        config = load({"HOME": str(self.folder)}, {"dir": self.root, "state_dir": self.folder / "state", **flags})
        runs = everything(config.dir)
        return import_into(config, f"sqlite:///{self.database}", runs, artifacts=artifacts)

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """What the database holds, or what a statement does to it."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(sql, values).fetchall()

    def dump(self) -> list[str]:
        """Every row of every table."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            return sorted(connection.iterdump())

    def tags(self, run_id: str) -> dict[str, str]:
        """The tags of a run."""
        return dict(self.rows("SELECT key, value FROM tags WHERE run_uuid = ?", run_id))

    def reasons(self, report: Report) -> list[str]:
        """What was set aside, and why."""
        return [f"{one.what} {one.name}: {one.reason}" for one in report.aside]


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    folder = tmp_path / "lane"
    folder.mkdir()
    shutil.copyfile(template_database(), folder / "mlflow.sqlite")
    return Lane(tmp_path / "spool", folder)
