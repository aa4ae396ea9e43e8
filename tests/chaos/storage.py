"""Disks that fill up, fail and turn read-only, below the spool and below the ledger, while trainings log.

Whatever the disk does, no logging call raises; what it did not take is stated in the log by count, logging goes on when it
can, and the end of a run still fits on a full disk. What was stated and what was kept must add up to what was called.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable

from tests.chaos.jobs import Job, interpreter
from tests.chaos.trial import Trial
from tests.disks import Disk, disk, fill, quota, use_up_inodes
from tests.spooling import wait_until
from tests.spools import only, read_run, told

from mlferry_spool.records import Dropped

#: Seconds that trainings go on with a disk that is unwell: several tries of the disk, which is tried once a second.
_UNWELL_S = 2.5

_READY = 30


def _begin(trial: Trial, **order: object) -> None:
    trial.job("sdk", **order)
    trial.job("plugin", **order)
    trial.start_agent()
    _await_all(trial)


def _await_all(trial: Trial) -> None:
    for job in trial.jobs:
        job.await_notes("metrics", _READY)


def _suffer(trial: Trial, what: str, seconds: float = _UNWELL_S) -> None:
    """Time in which the trainings must go on, and do."""
    before = [len(job.life.notes()) for job in trial.jobs]
    trial.tally.faults[what] += 1
    time.sleep(seconds)
    for job, count in zip(trial.jobs, before, strict=True):
        if not job.is_alive or len(job.life.notes()) <= count:
            trial.tally.found.apart.append(f"a training stood still or died: {job.life.words[-1500:]}")


def _await_resumption(trial: Trial) -> None:
    """Until every training's points reach the spool again."""
    after = {id(job): len(job.life.of("metrics")) for job in trial.jobs}

    def resumed(job: Job) -> bool:
        notes = job.life.of("metrics")[after[id(job)] :]
        kept = {(key, step) for key, _, step, _ in told(trial.ferry.spool, str(job.run_id)).points}
        return any((key, step) in kept for step, _, values in notes for key in values)

    for job in trial.jobs:
        wait_until(lambda job=job: resumed(job), f"{job.order.kind} logs again; it says {job.life.words[-800:]}")


def _expect_gaps(trial: Trial) -> None:
    """A scenario in which nothing had to be dropped has shown nothing."""
    for job in trial.jobs:
        if not only(Dropped, read_run(trial.ferry.spool, str(job.run_id))):
            trial.tally.found.apart.append(f"{job.order.kind} states no gap; it says {job.life.words[-800:]}")


def full(cycles: int, *, leave: int = 0, what: str = "disk full", **order: object) -> Callable[[Trial], None]:
    """Exact ENOSPC, again and again; the last time, the trainings end on the full disk.

    ``leave``: bytes of room, enough for records and too little for files.
    """

    def scenario(trial: Trial) -> None:
        with disk(trial.folder / "small", 24) as small, trial.using(spool=small.path / "spool"):
            _begin(trial, **order)
            for cycle in range(cycles):
                filler = fill(small.path, leave=leave)
                _suffer(trial, what)
                if cycle < cycles - 1:
                    filler.unlink()
                    _await_resumption(trial)
            trial.finish()  # with no room left
            _expect_gaps(trial)
            trial.settle(stated_may=True)

    return scenario


def over_quota(cycles: int) -> Callable[[Trial], None]:
    """EDQUOT; the last time, the trainings end with their quota used up."""

    def scenario(trial: Trial) -> None:
        with quota(trial.folder / "small", 6 << 20) as limited, trial.using(spool=limited.path / "spool"):
            _begin(trial)
            for cycle in range(cycles):
                filler = fill(limited.path)
                _suffer(trial, "quota used up")
                if cycle < cycles - 1:
                    filler.unlink()
                    limited.settle()
                    _await_resumption(trial)
            trial.finish()
            _expect_gaps(trial)
            trial.settle(stated_may=True)

    return scenario


def no_inodes(trial: Trial) -> None:
    """No file can be made: open logs go on, files of runs are dropped, and a process that begins then waits for its log."""
    with disk(trial.folder / "small", 16, inodes=128) as small, trial.using(spool=small.path / "spool"):
        _begin(trial)
        files = use_up_inodes(small.path)
        trial.kill_training(trial.jobs[0], group=True)
        trial.jobs[0].start()
        trial.jobs[0].await_notes("metrics", _READY)
        _suffer(trial, "inodes used up")
        shutil.rmtree(files)
        _await_resumption(trial)
        trial.finish()
        _expect_gaps(trial)
        trial.settle(stated_may=True)


