"""`make chaos` and `make soak`: play scenarios, print the table, and keep its numbers for docs/reliability.md.

Each round of a scenario has a seed of its own, which follows from the seed of the whole; a failure prints the command that
plays that round alone. Same seed, same plan: who is killed, when, which request is cut. What the operating system makes of
it in between is not ours to repeat.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from rich.console import Console
from tests.chaos import catalogue, report
from tests.chaos.catalogue import Scenario
from tests.chaos.jobs import Nursery
from tests.chaos.report import Round
from tests.chaos.trial import Stage, Tally, Trial
from tests.servers import MlflowServer

_console = Console(width=200)


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0 if nothing was lost, doubled, or closed while it lived."""
    told = _parser().parse_args(arguments)
    seed = time.time_ns() % 10**9 if told.seed is None else told.seed
    _console.print(f"SEED={seed}", highlight=False)
    with tempfile.TemporaryDirectory(prefix="mlferry-chaos-") as name:
        root = Path(name)
        with MlflowServer(root / "server") as server, Nursery(root / "nursery.log") as nursery:
            stage = Stage(server, nursery)
            rounds = _play_all(told, stage, root, seed)
    _console.print(report.shown(rounds))
    return int(any(round_.trouble for round_ in rounds))


def _play_all(told: argparse.Namespace, stage: Stage, root: Path, seed: int) -> list[Round]:
    """What was played is kept after each round, so that an hour that is broken off was not for nothing."""
    rounds: list[Round] = []
    for planned in _plan(told, seed):
        rounds.append(_play(stage, root, planned, told.soak))
        if told.keep:
            report.keep("soak" if told.soak else "chaos", rounds, seed)
    return rounds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--soak", action="store_true", help="kills only, again and again")
    parser.add_argument("--minutes", type=float, default=None, help="begin no round of a soak after so long")
    parser.add_argument("--kills", type=int, default=1000, help="begin no round of a soak after so many kills")
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    parser.add_argument("--round", type=int, default=None, help="one round of a soak, by its number")
    parser.add_argument("--keep", action="store_true", help="keep the numbers in docs/reliability.json")
    return parser


#: A scenario, the number of its round, and the round's seed.
Planned = tuple[Scenario, int, int]


def _plan(told: argparse.Namespace, seed: int) -> Iterator[Planned]:
    scenarios = catalogue.soak() if told.soak else catalogue.chaos()
    if not told.soak:
        for number, scenario in enumerate(scenarios):
            if told.only in scenario.name:
                yield scenario, number, seed * 1000 + number
        return
    numbers = count() if told.round is None else [told.round]
    for number in numbers:
        scenario = scenarios[number % len(scenarios)]
        if told.only in scenario.name:
            yield scenario, number, seed * 1000 + number
        if _enough(told):
            return


def _enough(told: argparse.Namespace) -> bool:
    if told.minutes is not None and time.monotonic() - _began >= told.minutes * 60:
        return True
    return told.minutes is None and sum(_killed) >= told.kills


_began = time.monotonic()
_killed: list[int] = []


def _play(stage: Stage, root: Path, planned: Planned, soak: bool) -> Round:
    scenario, number, seed = planned
    if not scenario.possible():
        _console.print(f"- {scenario.name}: left out, it needs {scenario.needs}", highlight=False)
        return Round(scenario.name, Tally(), 0.0, left_out=scenario.needs)
    folder, began = root / f"round-{number}", time.monotonic()
    trial = Trial(stage, folder, random.Random(seed))
    try:
        with trial:
            scenario.play(trial)
    except Exception:
        trial.tally.found.apart.append(traceback.format_exc())
    finally:
        _tidy(stage)
    done = Round(scenario.name, trial.tally, time.monotonic() - began)
    _killed.append(sum(trial.tally.kills.values()))
    _tell(done, number, seed // 1000, soak)
    if not done.trouble:
        shutil.rmtree(folder, ignore_errors=True)
    return done


def _tidy(stage: Stage) -> None:
    """The next scenario finds the server up, whatever this one has done to it."""
    stage.server.await_health()


def _tell(done: Round, number: int, seed: int, soak: bool) -> None:
    mark = "FAILED" if done.trouble else "ok"
    found = done.tally.found
    _console.print(
        f"{mark} {done.name}: {done.kills} kills, {done.faults} faults, {found.records} records,"
        f" {found.stated} stated, {found.lost} lost, {found.doubled} doubled, {done.seconds:.0f} s",
        highlight=False,
    )
    for words in done.trouble:
        _console.print(f"    {words}", highlight=False, markup=False)
    if done.trouble:
        which = f"--soak --round {number}" if soak else f"--only {done.name!r}"
        _console.print(f"    again: python -m tests.chaos --seed {seed} {which}", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
