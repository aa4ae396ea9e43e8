"""On a real Slurm, Debian's, of one node: the examples of examples/slurm, with jobs that are requeued and killed."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import slurm
from tests.servers import MlflowServer, free_port
from tests.slurm import Cluster, cluster
from tests.spooling import SOURCE, Ferry, on_server, server_runs, wait_until

from mlferry_spool.layout import find_run

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(slurm.why_not() is not None, reason=f"no Slurm here: {slurm.why_not()}"),
]

EXAMPLES = SOURCE / "examples/slurm"
SCRIPTS = ("prolog.sh", "task_prolog.sh", "epilog.sh")
STEPS = 10_000
SOON_S = 300.0


class Site:
    """A cluster with the examples installed as docs/slurm.md has it, and a user with a home on the shared file system."""

    def __init__(self, root: Path, nodes: Cluster, server: MlflowServer) -> None:
        self.nodes, self.server = nodes, server
        self.home, self.local, self.work = nodes.root.parent / "home", nodes.root.parent / "local", root / "work"
        self.work.mkdir()
        shutil.copytree(EXAMPLES, self.work / "examples/slurm")

    def login(self) -> Ferry:
        """`mlferry` as the user has it on the login node: the spool is the default one of the home."""
        return Ferry(self.home / ".local/share/mlferry", self.home / ".local/state/mlferry", self.server.url)

    def node_reaches(self, url: str, patience_s: int = 300) -> None:
        """What the epilog calls, with the server's address as /etc/mlferry/agent.toml would tell it."""
        (self.nodes.root.parent / "patience").write_text(f"{patience_s}")
        command = self.nodes.root.parent / "mlferry"
        told = f"PYTHONPATH={':'.join(str(SOURCE / part) for part in ('spool', 'sdk', 'agent'))} MLFERRY_TO={url}"
        command.write_text(f'#!/bin/sh\n{told} exec {sys.executable} -m mlferry_agent.main "$@"\n')
        command.chmod(0o755)

    def submit(self, *arguments: str, **environ: str) -> str:
        told = {"HOME": str(self.home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **environ}
        return self.nodes.submit(self.work / "examples/slurm/train.sbatch", *arguments, cwd=self.work, environ=told)

    def reaches(self, job: str, state: str, restarts: int) -> None:
        def holds() -> bool:
            said = self.nodes.says(job)
            assert said["JobState"] in (state, "PENDING", "RUNNING", "COMPLETING"), f"{said}\n{self.log()}"
            return (said["JobState"], int(said["Restarts"])) == (state, restarts)

        wait_until(holds, f"job {job} is {state} after {restarts} restarts", SOON_S)

    def log(self) -> str:
        return (self.work / "job.log").read_text() + self.nodes.words()

    def points(self, run_id: str) -> Counter[int]:
        """How often each step of the loss is on the server."""
        found = server_runs(self.server, run_id)
        points = self.server.metric_points(found[0][0]) if found else []
        return Counter(point.step for point in points if point.key == "loss")


#: What names a machine or a time in the scripts, and what stands for it in these tests.
PLACES = {
    "spools=/local/mlferry": "spools={root}/local",
    "mlferry=/opt/mlferry/bin/mlferry": "mlferry={root}/mlferry",
    "patience_s=60": "patience_s=$(cat {root}/patience)",
    'home=$(getent passwd "$SLURM_JOB_UID" | cut -d: -f6)': "home={root}/home",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """With prolog and epilog as in examples/slurm, but for what names this machine."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        root = Path(name)
        for script in ("prolog.sh", "task_prolog.sh", "epilog.sh"):
            text = (EXAMPLES / script).read_text()
            for place, here in PLACES.items():
                text = text.replace(place, here.format(root=root))
            assert "/local/mlferry\n" not in text
            (root / script).write_text(text)
            (root / script).chmod(0o755)
        (root / "cluster").mkdir()
        (root / "home").mkdir()
        hooks = f"Prolog={root}/prolog.sh\nTaskProlog={root}/task_prolog.sh\nEpilog={root}/epilog.sh"
        with cluster(root / "cluster", hooks) as made:
            yield made


@pytest.fixture
def site(tmp_path: Path, nodes: Cluster, mlflow_server: MlflowServer) -> Site:
    return Site(tmp_path, nodes, mlflow_server)


def test_a_job_that_is_preempted_requeued_and_stopped_is_one_run_without_gap_or_doubled_point(site: Site) -> None:
    with site.login().agent():
        job = site.submit("--steps", str(STEPS), MLFERRY_DIR=str(site.login().spool))
        run_id = f"slurm-tests-{job}"
        wait_until(lambda: len(site.points(run_id)) > 100, "the first attempt's points arrive", SOON_S)
        site.nodes("scontrol", "requeue", job)
        site.reaches(job, "RUNNING", 1)
        before = len(site.points(run_id))
        wait_until(lambda: len(site.points(run_id)) > before + 100, "the second attempt's points arrive", SOON_S)
        site.nodes("scancel", "--signal=TERM", job)  # what the time limit sends, a minute before
        site.reaches(job, "RUNNING", 2)
        site.reaches(job, "COMPLETED", 2)
        wait_until(lambda: len(site.points(run_id)) == STEPS, "everything arrives", SOON_S)
        found = site.server.stored(wait_until(lambda: _finished(site, run_id), "the run is over", SOON_S))
    assert site.points(run_id) == Counter(range(STEPS))
    assert found.params == {"steps": str(STEPS), "learning_rate": "0.01"}
    assert site.login()("verify").returncode == 0


def _finished(site: Site, run_id: str) -> str | None:
    server_id = on_server(site.server, run_id)
    return server_id if site.server.stored(server_id).status == "FINISHED" else None


def test_a_spool_on_the_nodes_own_disk_is_delivered_and_deleted_by_the_epilog(site: Site) -> None:
    site.node_reaches(site.server.url)
    job = site.submit("--steps", "50")
    site.reaches(job, "COMPLETED", 0)
    run_id = f"slurm-tests-{job}"
    wait_until(lambda: not (site.local / job).exists(), "the epilog is over", SOON_S)
    assert site.points(run_id) == Counter(range(50))
    assert _finished(site, run_id)
    assert find_run(site.login().spool, run_id) is None


def test_a_spool_that_the_node_cannot_deliver_goes_to_the_users_own_and_from_there_to_the_server(site: Site) -> None:
    site.node_reaches(f"http://127.0.0.1:{free_port()}", patience_s=10)
    job = site.submit("--steps", "50")
    site.reaches(job, "COMPLETED", 0)
    wait_until(lambda: not (site.local / job).exists(), "the epilog is over", SOON_S)
    run_id = f"slurm-tests-{job}"
    assert server_runs(site.server, run_id) == []
    assert site.login()("sync").returncode == 0
    assert site.points(run_id) == Counter(range(50))
    assert _finished(site, run_id)
    assert site.nodes("sinfo", "--noheader", "--format=%T") == "idle", "an epilog that fails drains its node"
