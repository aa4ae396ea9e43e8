"""An MLflow database, open to be written: of this MLflow's own schema, or made by it, or refused.

What there is little of (experiments, registered models, traces) goes through MLflow's own stores, in this process. What
there is much of goes by statements of our own, over connections that begin a transaction when they say so: SQLite's driver
begins none before a read, and so lets two writers meet half-way.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlferry_agent.errors import BadDatabase, RecordRefused

__all__ = ["Database", "open_database"]

#: Where a server that serves artifacts itself, as MLflow's does by default, says that they are.
PROXIED = "mlflow-artifacts:/"

_KINDS = ("sqlite", "postgresql")

#: Seconds to wait for another writer of an SQLite file.
_BUSY_S = 60

_CACHE_KIB = 64 << 10

#: Seconds after which parts are settled.
_SETTLE_S = 1.0

#: Errors of a driver (PEP 249) that are about values and not about the database.
_VALUES = ("DataError", "IntegrityError")


@dataclass(slots=True)
class Database:
    """Stores and tables of an open database. ``shown``: its address without a password. ``kind``: ``sqlite`` or
    ``postgresql``. ``folder``: where the file of an SQLite database lies.

    Transactions of small runs are parts of a larger one, since each that is made durable costs more than such a run: a part
    is all or nothing, and ``settle`` makes those before it durable. What goes through the stores, which have connections of
    their own, must find everything settled; so must whatever takes long, since others may wait to write.
    """

    shown: str
    kind: str
    folder: Path | None
    engine: Any
    store: Any
    registry: Any
    tables: Any
    _connection: Any = None
    _began: float = 0.0
    _depth: int = 0

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Any]:
        """A connection in a part of a transaction: all that is done in it, or nothing.

        Raises:
            RecordRefused: the database takes no such values. BadDatabase: it cannot be written to.
        """
        with self._errors():
            if self._connection is None:
                self._connection, self._began = self.engine.connect(), time.monotonic()
                self._connection.begin()
            self._depth += 1
            try:
                with self._connection.begin_nested():
                    yield self._connection
            finally:
                self._depth -= 1
        if not self._depth and time.monotonic() - self._began >= _SETTLE_S:
            self.settle()

    @contextlib.contextmanager
    def look(self) -> Iterator[Any]:
        """A connection to read by: that of the part, where there is one, and then what it did is seen. Raises as
        ``transaction``."""
        is_alone = self._connection is None
        with self.transaction() as connection:
            yield connection
        if is_alone:
            self.settle()

    def settle(self) -> None:
        """Make durable what was done. Raises BadDatabase."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with self._errors(), contextlib.closing(connection):
                connection.commit()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, self.engine.dialect.loaded_dbapi.Error) as error:
            if type(error).__name__ in _VALUES:
                raise RecordRefused(f"the database refuses it: {_said(error)}") from error
            raise BadDatabase(f"{self.shown}: {_said(error)}") from error

    def close(self) -> None:
        """Give the connections back; what was not settled is undone."""
        from mlflow import set_tracking_uri

        set_tracking_uri(None)  # type: ignore[arg-type] # which it takes for "forget what was set"
        if self._connection is not None:
            self._connection.close()
        self.engine.dispose()
        gc.unfreeze()


def open_database(uri: str, artifact_root: str | None = None) -> Database:
    """Open a database, whose tables are made by MLflow if it has none yet.

    Args:
        uri: ``sqlite:///...`` or ``postgresql://...``, as `mlflow server --backend-store-uri` has it.
        artifact_root: where artifacts of a new database go: the server's ``--default-artifact-root``.

    Raises:
        BadDatabase: it is none, cannot be reached, or has the tables of another release of MLflow.
    """
    url, shown = _address(uri)
    stores = _mlflow()
    gc.freeze()  # what MLflow's import has made stays: to walk it with each collection takes longer than small runs
    try:
        return _opened(uri, url, shown, artifact_root, *stores)
    except BaseException:
        gc.unfreeze()
        raise


def _opened(
    uri: str, url: Any, shown: str, artifact_root: str | None, store_class: Any, registry_class: Any, utils: Any
) -> Database:
    from sqlalchemy.exc import SQLAlchemyError

    try:
        _check_tables(url, shown, utils)
        store = store_class(uri, artifact_root or _root_of(url, utils) or PROXIED)
        registry = registry_class(uri)
        _know_as_tracking(uri)
        engine = _engine(uri, url.get_backend_name(), utils)
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise BadDatabase(f"{shown}: {_said(error)}") from error
    except Exception as error:
        if type(error).__name__ != "MlflowException":
            raise
        raise BadDatabase(f"{shown}: {_said(error)}") from error
    folder = Path(url.database or ".").absolute().parent if url.get_backend_name() == "sqlite" else None
    return Database(shown, url.get_backend_name(), folder, engine, store, registry, _tables())


