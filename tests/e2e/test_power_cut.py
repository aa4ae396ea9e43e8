"""The machine of the agent loses its power during a delivery, or has no room: the ledger may forget, and invents nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import faults
from tests.disks import can_mount, disk, fill
from tests.faults import FaultProxy
from tests.servers import MlflowServer
from tests.spooling import Ferry, a_bit_of_everything, differences, unique, wait_until

pytestmark = pytest.mark.skipif(
    not can_mount(), reason="making a disk that loses its power needs root and loop devices"
)


@pytest.mark.parametrize("path", ["runs/create", "log-batch", "mlflow-artifacts", "runs/update"])
def test_a_power_cut_between_the_servers_commit_and_the_ledgers_leaves_nothing_missing_and_nothing_twice(
    mlflow_server: MlflowServer, tmp_path: Path, path: str
) -> None:
    run = a_bit_of_everything(tmp_path / "spool", unique("power cut"))
    with disk(tmp_path / "machine") as machine, FaultProxy(mlflow_server.port) as proxy:
        ferry = Ferry(tmp_path / "spool", machine.path / "state", proxy.url)
        proxy.add(faults.COMMIT_THEN_HANG, path=path)
        with ferry.agent():
            wait_until(lambda: proxy.held, f"{path} is asked for")
            machine.cut_power()
        machine.come_back()
        done = ferry("sync")
        again = ferry("sync")
        assert ferry("verify").returncode == 0
    assert done.returncode == 0, done.stdout + done.stderr
    assert again.returncode == 0, again.stdout + again.stderr
    assert differences(mlflow_server, run.logged) == []


def test_a_ledger_on_a_disk_that_lost_everything_costs_resending_and_no_duplicates(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = a_bit_of_everything(tmp_path / "spool", unique("ledger gone"))
    with disk(tmp_path / "machine") as machine:
        ferry = Ferry(tmp_path / "spool", machine.path / "state", mlflow_server.url)
        assert ferry("sync").returncode == 0
        for file in (machine.path / "state").iterdir():
            file.unlink()
        assert ferry("sync").returncode == 0
    assert differences(mlflow_server, run.logged) == []


@pytest.mark.parametrize("verb", ["agent", "sync"])
def test_who_has_no_room_for_a_ledger_says_so_and_sends_nothing(tmp_path: Path, verb: str) -> None:
    a_bit_of_everything(tmp_path / "spool", "no room", points=3)
    with disk(tmp_path / "machine", 8) as machine, FaultProxy(1) as proxy:
        fill(machine.path)
        done = Ferry(tmp_path / "spool", machine.path / "state", proxy.url)(verb)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
        assert not proxy.seen
