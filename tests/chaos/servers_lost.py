"""A server that is not what it was: empty, restored from a backup, or of another release.

What the agent does about each is written in docs/reliability.md ("A server that forgets"). In short: what the server does
not know any more is said and kept, nothing goes into an experiment that is not its own, `mlferry verify` finds what a server
has forgotten, and an agent that starts without its ledger brings back all that the spool holds, once.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from pathlib import Path

from tests.chaos.jobs import Job
from tests.chaos.trial import Trial
from tests.servers import MlflowServer
from tests.spooling import wait_until

_SET_ASIDE = 3

_STRANGERS = 6


def emptied(trial: Trial) -> None:
    """Somebody puts an empty server in the place of the one that half of everything was delivered to."""
    with MlflowServer(trial.folder / "own") as own, trial.using(server=own):
        living = _half_delivered(trial)
        own.kill()
        own.database.unlink()
        shutil.rmtree(own.artifact_root, ignore_errors=True)
        own.start()
        trial.tally.faults["server emptied"] += 1
        strangers = [own.client().create_experiment(f"somebody else's {number}") for number in range(_STRANGERS)]
        later = trial.job("sdk", experiment=living.order.experiment, pace_s=0.02)
        wait_until(lambda: _server_run(trial, later), "a new run is made on the empty server", 60)
        wait_until(lambda: trial.ferry.statuses()[str(living.run_id)]["parked"], "the run that is gone is parked", 60)
        _expect_verdict(trial, "status", _SET_ASIDE)
        trial.finish()
        _start_over(trial)
        trial.settle()
        _expect_untouched(trial, strangers)


def restored(trial: Trial) -> None:
    """A server is restored from a backup: it has forgotten what came after, in runs and files that it knows, too."""
    with MlflowServer(trial.folder / "own") as own, trial.using(server=own):
        living = _half_delivered(trial)
        backup = trial.folder / "backup"
        _back_up(own, backup)
        forgotten = trial.job("sdk", pace_s=0.02)
        for job in trial.jobs:
            if job.is_alive:
                job.await_notes("metrics", 100)
        wait_until(lambda: _server_run(trial, forgotten), "what will be forgotten arrives", 60)
        time.sleep(1)
        own.kill()
        _restore(own, backup)
        own.start()
        trial.tally.faults["server restored from a backup"] += 1
        strangers = [own.client().create_experiment(f"somebody else's {number}") for number in range(_STRANGERS)]
        trial.job("sdk", experiment=forgotten.order.experiment, pace_s=0.02)
        living.await_notes("metrics", len(living.life.of("metrics")) + 100)
        trial.finish()
        trial.end_agent()
        trial.ferry("sync")
        _expect_verdict(trial, "verify", _SET_ASIDE)
        _start_over(trial)
        trial.settle()
        _expect_untouched(trial, strangers)


def _half_delivered(trial: Trial) -> Job:
    """A run that is delivered and finished, one that is being delivered by each kind of training; the first of these."""
    trial.job("sdk")
    trial.jobs[0].await_notes("metrics", 100)
    trial.jobs[0].finish()
    living = trial.job("sdk", pace_s=0.02)
    trial.job("plugin", pace_s=0.02)
    trial.start_agent()
    for job in trial.jobs:
        job.await_notes("metrics", 60)
        wait_until(lambda job=job: _server_run(trial, job), "runs arrive", 60)
    wait_until(lambda: trial.ferry.statuses()[str(trial.jobs[0].run_id)]["status"] == "FINISHED", "one is closed", 60)
    return living


def _server_run(trial: Trial, job: Job) -> bool:
    """Whether the server shows points of a job's run."""
    sql = "SELECT 1 FROM metrics JOIN tags ON metrics.run_uuid = tags.run_uuid WHERE tags.value = ? LIMIT 1"
    return job.run_id is not None and bool(trial.server.query(sql, job.run_id))


def _start_over(trial: Trial) -> None:
    """What an operator does who knows that the server has forgotten: the agent starts again, without its ledger."""
    trial.end_agent()
    shutil.rmtree(trial.ferry.state)
    trial.start_agent()
    trial.await_agent()


def _expect_verdict(trial: Trial, verb: str, code: int) -> None:
    done = trial.ferry(verb)
    if done.returncode != code:
        trial.tally.found.apart.append(f"mlferry {verb}: {done.returncode} instead of {code}: {done.stdout[-1500:]}")


def _expect_untouched(trial: Trial, strangers: list[str]) -> None:
    for experiment_id in strangers:
        runs = trial.server.query("SELECT run_uuid FROM runs WHERE experiment_id = ?", experiment_id)
        if runs:
            trial.tally.found.apart.append(
                f"{len(runs)} runs went into an experiment of somebody else's: {experiment_id}"
            )


def _back_up(server: MlflowServer, to: Path) -> None:
    to.mkdir()
    opened, copied = sqlite3.connect(server.database), sqlite3.connect(to / "database")
    with contextlib.closing(opened) as database, contextlib.closing(copied) as copy:
        database.backup(copy)
    if server.artifact_root.exists():
        shutil.copytree(server.artifact_root, to / "artifacts")


def _restore(server: MlflowServer, backup: Path) -> None:
    for path in server.root.glob(f"{server.database.name}*"):
        path.unlink()
    shutil.rmtree(server.artifact_root, ignore_errors=True)
    shutil.copyfile(backup / "database", server.database)
    if (backup / "artifacts").exists():
        shutil.copytree(backup / "artifacts", server.artifact_root)
