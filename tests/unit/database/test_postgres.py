"""The fast lane into PostgreSQL, by either of its drivers: COPY, types and the order of values are its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import postgres
from tests.spooling import T0, SpooledRun, stored_point

from mlferry_agent.config import load
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
