"""Processes that share a run: forked children, spawned ones, the workers of a DataLoader, and what each may end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.spools import only, read_writers, run_ids, told
from tests.unit.sdk.conftest import Program

from mlferry_spool.records import Open, RunEnd


def roles(root: Path, run_id: str) -> list[str]:
    return sorted(only(Open, records)[0].role for records in read_writers(root, run_id).values())


def test_a_forked_child_logs_to_the_run_and_does_not_end_it(program: Program, tmp_path: Path) -> None:
    ended = program("""
import os, sys
import mlferry
with mlferry.start_run() as run:
    mlferry.log_metric("parent", 1.0)
    pid = os.fork()
    if pid == 0:
        mlferry.log_metric("child", 1.0)
        mlferry.log_text("from the child", "child.txt")
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    mlferry.log_metric("parent", 2.0)
print(run.info.run_id)
""")
    assert ended.returncode == 0, ended.stderr
    root = tmp_path / "spool"
    assert run_ids(root) == ended.stdout.split()
    (run_id,) = run_ids(root)
    found = told(root, run_id)
    assert found.values("parent") == [1.0, 2.0]
    assert found.values("child") == [1.0]
    assert found.artifacts == {"child.txt": b"from the child"}
    assert roles(root, run_id) == ["helper", "primary"]
    ends = [only(RunEnd, records) for records in read_writers(root, run_id).values()]
    assert sorted(len(found) for found in ends) == [0, 1]
    assert ended.stderr.count("deliver it with") == 1


@pytest.mark.parametrize("leave", ["1 / 0", "sys.exit(1)", "os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)"])
def test_a_forked_child_that_fails_does_not_fail_the_run(program: Program, tmp_path: Path, leave: str) -> None:
    ended = program(f"""
import os, signal, sys, time
import mlferry
run = mlferry.start_run()
if os.fork() == 0:
    mlferry.log_metric("child", 1.0)
    {leave}
os.wait()
mlferry.log_metric("parent", 1.0)
""")
    assert ended.returncode == 0, ended.stderr
    (run_id,) = run_ids(tmp_path / "spool")
    found = told(tmp_path / "spool", run_id)
    assert found.status == "FINISHED"
    assert found.values("child") == found.values("parent") == [1.0]


def test_a_child_that_logs_nothing_leaves_no_trace(program: Program, tmp_path: Path) -> None:
    ended = program("import os, mlferry\nmlferry.start_run()\nif os.fork() == 0: os._exit(0)\nos.wait()\n")
    assert ended.returncode == 0
    (run_id,) = run_ids(tmp_path / "spool")
    assert roles(tmp_path / "spool", run_id) == ["primary"]


def test_a_run_that_a_forked_child_starts_is_its_own(program: Program, tmp_path: Path) -> None:
    ended = program(
        """
import os
import mlferry
assert mlferry.active_run() is None
if os.fork() == 0:
    mlferry.log_metric("child", 1.0)
else:
    os.wait()
    mlferry.log_metric("parent", 1.0)
""",
        SLURM_JOB_ID="7",
        SLURM_STEP_ID="0",
        SLURM_NTASKS="2",
        SLURM_PROCID="0",
    )
    assert ended.returncode == 0, ended.stderr
    runs = [told(tmp_path / "spool", run_id) for run_id in run_ids(tmp_path / "spool")]
    assert sorted(key for run in runs for key, *_ in run.points) == ["child", "parent"]
    assert [run.status for run in runs] == ["FINISHED"] * 2


MULTIPROCESSING = """
import multiprocessing, warnings
import mlferry

def work(index, run_id):
    if mlferry.active_run() is None:
        mlferry.start_run(run_id=run_id)
    mlferry.log_metric(f"worker{index}", float(index))

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    context = multiprocessing.get_context("METHOD")
    with mlferry.start_run() as run:
        workers = [context.Process(target=work, args=(index, run.info.run_id)) for index in range(3)]
        for worker in workers: worker.start()
        for worker in workers: worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        mlferry.log_metric("parent", 1.0)
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_workers_log_to_the_run(program: Program, tmp_path: Path, method: str) -> None:
    ended = program(MULTIPROCESSING.replace("METHOD", method))
    assert ended.returncode == 0, ended.stderr
    (run_id,) = run_ids(tmp_path / "spool")
    found = told(tmp_path / "spool", run_id)
    assert {key: value for key, value, _, _ in found.points} == {"worker0": 0, "worker1": 1, "worker2": 2, "parent": 1}
    assert len(read_writers(tmp_path / "spool", run_id)) == 4


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_workers_of_a_data_loader_log_to_the_run(program: Program, tmp_path: Path, method: str) -> None:
    ended = program(f"""
import os, warnings
warnings.simplefilter("ignore")
import mlferry
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __init__(self, run_id): self.run_id = run_id
    def __len__(self): return 8
    def __getitem__(self, index):
        if mlferry.active_run() is None: mlferry.start_run(run_id=self.run_id)
        mlferry.log_metric("item", float(index), index)
        return index

if __name__ == "__main__":
    with mlferry.start_run() as run:
        loader = DataLoader(Numbers(run.info.run_id), num_workers=2, multiprocessing_context="{method}")
        for step, batch in enumerate(loader):
            mlferry.log_metric("loss", batch, step)
""")
    assert ended.returncode == 0, ended.stderr
    (run_id,) = run_ids(tmp_path / "spool")
    found = told(tmp_path / "spool", run_id)
    assert sorted(found.values("item")) == sorted(found.values("loss")) == [float(index) for index in range(8)]


def test_everything_that_returned_survives_a_kill(program: Program, tmp_path: Path) -> None:
    ended = program("""
import os, signal
import mlferry
mlferry.start_run()
for step in range(500):
    mlferry.log_metric("loss", float(step), step)
mlferry.log_text("kept", "kept.txt")
mlferry.log_param("p", 1)
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert ended.returncode == -signal.SIGKILL
    (run_id,) = run_ids(tmp_path / "spool")
    found = told(tmp_path / "spool", run_id)
    assert found.values("loss") == [float(step) for step in range(500)]
    assert found.artifacts == {"kept.txt": b"kept"}
    assert found.params == {"p": "1"}
    assert found.status is None
