"""docs/performance.md and its plots, out of what the benchmarks have left in benchmarks/results.

    python benchmarks/report.py        (or: make performance)

What people wrote stands in ``performance.template.md``; a line ``<!-- result: STEM -->`` there becomes the table, the plot
and the notes of ``results/STEM.json``. Results that the template does not name come at the end. Plots are the same bytes for
the same numbers and the same matplotlib: no dates, no random ids.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks import results  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = ROOT / "benchmarks" / "performance.template.md"
DOCUMENT = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "performance"
BARS_INCH, LINES_INCH, WIDTH_INCH = 0.19, 4.0, 8.0
_PLACE = re.compile(r"(?m)^<!-- result: (\w+) -->$")


def load(folder: Path = results.FOLDER) -> dict[str, dict[str, Any]]:
    """Every result by its name. Raises ValueError for one that has not the shape of a result."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    wrong = [f"{stem}: {problem}" for stem, result in found.items() for problem in results.problems(result)]
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def document(found: dict[str, dict[str, Any]], template: str) -> str:
    """The whole text. Raises KeyError if the template names a result that is not there."""
    named = _PLACE.findall(template)
    text = _PLACE.sub(lambda place: section(place[1], found[place[1]]), template).rstrip("\n")
    return "\n\n".join([text, *(section(stem, result) for stem, result in found.items() if stem not in named)]) + "\n"


def section(stem: str, result: dict[str, Any]) -> str:
    """Heading, table, plot, notes, and how it was measured."""
    plot = [f"![{result['title']}](performance/{stem}.svg)"] if result["plot"] else []
    notes = "\n".join(f"* {note}" for note in result["notes"])
    heading = f"## {result['title'].rstrip('.')}"
    return "\n\n".join([heading, table(result["columns"], result["rows"]), *plot, notes, measured(stem, result)])


def table(columns: dict[str, str], rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    marks = ["---:" if all(_is_number(row.get(key)) for row in rows) else "---" for key in columns]
    lines = [[cell(header) for header in columns.values()], marks]
    lines += [[cell(row.get(key)) for key in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """Three digits that count; whole numbers as they are."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 100):
        return f"{value:,.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "\\|")


def measured(stem: str, result: dict[str, Any]) -> str:
    """By which command, when, and on what."""
    on = result["machine"]
    facts = [result["date"], f"{on['cpu']}, {on['cores']} cores", f"Python {on['python']}", f"Linux {on['kernel']}"]
    command = result.get("command") or f"python benchmarks/{script(stem)} --json benchmarks/results/{stem}.json"
    return f"`{command}`: {'; '.join([*facts, on['file_system']])}."


def script(stem: str) -> str:
    """The benchmark of a result: that of its name, else the longest whose name it begins with."""
    scripts = [path.stem for path in (ROOT / "benchmarks").glob("*.py") if stem.startswith(path.stem)]
    return f"{max(scripts, key=len, default=stem)}.py"


def draw(stem: str, result: dict[str, Any], folder: Path = PLOTS) -> None:
    """The plot of a result as ``STEM.svg``."""
    import matplotlib
    from matplotlib.figure import Figure

    plot, is_bar = result["plot"], result["plot"]["kind"] == "bar"
    rows = [row for row in result["rows"] if any(_is_number(row.get(key)) and row.get(key) for key in plot["y"])]
    height = 1.2 + BARS_INCH * len(rows) * (len(plot["y"]) + 0.6) if is_bar else LINES_INCH
    with matplotlib.rc_context({"svg.hashsalt": stem, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(WIDTH_INCH, height), layout="constrained")
        axes = figure.add_subplot()
        (_bars if is_bar else _lines)(axes, rows, plot, result["columns"])
        axes.grid(visible=True, axis="x" if is_bar else "both", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / f"{stem}.svg", metadata={"Date": None, "Creator": None})


def _bars(axes: Axes, rows: list[dict[str, Any]], plot: dict[str, Any], columns: dict[str, str]) -> None:
    """Lying bars, the first row on top, one group a row: names are long."""
    each = 0.8 / len(plot["y"])
    for number, key in enumerate(plot["y"]):
        at = [index + number * each for index in range(len(rows))]
        axes.barh(at, [row.get(key) or 0 for row in rows], each * 0.9, label=columns.get(key, key))
    middle = (len(plot["y"]) - 1) * each / 2
    axes.set_yticks([index + middle for index in range(len(rows))], [str(row[plot["x"]]) for row in rows])
    axes.invert_yaxis()
    _named(axes, plot, columns, axes.set_xlabel)
    if plot.get("log_y"):
        axes.set_xscale("log")


def _lines(axes: Axes, rows: list[dict[str, Any]], plot: dict[str, Any], columns: dict[str, str]) -> None:
    for key in plot["y"]:
        points = [(row[plot["x"]], row[key]) for row in rows if row.get(key) is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=columns.get(key, key))
    axes.set_xlabel(columns.get(plot["x"], plot["x"]))
    _named(axes, plot, columns, axes.set_ylabel)
    axes.set_xscale("log" if plot.get("log_x") else "linear")
    axes.set_yscale("log" if plot.get("log_y") else "linear")


def _named(axes: Axes, plot: dict[str, Any], columns: dict[str, str], label: Any) -> None:
    """One series is named at its axis, several in a legend."""
    if len(plot["y"]) == 1:
        label(columns.get(plot["y"][0], plot["y"][0]))
    else:
        axes.legend(frameon=False)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    found = load()
    DOCUMENT.write_text(document(found, TEMPLATE.read_text(encoding="utf-8")), encoding="utf-8")
    PLOTS.mkdir(exist_ok=True)
    for old in PLOTS.glob("*.svg"):
        old.unlink()
    for stem, result in found.items():
        if result["plot"]:
            draw(stem, result)


if __name__ == "__main__":
    main()
