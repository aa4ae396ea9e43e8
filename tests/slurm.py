"""A Slurm cluster of one node for tests that run as root: Debian's slurmctld, slurmd and munged, all in one directory.

Owns its daemons, their configuration and their end. Writes nothing outside the directory, and reads nothing of a Slurm that
this machine may have. No cgroups: ``proctrack/linuxproc`` finds the processes of a job by their parents.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.servers import free_port

_NEEDED = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch", "scontrol")
_UP_S = 60.0

#: cred_expire: seconds that Slurm lets a requeued job wait before it starts again: 120 unless told, 5 at least.
_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/slurmd
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/linear
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=30
ReturnToService=2
{more}
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=all Nodes=node1 Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """What is missing here to start a cluster; None where nothing is."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None if os.geteuid() == 0 else "only root starts Slurm's daemons for others"


class Cluster:
    """A running cluster. ``environ``: what its commands need to find it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}

    def __call__(self, *command: str, **environ: str) -> str:
        """Run one of Slurm's commands and return what it prints; fail with what it complains of."""
        done = subprocess.run(
            command, env={**self.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: Path, *arguments: str, cwd: Path, environ: Mapping[str, str]) -> str:
        """The id of a job that begins with this environment; what it prints goes to ``cwd/job.log``."""
        clean = {name: value for name, value in self.environ.items() if not name.startswith(("MLF", "SLURM_JOB"))}
        told = ("sbatch", "--parsable", "--output=job.log", f"--chdir={cwd}", str(script), *arguments)
        done = subprocess.run(told, env={**clean, **environ}, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().partition(";")[0]

    def says(self, job: str) -> dict[str, str]:
        """What the controller knows of a job: JobState, Restarts, ExitCode and many more."""
        told = self("scontrol", "show", "job", job, "--oneliner")
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def words(self) -> str:
        """The last words of its daemons, for a test that fails."""
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in sorted(self.root.glob("*.log")))


@contextmanager
def cluster(root: Path, more: str = "") -> Iterator[Cluster]:
    """Start one; ``root`` is an empty directory with a short name, for the socket in it. ``more``: lines of slurm.conf."""
    root.chmod(0o755)
    for name in ("state", "slurmd"):
        (root / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    ports = {"port": free_port(), "node_port": free_port()}
    text = _CONFIGURATION.format(root=root, host=host, cpus=os.cpu_count() or 1, more=more, **ports)
    (root / "slurm.conf").write_text(text)
    subprocess.run(["mungekey", "--create", "--keyfile", root / "munge.key"], check=True)
    made = Cluster(root)
    with contextlib.ExitStack() as daemons:
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key"}
        places = [f"--{option}={root}/munge.{ending}" for option, ending in files.items()]
        daemons.enter_context(_daemon(made, "munged", "--foreground", "--force", *places))
        _until(lambda: (root / "munge.socket").exists(), made)
        daemons.enter_context(_daemon(made, "slurmctld", "-D", "-i"))
        daemons.enter_context(_daemon(made, "slurmd", "-D", "-N", "node1"))
        _until(lambda: made("sinfo", "--noheader", "--format=%T").startswith("idle"), made)
        try:
            yield made
        finally:
            # What runs outlives slurmd, and would look for its controller for ever.
            made("scancel", "--full", "--signal=KILL", "--state=RUNNING")
            made("scancel", "--state=PENDING")
            _until(lambda: made("squeue", "--noheader") == "", made)


@contextmanager
def _daemon(made: Cluster, *command: str) -> Iterator[None]:
    with (made.root / f"{command[0]}.out.log").open("wb") as sink:
        process = subprocess.Popen(command, env=made.environ, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(holds: Callable[[], bool], made: Cluster) -> None:
    end = time.monotonic() + _UP_S
    while True:
        with contextlib.suppress(AssertionError):
            if holds():
                return
        assert time.monotonic() < end, f"the cluster did not come up:\n{made.words()}"
        time.sleep(0.05)
