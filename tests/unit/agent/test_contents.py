"""What people are shown of a run's logs: exact where a number is shown, thinned where a curve is drawn."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.spooling import T0, SpooledRun

from mlferry_agent.contents import Contents, Curve, read_contents
from mlferry_agent.discovery import discover
from mlferry_agent.views.plots import plot, sparkline
from mlferry_spool import records

VALUES = st.one_of(st.floats(allow_nan=True), st.integers(-1000, 1000).map(float))


def contents(root: Path) -> Contents:
    [run] = discover(root)
    return read_contents(run)


@given(st.lists(st.tuples(st.integers(0, 50), VALUES), min_size=1, max_size=40))
def test_what_is_counted_of_a_metric_is_exact(points: list[tuple[int, float]]) -> None:
    curve = Curve()
    for at, (step, value) in enumerate(points):
        curve.add(step, at, value)
    numbers = [value for _, value in points if value == value]
    assert curve.count == len(points)
    assert (curve.least, curve.greatest) == (min(numbers, default=None), max(numbers, default=None))
    last = max(enumerate(points), key=lambda item: (item[1][0], item[0]))
    assert repr(curve.last) == repr((last[1][0], last[0], last[1][1]))


def test_of_a_million_points_some_are_kept_evenly_and_the_last_among_them() -> None:
    curve = Curve()
    for step in range(1_000_000):
        curve.add(step, step, float(step))
    kept = [x for x, _ in curve.points()]
    assert 2_000 <= len(kept) <= 4_097
    assert (kept[0], kept[-1], curve.count) == (0.0, 999_999.0, 1_000_000)
    gaps = {b - a for a, b in itertools.pairwise(kept[:-1])}
    assert max(gaps) <= 2 * min(gaps)


def test_where_steps_tell_nothing_time_does() -> None:
    curve = Curve()
    for at in range(5):
        curve.add(0, T0 + 1000 * at, float(at))
    assert curve.is_by_time
    assert curve.points() == [(float(at), float(at)) for at in range(5)]


def test_only_what_is_new_is_read_again(tmp_path: Path) -> None:
    run = SpooledRun(tmp_path, "e")
    run.metrics(0, {"loss": 1.0})
    found = contents(tmp_path)
    assert (found.curves["loss"].count, found.ended) == (1, False)
    run.metrics(1, {"loss": 0.5})
    run.end("FAILED")
    assert found.refresh() == 3  # a point, the end of the run, the end of the log
    assert (found.curves["loss"].count, found.ended, found.state.status.value) == (2, True, "FAILED")
    assert found.refresh() == 0


def test_points_of_series_and_of_every_writer_make_one_curve(tmp_path: Path) -> None:
    run = SpooledRun(tmp_path, "e")
    other = run.beside()
    other.metrics(9, {"s": 9.0})
    values = records.Series("s", b"\0" * 16, (0, 1), (T0, 1))
    run.series(values)
    for one in (run, other):
        one.end()
    curve = contents(tmp_path).curves["s"]
    assert (curve.count, curve.last[0], curve.points()) == (3, 9, [(0.0, 0.0), (1.0, 0.0), (9.0, 9.0)])


def test_damage_is_counted_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = SpooledRun(tmp_path, "e")
    for step in range(50):
        run.metrics(step, {"loss": 1.0})
    run.end()
    [segment] = run.directory.rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0xFF
    segment.write_bytes(data)
    found = contents(tmp_path)
    assert found.lost >= 1
    assert 0 < found.curves["loss"].count < 50


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([0.0, 1.0], "▁█"),
        ([3.0, 3.0, 3.0], "▁▁▁"),
        ([float(value) for value in range(8)], "▁▂▃▄▅▆▇█"),
        ([-1e308, 1e308], "▁█"),
    ],
)
def test_a_sparkline_shows_the_shape(values: list[float], line: str) -> None:
    assert sparkline([(float(x), value) for x, value in enumerate(values)], 20) == line


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(allow_nan=False, allow_infinity=False)), max_size=200))
def test_a_sparkline_is_never_wider_than_its_place(points: list[tuple[int, float]]) -> None:
    line = sparkline(sorted((float(x), value) for x, value in points), 14)
    assert len(line) == min(len(points), 14)


def test_a_plot_for_a_plain_terminal_is_ascii() -> None:
    drawn = plot([(float(x), math.sin(x)) for x in range(30)], "loss", "step", 60, 12, ascii_only=True)
    assert drawn.isascii()
    assert "loss" in drawn and "*" in drawn and max(map(len, drawn.splitlines())) <= 60
    assert not plot([(0.0, 0.0), (1.0, 1.0)], "loss", "step", 60, 12).isascii()
