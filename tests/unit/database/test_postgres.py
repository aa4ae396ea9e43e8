"""The fast lane into PostgreSQL, by either of its drivers: COPY, types and the order of values are its own."""

from __future__ import annotations

import math
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from tests import postgres
from tests.spooling import T0, SpooledRun, stored_point

from mlferry_agent.config import load
from mlferry_agent.database import bulk
from mlferry_agent.database import runs as module
from mlferry_agent.database.importing import import_into
from mlferry_agent.discovery import discover
from mlferry_spool import records


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Postgres]:
    with postgres.cluster() as running:
        yield running


def odd_points(run: SpooledRun) -> None:
    for step, value in enumerate((1.5, math.nan, math.inf, -math.inf, 5e-324, 0.1)):
        run.metrics(step, {"odd \u00fc/value": value})
        run.metrics(step, {"odd \u00fc/value": value})
    run.series(records.Series("columns", b"\0" * 8 * 2_000, (0, 1), (T0, 1)))


@pytest.mark.parametrize("driver", ["postgresql+psycopg", pytest.param("postgresql+psycopg2", marks=pytest.mark.long)])
def test_a_spool_is_written_into_postgresql_once(cluster: postgres.Postgres, tmp_path: Path, driver: str) -> None:
    name = driver.rpartition("+")[2]
    cluster.create(name)
    run = SpooledRun(tmp_path / "spool", "birds")
    odd_points(run)
    run.params({"lr": "0.1"})
    run.tags({"team": "\u00fc\t\\n"})
    run.artifact("a.bin", b"1")
    run.end()
    config = load({"HOME": str(tmp_path)}, {"dir": tmp_path / "spool", "state_dir": tmp_path / "state"})
    told, again = (
        import_into(config, cluster.uri(name, driver), discover(config.dir), artifacts=str(tmp_path / "files"))
        for _ in range(2)
    )
    assert (told.runs["new"], told.rows["metric points"], told.set_aside) == (1, 2_006, 0)
    assert told.there["metric points"] == 6
    assert (again.runs["there"], again.rows.total()) == (1, 0)
    stored = cluster.sql(name, "SELECT key, value, timestamp, step, is_nan FROM metrics")
    points = (
        stored_point(key, math.nan if nan == "t" else float(value), int(at), int(step))
        for key, value, at, step, nan in stored
    )
    assert set(points) == set(run.logged.points)
    latest = cluster.sql(name, "SELECT key, value, step, is_nan FROM latest_metrics ORDER BY key")
    assert latest == [("columns", "0", "1999", "f"), ("odd \u00fc/value", "0.1", "5", "f")]
    assert cluster.sql(name, "SELECT status, run_uuid FROM runs") == [("FINISHED", run.run_id)]
    assert ("team", "\u00fc\t\\n") in cluster.sql(name, "SELECT key, value FROM tags")
    assert [path.read_bytes() for path in (tmp_path / "files").rglob("a.bin")] == [b"1"]
    cluster.sql(name, "DELETE FROM tags WHERE key = 'mlferry.imported'")
    cluster.sql(name, "DELETE FROM metrics WHERE step > 1000")
    mended = import_into(config, cluster.uri(name, driver), discover(config.dir), artifacts=str(tmp_path / "files"))
    assert (mended.rows["metric points"], mended.there["metric points"]) == (999, 1_007 + 6)
    assert cluster.sql(name, "SELECT count(*) FROM metrics") == [("2006",)]


