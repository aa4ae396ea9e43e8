"""SIGKILL at random moments: of trainings, their process groups, the agent, the server, and of all of them at once."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.jobs import Job
from tests.chaos.trial import Trial, rest
from tests.servers import Undertaker

#: Seconds between two kills, at most.
_PAUSE_S = 0.5

#: How many of a hundred killed trainings are resumed; the others stay dead, and another one begins.
_RESUMED = 75

#: How many of a hundred killed agents had come to delivering; the others were on their way there.
_AWAKE = 70

ONE_PROCESS, GROUP, AGENT, SERVER, ALL = "one process", "group", "agent", "server", "all"

#: What is drawn from where anything may be killed: a server takes seconds to come back.
_ANY = (*[ONE_PROCESS] * 8, *[GROUP] * 7, *[AGENT] * 5, SERVER, ALL)


def kills(victim: str | None, count: int) -> Callable[[Trial], None]:
    """So many kills of one kind of victim, or of any, while three trainings log and an agent delivers."""

    def scenario(trial: Trial) -> None:
        with Undertaker(trial.server) as undertaker:
            pace_s = 0.004 if victim in (ONE_PROCESS, GROUP) else 0.02
            trial.job("sdk", pace_s=pace_s)
            trial.job("sdk", helper=True, pace_s=pace_s)
            trial.job("plugin", helper=True, pace_s=pace_s)
            trial.start_agent()
            for job in list(trial.jobs):
                job.await_notes("metrics", 5)
            for _ in range(count):
                rest(trial.dice, _PAUSE_S)
                _strike(trial, victim or trial.dice.choice(_ANY), undertaker)
            undertaker.wait()
            trial.settle()

    return scenario


def _strike(trial: Trial, victim: str, undertaker: Undertaker) -> None:
    if victim in (ONE_PROCESS, GROUP):
        job = trial.dice.choice([job for job in trial.jobs if job.is_alive])
        trial.kill_training(job, group=victim == GROUP)
        _go_on(trial, job)
    elif victim == AGENT:
        if trial.dice.randrange(100) < _AWAKE:
            trial.await_agent()
            rest(trial.dice, 1.0)
        trial.kill_agent()
        trial.start_agent()
    elif victim == SERVER:
        _kill_server(trial, undertaker)
    else:
        living = [job for job in trial.jobs if job.is_alive]
        for job in living:
            trial.kill_training(job, group=True)
        trial.kill_agent()
        _kill_server(trial, undertaker)
        trial.start_agent()
        for job in living:
            _go_on(trial, job)


def _kill_server(trial: Trial, undertaker: Undertaker) -> None:
    undertaker.strike()
    trial.tally.kills["server"] += 1


def _go_on(trial: Trial, job: Job) -> None:
    """The run is resumed at once or a little later, or left; then another training takes its place."""
    rest(trial.dice, 0.1)
    if trial.dice.randrange(100) < _RESUMED:
        job.start()
    else:
        trial.job(job.order.kind, helper=job.order.helper, pace_s=job.order.pace_s)