def _address(uri: str) -> tuple[Any, str]:
    try:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError:
        raise BadDatabase("MLflow is not installed here: pip install 'mlferry[database]'") from None
    try:
        url = make_url(uri)
        kind = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise BadDatabase("that is no address of a database, such as sqlite:///mlflow.db") from None
    if kind not in _KINDS or (kind == "sqlite" and (not url.database or url.database == ":memory:")):
        raise BadDatabase(f"{kind}: only sqlite:///FILE and postgresql://... can be written; deliver with mlferry sync")
    return url, url.render_as_string(hide_password=True)


def _mlflow() -> tuple[Any, Any, Any]:
    """MLflow's stores; quiet, and without a look at the network."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        from mlflow.store.db import utils
        from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    except ImportError:
        raise BadDatabase("MLflow is not installed here: pip install 'mlferry[database]'") from None
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return SqlAlchemyStore, Registry, utils


def _know_as_tracking(uri: str) -> None:
    """MLflow's registry looks up the model of a version in whatever store the process tracks to."""
    from mlflow import set_tracking_uri

    set_tracking_uri(uri)


def _check_tables(url: Any, shown: str, utils: Any) -> None:
    """MLflow would migrate an old database on its own when tables are missing; that is its owner's to decide."""
    if url.get_backend_name() == "sqlite" and not Path(url.database).exists():
        return
    with _dialled(url) as engine:
        if utils._is_empty_database(engine):
            return
        found, wanted = utils._get_schema_version(engine), utils._get_latest_schema_revision()
        if found == wanted:
            return
        if found is None:
            raise BadDatabase(f"{shown}: it has tables, and they are not MLflow's")
    from mlflow import __version__

    raise BadDatabase(
        f"{shown}: its tables are of revision {found}, MLflow {__version__}, which is installed here, has {wanted}."
        " Install the MLflow of its server here; or, to bring the database to this one, stop the server, take a backup,"
        f" and run: mlflow db upgrade {shown}"
    )


@contextlib.contextmanager
def _dialled(url: Any) -> Iterator[Any]:
    from sqlalchemy import create_engine

    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _root_of(url: Any, utils: Any) -> str | None:
    """Where the server of an existing database puts artifacts: below what its first experiments have, less their ids."""
    from sqlalchemy import inspect, select

    if url.get_backend_name() == "sqlite" and not Path(url.database).exists():
        return None
    experiments = _tables().experiments
    with _dialled(url) as engine:
        if utils._is_empty_database(engine) or not inspect(engine).has_table("experiments"):
            return None
        wanted = select(experiments.c.experiment_id, experiments.c.artifact_location)
        with engine.connect() as connection:
            found = connection.execute(wanted.order_by(experiments.c.experiment_id)).all()
    roots = (location[: -len(str(key)) - 1] for key, location in found if (location or "").endswith(f"/{key}"))
    return next((f"{root}/" if root.endswith(":") else root for root in roots), None)


@dataclass(frozen=True, slots=True)
class Tables:
    """MLflow's tables by their names there."""

    experiments: Any
    runs: Any
    tags: Any
    params: Any
    metrics: Any
    latest_metrics: Any
    datasets: Any
    inputs: Any
    input_tags: Any
    logged_models: Any
    logged_model_metrics: Any
    logged_model_params: Any
    logged_model_tags: Any
    model_version_tags: Any


def _tables() -> Tables:
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.model_registry.dbmodels import models as _registry  # noqa: F401 - brings its tables along
    from mlflow.store.tracking.dbmodels import models as _tracking  # noqa: F401

    return Tables(**{name: Base.metadata.tables[name] for name in Tables.__slots__})


def _engine(uri: str, kind: str, utils: Any) -> Any:
    from sqlalchemy import event

    engine = utils.create_sqlalchemy_engine(uri)
    if kind != "sqlite":
        engine.dialect.use_insertmanyvalues_wo_returning = True  # as with psycopg2: many rows are one statement

        @event.listens_for(engine, "connect")
        def _encoded(connection: Any, _record: Any) -> None:  # whatever PGCLIENTENCODING says
            if hasattr(connection, "set_client_encoding"):  # psycopg2, which does not hear of the statement
                connection.set_client_encoding("UTF8")
                return
            with connection.cursor() as cursor:
                cursor.execute("SET client_encoding TO 'UTF8'")
            connection.commit()

        return engine

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # no transaction but those that we begin
        for pragma in ("foreign_keys = ON", f"busy_timeout = {_BUSY_S * 1000}", f"cache_size = -{_CACHE_KIB}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _said(error: BaseException) -> str:
    """What a driver says, in one line and without the statement."""
    told = str(getattr(error, "orig", None) or error).strip().splitlines()
    return told[0][:300] if told else type(error).__name__