def test_batches_that_have_points_in_common_are_written_once(
    cluster: postgres.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_POINTS", 7)
    monkeypatch.setattr(module, "_PIECE", 2)
    monkeypatch.setattr(module, "_MOST_TOGETHER", 0)
    cluster.create("batches")
    run = SpooledRun(tmp_path / "spool", "birds")
    for step in (*range(30), *range(10, 40)):
        run.metrics(step, {"loss": step / 3, "accuracy": 1.0})
    run.end()
    config = load({"HOME": str(tmp_path)}, {"dir": tmp_path / "spool", "state_dir": tmp_path / "state"})
    told = import_into(config, cluster.uri("batches"), discover(config.dir))
    assert (told.exit_code, told.rows["metric points"], told.there["metric points"]) == (0, 80, 40)
    stored = cluster.sql("batches", "SELECT key, value, timestamp, step FROM metrics")
    assert sorted(stored_point(key, float(value), int(at), int(step)) for key, value, at, step in stored) == sorted(
        set(run.logged.points)
    )
    assert cluster.sql("batches", "SELECT key, step FROM latest_metrics ORDER BY key") == [
        ("accuracy", "39"),
        ("loss", "39"),
    ]


def import_of_many_points(folder: Path, uri: str) -> None:
    """Import a run with more points than for which the run is looked for row by row."""
    run = SpooledRun(folder / "spool", "birds")
    run.series(records.Series("loss", b"\0" * 8 * 2_000, (0, 1), (T0, 1)))
    run.end()
    config = load({"HOME": str(folder)}, {"dir": folder / "spool", "state_dir": folder / "state"})
    told = import_into(config, uri, discover(config.dir))
    assert (told.exit_code, told.rows["metric points"]) == (0, 2_000)


@pytest.fixture
def metrics_connection(cluster: postgres.Postgres, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A connection of a superuser to a database of MLflow's that has one imported run, in a transaction."""
    name = f"checks {zlib.crc32(request.node.name.encode())}"
    import_of_many_points(tmp_path, cluster.create(name).replace("postgresql://", "postgresql+psycopg://"))
    engine = create_engine(cluster.uri(name, "postgresql+psycopg"))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_a_superuser_looks_for_the_run_of_many_points_once(metrics_connection: Any) -> None:
    [(run_id,)] = metrics_connection.exec_driver_sql("SELECT run_uuid FROM runs").fetchall()
    rows = [("other", T0, step, run_id, 1.0, False) for step in range(2_000)]
    before = looks_at_runs(metrics_connection)
    assert bulk.add_points(metrics_connection, [run_id], [rows]) == 2_000
    assert looks_at_runs(metrics_connection) == before + 1
    assert metrics_connection.exec_driver_sql("SHOW session_replication_role").scalar() == "origin"


def looks_at_runs(connection: Any) -> int:
    """How often this transaction has looked for rows of ``runs``."""
    counted = "SELECT seq_scan + idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'runs'"
    return int(connection.exec_driver_sql(counted).scalar())


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TRIGGER own AFTER INSERT ON metrics FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ALTER TABLE metrics ADD CONSTRAINT own FOREIGN KEY (run_uuid) REFERENCES runs(run_uuid) ON DELETE CASCADE",
        "ALTER TABLE metrics ADD CONSTRAINT own UNIQUE (key, step, timestamp, run_uuid, value) DEFERRABLE",
        "ALTER TABLE metrics DROP CONSTRAINT metrics_run_uuid_fkey",
    ],
)
def test_what_the_owner_has_changed_on_the_table_is_not_passed_over(metrics_connection: Any, change: str) -> None:
    metrics_connection.exec_driver_sql(change)
    assert not bulk._may_pass_triggers(metrics_connection)


def test_points_of_a_run_that_is_not_there_are_refused_though_it_is_looked_for_once(metrics_connection: Any) -> None:
    [(there,)] = metrics_connection.exec_driver_sql("SELECT run_uuid FROM runs").fetchall()
    rows = [("other", T0, step, run_id, 1.0, False) for step in range(2_000) for run_id in (there, "0" * 32)]
    with pytest.raises(metrics_connection.dialect.loaded_dbapi.IntegrityError):
        bulk.add_points(metrics_connection, [there, "0" * 32], [rows], surely_new=True)


@pytest.mark.parametrize("twice", ["in the same piece", "in another piece", "in the database"])
def test_a_point_that_comes_twice_is_kept_once_with_all_others(metrics_connection: Any, twice: str) -> None:
    [(run_id,)] = metrics_connection.exec_driver_sql("SELECT run_uuid FROM runs").fetchall()
    pieces = [[("other", T0, step, run_id, 1.0, False) for step in range(at, at + 9)] for at in range(0, 27, 9)]
    again = {"in the same piece": pieces[0][-1], "in another piece": pieces[1][-1]}.get(twice)
    if again is None:
        metrics_connection.exec_driver_sql(
            f"INSERT INTO metrics SELECT 'other', 1.0, {T0}, run_uuid, 5, false FROM runs"
        )
    else:
        pieces[0].append(again)
    assert bulk.add_points(metrics_connection, [run_id], pieces) == (26 if again is None else 27)
    stored = metrics_connection.exec_driver_sql("SELECT step FROM metrics WHERE key = 'other' ORDER BY step")
    assert [step for (step,) in stored] == list(range(27))


def test_a_copy_that_is_refused_before_all_was_sent_loses_nothing(
    metrics_connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(run_id,)] = metrics_connection.exec_driver_sql("SELECT run_uuid FROM runs").fetchall()
    copy = bulk._copy

    def refused(cursor: Any, table: str, pieces: Any) -> None:
        if table == "metrics":
            next(iter(pieces))
            raise metrics_connection.dialect.loaded_dbapi.IntegrityError
        copy(cursor, table, pieces)

    monkeypatch.setattr(bulk, "_copy", refused)
    pieces = [[("other", T0, step, run_id, 1.0, False)] for step in range(5)]
    assert bulk.add_points(metrics_connection, [run_id], pieces) == 5
    assert metrics_connection.exec_driver_sql("SELECT count(*) FROM metrics WHERE key = 'other'").scalar() == 5