def broken(hurt: Callable[[Disk], None], what: str) -> Callable[[Trial], None]:
    """The disk fails for good, and another one with the same content takes its place."""

    def scenario(trial: Trial) -> None:
        with disk(trial.folder / "small", 24) as small, trial.using(spool=small.path / "spool"):
            _begin(trial)
            with (
                contextlib.ExitStack() as still
            ):  # what is written while the disk is made durable would be lost with it
                for job in trial.jobs:
                    still.enter_context(job.life.stopped())
                hurt(small)
            _suffer(trial, what)
            small.replace()
            _await_resumption(trial)
            trial.finish()
            _expect_gaps(trial)
            trial.settle(stated_may=True)

    return scenario


def limited_files(trial: Trial) -> None:
    """RLIMIT_FSIZE: short writes, then EFBIG. Records go on in another file; a file that is too large is dropped."""
    source = trial.folder / "large.bin"
    source.write_bytes(trial.dice.randbytes(100_000))
    trial.job("sdk", file_limit=30_000, source=str(source), pace_s=0.001)
    trial.start_agent()
    _await_all(trial)
    _suffer(trial, "file size limit", 3.0)
    trial.finish()
    segments = len(list(trial.ferry.spool.rglob("*.seg")))
    if segments < 3:
        trial.tally.found.apart.append(f"the limit was hardly met: {segments} segments")
    _expect_gaps(trial)
    trial.settle(stated_may=True)


def failing_sync(trial: Trial) -> None:
    """EIO from every second fdatasync, then from all for a while: what may not be on the disk is written again."""
    inject = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=2..12+2")
    bear = interpreter("strace", "-f", "-qq", "-o", "/dev/null", *inject, MLFERRY_FSYNC="interval")
    trial.job("sdk", bear=bear, pace_s=0.02)
    trial.start_agent()
    _await_all(trial)
    _suffer(trial, "fdatasync fails", 8.0)
    trial.finish()
    if len(list(trial.ferry.spool.rglob("*.seg"))) < 2:
        trial.tally.found.apart.append("no sync that failed made a new segment")
    trial.settle(stated_may=True)  # a file that could not be made durable is no artifact


# -- the disk of the ledger ---------------------------------------------------


def ledger_full(cycles: int) -> Callable[[Trial], None]:
    """The agent cannot note what was acknowledged: it sends nothing that it could not recognise, and goes on with room."""

    def scenario(trial: Trial) -> None:
        with disk(trial.folder / "small", 8) as small, trial.using(state=small.path / "state"):
            _begin(trial, pace_s=0.02)
            for _ in range(cycles):
                _await_arrival(trial)
                filler = fill(small.path)
                trial.job("sdk", pace_s=0.02)  # a run that has to be made meanwhile
                _suffer(trial, "ledger's disk full", 3.0)
                filler.unlink()
            _await_arrival(trial)
            trial.settle()

    return scenario


def ledger_broken(hurt: Callable[[Disk], None], what: str) -> Callable[[Trial], None]:
    """The ledger's disk fails for good; an agent is started again when another one is in its place."""

    def scenario(trial: Trial) -> None:
        with disk(trial.folder / "small", 16) as small, trial.using(state=small.path / "state"):
            _begin(trial, pace_s=0.02)
            _await_arrival(trial)
            hurt(small)
            trial.job("sdk", pace_s=0.02)
            _suffer(trial, what, 3.0)
            trial.end_agent()
            small.replace()
            trial.start_agent()
            _await_arrival(trial)
            trial.settle()

    return scenario


def _await_arrival(trial: Trial) -> None:
    """Until the server has points of the present life of every training."""

    def arrived(job: Job) -> bool:
        sql = "SELECT count(*) FROM metrics JOIN tags ON metrics.run_uuid = tags.run_uuid WHERE tags.value = ? AND step > ?"
        last = job.life.of("metrics")[-1][0] - 50
        return bool(trial.server.query(sql, str(job.run_id), last)[0][0])

    for job in trial.jobs:
        job.await_notes("metrics", _READY)
        wait_until(lambda job=job: arrived(job), "points arrive", 60)
