"""docs/performance.md says what the benchmarks have left in benchmarks/results, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks import report, results

RESULT: dict[str, Any] = {
    **{"benchmark": "b", "title": "What it costs.", "date": "2026-01-01"},
    "machine": {"cpu": "C", "cores": 2, "python": "3", "kernel": "6", "file_system": "ext4"},
    "columns": {"name": "", "us": "median (us)"},
    "rows": [{"name": "one | two", "us": 1.2345, "raw": [1]}, {"name": "three"}],
    "plot": {"kind": "bar", "x": "name", "y": ["us"], "log_y": True},
    "notes": ["Medians of 3."],
}


def test_the_document_is_what_the_results_say() -> None:
    made = report.document(report.load(), report.TEMPLATE.read_text(encoding="utf-8"))
    assert made == report.DOCUMENT.read_text(encoding="utf-8"), "run: make performance"


def test_every_plot_is_there_and_none_besides() -> None:
    plotted = {stem for stem, result in report.load().items() if result["plot"]}
    assert {path.stem for path in report.PLOTS.glob("*.svg")} == plotted, "run: make performance"


def test_the_command_below_a_table_is_one_that_exists() -> None:
    commands = re.findall(r"(?m)^`(?:flock \S+ )?python (\S+\.py)", report.DOCUMENT.read_text(encoding="utf-8"))
    assert len(commands) == len(report.load())
    assert not [script for script in commands if not (report.ROOT / script).exists()]


def test_the_comparison_in_the_readme_says_what_was_measured() -> None:
    text = (report.ROOT / "README.md").read_text(encoding="utf-8")
    place = text[text.index("## Beside others") :].partition("\n## Commands")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in place.splitlines() if line.startswith("| ")][
        1:
    ]
    rows = {row["name"]: row for row in report.load()["peers"]["rows"]}
    assert len(lines) > 10
    for name, *_, lost, _, one_us in lines:
        assert lost == f"{rows[name]['lost']} of {report.cell(round(rows[name]['returned']))}"
        assert one_us == report.cell(rows[name]["one_us"])


def test_a_result_stands_where_the_template_names_it_and_else_at_the_end() -> None:
    made = report.document({"a": RESULT, "b": {**RESULT, "title": "Other"}}, "# P\n\n<!-- result: b -->\n\nBut.\n")
    assert [line for line in made.splitlines() if line.startswith(("#", "But"))] == [
        *("# P", "## Other", "But.", "## What it costs")
    ]
    with pytest.raises(KeyError):
        report.document({}, "<!-- result: c -->\n")


def test_a_table_shows_three_digits_and_a_dash_for_what_was_not_measured() -> None:
    assert report.table(RESULT["columns"], RESULT["rows"]).splitlines() == [
        *("|  | median (us) |", "| --- | ---: |", "| one \\| two | 1.23 |", "| three | – |")
    ]
    assert [report.cell(value) for value in (1234567, 1234.5, 0.0123456, True)] == [
        "1,234,567",
        "1,234",
        "0.0123",
        "yes",
    ]


@pytest.mark.parametrize("kind", ["bar", "line"])
def test_a_plot_has_the_same_bytes_each_time(kind: str, tmp_path: Path) -> None:
    rows = [{"x": number + 1, "us": 2.0**number, "ms": 1.0} for number in range(3)]
    plot = {"kind": kind, "x": "x", "y": ["us", "ms"], "log_y": True}
    made = []
    for _ in range(2):
        report.draw("b", {**RESULT, "rows": rows, "plot": plot}, tmp_path)
        made.append((tmp_path / "b.svg").read_bytes())
    assert made[0] == made[1]
    assert b"median (us)" in made[0]


def test_what_is_written_is_what_the_report_can_show(tmp_path: Path) -> None:
    given = {name: RESULT[name] for name in ("columns", "rows", "notes", "plot")}
    results.write(tmp_path / "b.json", "b", "What it costs.", **given)
    found = report.load(tmp_path)["b"]
    assert {**found, "date": "", "machine": {}} == {**RESULT, "date": "", "machine": {}}
    assert found["machine"]["cores"] > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": None}, "rows is missing"),
        ({"columns": {"p99": "p99"}}, "no row has p99"),
        ({"plot": {"kind": "bar", "x": "name", "y": ["p99"]}}, "no row has p99"),
        ({"plot": {"kind": "pie", "x": "name", "y": ["us"]}}, "pie"),
        ({"notes": []}, "no note"),
        ({"machine": {}}, "machine says nothing of cpu"),
    ],
)
def test_a_result_of_another_shape_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps({**RESULT, **change}))
    with pytest.raises(ValueError, match=told):
        report.load(tmp_path)


def test_a_spread_is_the_median_between_two_percentiles() -> None:
    assert results.spread([5.0, 1.0, 3.0, 2.0, 4.0], "us") == {"us": 3.0, "us_p10": 1.0, "us_p90": 5.0}