def test_trouble_while_points_are_read_leaves_none_of_them_and_no_broken_connection(metrics_connection: Any) -> None:
    [(run_id,)] = metrics_connection.exec_driver_sql("SELECT run_uuid FROM runs").fetchall()

    def pieces() -> Iterator[list[Any]]:
        yield [("other", T0, step, run_id, 1.0, False) for step in range(2_000)]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bulk.add_points(metrics_connection, [run_id], pieces())
    assert metrics_connection.exec_driver_sql("SELECT count(*) FROM metrics WHERE key = 'other'").scalar() == 0


@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
def test_small_runs_are_written_together(cluster: postgres.Postgres, tmp_path: Path, driver: str) -> None:
    name = f"together {zlib.crc32(driver.encode())}"
    cluster.create(name)
    runs = [SpooledRun(tmp_path / "spool", "sweep") for _ in range(30)]
    for number, run in enumerate(runs):
        run.params({"lr": f"{number}"})
        run.series(records.Series("loss", b"\0" * 8 * 50, (0, 1), (T0, 1)))
        run.end()
    config = load({"HOME": str(tmp_path)}, {"dir": tmp_path / "spool", "state_dir": tmp_path / "state"})
    told = import_into(config, cluster.uri(name, driver), discover(config.dir))
    assert (told.exit_code, told.runs, told.rows["metric points"]) == (0, {"new": 30}, 1_500)
    stored = cluster.sql(name, "SELECT run_uuid, count(*) FROM metrics GROUP BY run_uuid")
    assert sorted(stored) == sorted((run.run_id, "50") for run in runs)
    assert len(cluster.sql(name, "SELECT 1 FROM runs WHERE status = 'FINISHED'")) == 30
    again = import_into(config, cluster.uri(name, driver), discover(config.dir))
    assert (again.exit_code, again.runs) == (0, {"there": 30})


def test_a_run_with_many_points_can_not_be_deleted_before_they_are_settled(
    cluster: postgres.Postgres, metrics_connection: Any
) -> None:
    [(run_id,)] = metrics_connection.exec_driver_sql("SELECT run_uuid FROM runs").fetchall()
    rows = [("other", T0, step, run_id, 1.0, False) for step in range(2_000)]
    assert bulk.add_points(metrics_connection, [run_id], [rows]) == 2_000
    database = metrics_connection.exec_driver_sql("SELECT current_database()").scalar()
    with pytest.raises(subprocess.CalledProcessError, match="psql"):
        cluster.sql(database, "SET lock_timeout = '200ms'; SELECT 1 FROM runs FOR UPDATE")
    metrics_connection.rollback()
    assert cluster.sql(database, "SELECT 1 FROM runs FOR UPDATE") == [("1",)]


def test_a_user_who_may_not_switch_triggers_off_imports_all_the_same(
    cluster: postgres.Postgres, tmp_path: Path
) -> None:
    cluster.sql("postgres", "CREATE ROLE plain LOGIN")
    cluster.create("owned")
    cluster.sql("postgres", "ALTER DATABASE owned OWNER TO plain")
    uri = cluster.uri("owned", "postgresql+psycopg").replace("//mlferry@", "//plain@")
    import_of_many_points(tmp_path, uri)
    engine = create_engine(uri)
    with engine.connect() as connection:
        assert not bulk._may_pass_triggers(connection)
        assert connection.exec_driver_sql("SELECT count(*) FROM metrics").scalar() == 2_000
    engine.dispose()


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2"])
def test_names_arrive_whatever_the_environment_says_of_their_encoding(
    cluster: postgres.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    name = f"latin {zlib.crc32(driver.encode())}"
    cluster.create(name)
    run = SpooledRun(tmp_path / "spool", "birds")
    run.metrics(1, {"gr\u00f6\u00dfe": 1.5})
    run.params({"stra\u00dfe": "\u20ac"})
    run.end()
    config = load({"HOME": str(tmp_path)}, {"dir": tmp_path / "spool", "state_dir": tmp_path / "state"})
    with monkeypatch.context() as patch:
        patch.setenv("PGCLIENTENCODING", "LATIN1")
        assert import_into(config, cluster.uri(name, driver), discover(config.dir)).exit_code == 0
    assert cluster.sql(name, "SELECT key, value FROM metrics") == [("gr\u00f6\u00dfe", "1.5")]
    assert cluster.sql(name, "SELECT key, value FROM params") == [("stra\u00dfe", "\u20ac")]
