"""Names in records, and how many of them there may be: data, whatever they look like, and bounded work for each."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from tests.fakes.workbench import Workbench, apart
from tests.spooling import SpooledRun

from mlferry_agent import discovery
from mlferry_agent.answers import Answer
from mlferry_agent.requests import ARTIFACTS, Request

#: Never sent, for they would lead elsewhere or arrive changed.
REFUSED = ["..", ".", "../../x", "a/../../x", "/etc/passwd", "", "a//b", "nul\0x", "line\nbreak", "\x1b[2J", "\x7f"]
REFUSED.append("x" * 4096)

#: Plain characters to a server: on Linux these are names of files.
TAKEN = ["C:\\x", "..\\x", "\u202egnp.exe", "a b", "~", "$(id)", "`id`", "-rf", "x?y=1", "http:/elsewhere/x"]


async def test_an_artifact_is_sent_below_its_run_or_not_at_all(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    run = SpooledRun(bench.spool, "e")
    for name in [*REFUSED, *TAKEN]:
        run.artifact(name, name.encode())
    run.end()
    asked: list[str] = []

    def note(request: Request) -> Answer | None:
        if request.path.startswith(ARTIFACTS):
            asked.append(request.path)
        return None

    bench.server.fault = note
    await bench.deliver()
    for name in REFUSED:
        del run.logged.artifacts[name]
    assert apart(bench.server, run.logged) == []
    [made] = bench.server.runs_of(run.run_id)
    root = f"{ARTIFACTS}/{made.experiment_id}/{made.run_id}/artifacts/"
    assert len(asked) == len(TAKEN)
    assert [path for path in asked if not path.startswith(root) or ".." in path.split("/") or not path.isascii()] == []
    with bench.ledger() as ledger:
        assert len(ledger.quarantined(run.run_id)) == len(REFUSED)


def test_each_of_a_million_runs_costs_a_kilobyte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modelled by names alone: no file system is asked."""
    count, root = 20_000, Path("/spool/runs")
    monkeypatch.setattr(
        discovery, "run_directories", lambda _: (root / f"20260101T000000-{number:032x}" for number in range(count))
    )
    tracemalloc.start()
    try:
        found = discovery.discover(root)
        assert len(found) == count
        assert tracemalloc.get_traced_memory()[1] / count < 1400
    finally:
        tracemalloc.stop()


async def test_endless_damage_costs_one_line_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Workbench(tmp_path)
    bad, good = SpooledRun(bench.spool, "e"), SpooledRun(bench.spool, "e")
    for run in (bad, good):
        for step in range(500):
            run.metrics(step, {"loss": 1.0})
        run.end()
    [segment] = bad.directory.rglob("*.seg")
    data = bytearray(segment.read_bytes())
    for at in range(300, len(data) - 100, 60):
        data[at] ^= 0xFF
    segment.write_bytes(data)
    await bench.deliver()
    assert apart(bench.server, good.logged) == []
    with bench.ledger() as ledger:
        [row] = ledger.writers(bad.run_id).values()
        assert row.lost > 300
        assert len(row.trouble or "") < 300
        assert ledger.quarantined(bad.run_id) == []
    assert len(caplog.records) < 10
