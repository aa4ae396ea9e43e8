"""The table of what was done and what came of it: for the terminal, as JSON, and in docs/reliability.md.

Owns the columns. Numbers come from a run and from nowhere else: `make chaos` and `make soak` keep theirs in
docs/reliability.json, from which the document is filled (``tests.house.tables``).
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table
from tests.chaos.trial import Tally

KEPT = Path(__file__).parents[2] / "docs" / "reliability.json"

#: What is kept: the last run of each.
RUNS = ("chaos", "soak")

_COLUMNS = ("kills", "faults", "records", "stated", "lost", "doubled", "closed alive", "seconds")


@dataclass(frozen=True, slots=True)
class Round:
    """One scenario, played once. ``left_out``: what the machine lacks for it."""

    name: str
    tally: Tally
    seconds: float
    left_out: str = ""

    @property
    def kills(self) -> int:
        return sum(self.tally.kills.values())

    @property
    def faults(self) -> int:
        return sum(self.tally.faults.values())

    @property
    def trouble(self) -> list[str]:
        """Everything that is not as it must be."""
        return [*self.tally.found.apart, *self.tally.closed_alive]

    def numbers(self) -> dict[str, int]:
        found = self.tally.found
        values = (
            self.kills,
            self.faults,
            found.records,
            found.stated,
            found.lost,
            found.doubled,
            len(self.tally.closed_alive),
            round(self.seconds),
        )
        return dict(zip(_COLUMNS, values, strict=True))


def rows(rounds: Iterable[Round]) -> list[dict[str, Any]]:
    """A row a scenario, with the sums of its rounds; the last is the sum of all."""
    found: dict[str, dict[str, Any]] = {}
    total: dict[str, Any] = {"name": "all", "rounds": 0, **dict.fromkeys(_COLUMNS, 0)}
    for each in rounds:
        row = found.setdefault(each.name, {"name": each.name, "rounds": 0, **dict.fromkeys(_COLUMNS, 0)})
        if each.left_out:
            row["left out"] = each.left_out
            continue
        for target in (row, total):
            target["rounds"] += 1
            for name, value in each.numbers().items():
                target[name] += value
    return [*found.values(), total]


def shown(rounds: Sequence[Round]) -> Table:
    """For a terminal."""
    table = Table("", "rounds", *_COLUMNS)
    for row in rows(rounds):
        table.add_row(row["name"], *(f"{row[name]:,}" for name in ("rounds", *_COLUMNS)))
    return table


def keep(which: str, rounds: Sequence[Round], seed: int) -> None:
    """Put a run's numbers in the place of the last one's of its kind."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept[which] = {
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "python": platform.python_version(),
        "mlflow": metadata.version("mlflow"),
        "kernel": platform.release(),
        "rows": rows(rounds),
        "kills": _by_victim(rounds),
    }
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _by_victim(rounds: Sequence[Round]) -> dict[str, int]:
    total = Tally()
    for each in rounds:
        total.kills.update(each.tally.kills)
    return dict(sorted(total.kills.items()))


def table(which: str) -> str:
    """For the document, of the last run that was kept."""
    run = json.loads(KEPT.read_text(encoding="utf-8"))[which]
    head = ["", *(("rounds",) if which == "soak" else ()), *_COLUMNS]
    lines = [
        f"`SEED={run['seed']}`, {run['date']}, MLflow {run['mlflow']}, Python {run['python']}.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
    ]
    lines += [_line(row, head[1:]) for row in run["rows"]]
    victims = ", ".join(f"{victim} {number:,}" for victim, number in run["kills"].items())
    return "\n".join([*lines, "", f"Kills by victim: {victims}."])


def _line(row: dict[str, Any], columns: Sequence[str]) -> str:
    if "left out" in row:
        return f"| {row['name']} |" + " |" * len(columns)
    return f"| {row['name']} | " + " | ".join(f"{row[name]:,}" for name in columns) + " |"
