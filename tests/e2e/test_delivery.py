"""Delivery to a real MLflow server: what arrives is what was logged, while it is logged and afterwards."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from tests.servers import MlflowServer
from tests.spooling import (
    T0,
    Ferry,
    Logged,
    SpooledRun,
    a_bit_of_everything,
    differences,
    live_writer,
    on_server,
    server_runs,
    stored_point,
    unique,
    wait_for_arrival,
    wait_until,
)

import mlferry
from mlferry_agent import verification
from mlferry_agent.config import Config
from mlferry_agent.syncing import verify
from mlferry_spool import records
from mlferry_spool.blobs import Blobs
from mlferry_spool.layout import new_run_directory

ALL, SET_ASIDE = 0, 3


@pytest.fixture
def ferry(tmp_path: Path, mlflow_server: MlflowServer) -> Ferry:
    """A spool of the test's own and the shared server."""
    return Ferry(tmp_path / "spool", tmp_path / "state", mlflow_server.url)


def deliver(ferry: Ferry, exit_code: int = ALL) -> None:
    done = ferry("sync")
    assert done.returncode == exit_code, done.stdout + done.stderr


# -- fidelity ---------------------------------------------------


def test_every_number_that_a_float_can_be_arrives_to_the_last_bit(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = SpooledRun(ferry.spool, unique("numbers"))
    odd = [math.nan, math.inf, -math.inf, -0.0, 5e-324, -5e-324, sys.float_info.max, 0.1, 2.0**53 + 2, 1e22]
    for step, value in enumerate(odd):
        run.metrics(step, {"odd": value})
    for step in (-1, -(2**62), 2**62, -(2**63), 2**63 - 1):
        run.metrics(step, {"far": 1.0}, timestamp=T0)
    for value in (1.0, 2.0, 1.5):  # one step, several values: all are kept
        run.metrics(7, {"same step": value}, timestamp=T0)
    run.end()
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []
    stored = mlflow_server.metric_points_by_api(on_server(mlflow_server, run))
    assert stored == sorted(run.logged.points, key=repr)


def test_texts_of_every_script_and_length_arrive(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = SpooledRun(ferry.spool, unique("texts"))
    run.params({"größe/學習率": "0.1 ‰ \N{SNOWMAN}", "empty": "", "lines": "a\nb\tc\x01", "long": "x" * 6000})
    for part in range(2):
        run.params({f"p{part} {number}": "y" * 5000 for number in range(125)})
    run.tags({"ключ": "значение \N{GRINNING FACE}", "long": "é" * 8000, "mlflow.note.content": "# a note"})
    run.end()
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []


def test_series_arrive_point_by_point(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    from array import array

    run = SpooledRun(ferry.spool, unique("series"))
    values = array("d", [math.nan, math.inf, -0.0, *(number / 7 for number in range(2_500))]).tobytes()
    count = len(values) // 8
    run.series(records.Series("regular", values, (0, 10), (T0, 5)))
    steps, times = array("q", [(-1) ** n * n * n for n in range(count)]), array("q", [T0 + n * n for n in range(count)])
    run.series(records.Series("irregular", values, steps.tobytes(), times.tobytes()))
    run.end()
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []


def test_arrays_and_what_torch_saves_into_the_spool_are_delivered_exactly(
    ferry: Ferry, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFERRY_DIR", str(ferry.spool))
    random, count = np.random.default_rng(7), 1_203
    values = random.standard_normal(count)
    values[:5] = math.nan, math.inf, -math.inf, -0.0, 5e-324
    jitter = T0 + np.cumsum(random.integers(1, 300, count))
    columns: dict[str, tuple[Any, Any]] = {
        "regular": (np.arange(count) * 3, jitter - jitter % 2),
        "jittered": (np.cumsum(random.integers(1, 9, count)), jitter),
        "huge": (random.integers(-(2**63), 2**63 - 1, count), random.integers(0, 2**63 - 1, count)),
        "huge and near": (2**63 - 1 - random.integers(0, 70_000, count), 2**63 - 1 - np.arange(count)),
    }
    with mlferry.open_run(experiment_name=unique("arrays")) as run:
        for key, (steps, times) in columns.items():
            run.log_series(key, values, steps, times)
        run.log_series("tensor", torch.from_numpy(values), torch.arange(count), columns["jittered"][1])
        with run.open_artifact("checkpoints/last.pt") as file:
            torch.save({"weights": torch.from_numpy(values)}, file)
    columns["tensor"] = (np.arange(count), jitter)
    deliver(ferry)
    logged = [
        stored_point(key, value, at, step)
        for key, (steps, times) in columns.items()
        for value, step, at in zip(values.tolist(), steps.tolist(), times.tolist(), strict=True)
    ]
    there = on_server(mlflow_server, run.info.run_id)
    assert mlflow_server.metric_points(there) == sorted(logged, key=repr)
    saved = torch.load(io.BytesIO(mlflow_server.artifacts(there)["checkpoints/last.pt"]))
    assert saved["weights"].numpy().tobytes() == values.tobytes()


def test_a_deleted_tag_is_gone_and_the_last_value_of_a_tag_counts(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = SpooledRun(ferry.spool, unique("tags"))
    for number in range(120):
        run.tags({"again": str(number), f"one of many {number}": "x"})
        run.delete_tag("one of many 5" if number == 50 else "never there")
    run.tags({"back": "1"})
    run.delete_tag("back")
    run.tags({"back": "2"})
    run.end()
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []


def test_datasets_arrive_with_the_texts_that_were_too_long_for_a_record(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    run = SpooledRun(ferry.spool, unique("datasets"))
    schema = '{"columns": "' + "ü" * 400_000 + '"}'
    blob = Blobs(run.directory).put_bytes(schema.encode())
    reference = records.BlobRef(blob.sha256, blob.size)
    tags = {"mlflow.data.context": "validation", "extra": "1"}
    run.dataset(records.Dataset("large", "d1", "local", '{"uri": "/data"}', reference, '{"rows": 3}', tags))
    run.dataset(records.Dataset("small", "d2", "http", '{"url": "https://example.org"}'))
    run.end()
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []
    found = {found["name"]: found for found in mlflow_server.inputs(on_server(mlflow_server, run))}
    assert (found["large"]["schema"], found["large"]["profile"], found["large"]["tags"]) == (
        schema,
        '{"rows": 3}',
        tags,
    )
    assert (found["small"]["digest"], found["small"]["source_type"]) == ("d2", "http")


def test_a_file_that_was_logged_three_times_ends_as_it_was_logged_last(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    run = SpooledRun(ferry.spool, unique("overwritten"))
    for size in (900_000, 10, 400_000):  # smaller files go first, but never past their own path
        run.artifact("model.bin", os.urandom(size))
        run.artifact(f"beside-{size}.bin", b"x" * size)
    run.end()
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []


def test_a_hundred_small_files_arrive_under_their_names(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = SpooledRun(ferry.spool, unique("files"))
    for number in range(96):
        run.artifact(f"plots/{number % 7}/{number}.txt", b"" if number == 3 else f"file {number}".encode())
    for name in ("ein Bild mit Leerzeichen.png", "größe/學.bin", "100%.txt", "a+b&c=d;e.txt"):
        run.artifact(name, name.encode())
    run.end()
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []
    assert mlflow_server.artifacts_by_api(on_server(mlflow_server, run)).keys() == run.logged.artifacts.keys()


async def test_delivery_from_python_returns_the_verdict(
    ferry: Ferry, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFERRY_STATE_DIR", str(ferry.state))
    run = a_bit_of_everything(ferry.spool, unique("python"))
    assert not mlferry.status(dir=ferry.spool, to=mlflow_server.url).complete
    found = await mlferry.sync_async(run.run_id, dir=ferry.spool, to=mlflow_server.url)
    assert (found.complete, found.pending, found.runs[0].server_run_id) == (True, 0, on_server(mlflow_server, run))
    assert differences(mlflow_server, run.logged) == []


_WITH_PEAK = """
import sys
from pathlib import Path
from mlferry_agent.main import main
sys.argv = ["mlferry", "sync", "--quiet"]
code = main()
# getrusage's maximum would count what the parent held before exec.
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


def test_a_large_file_takes_no_more_memory_than_a_small_one(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    def peak_kib() -> int:
        done = subprocess.run([sys.executable, "-c", _WITH_PEAK], env=ferry.env(), capture_output=True, check=True)
        return int(done.stdout.split()[-2])

    small = SpooledRun(ferry.spool, unique("memory"))
    small.artifact("small.bin", os.urandom(1000))
    small.end()
    before = peak_kib()
    large = SpooledRun(ferry.spool, small.experiment)
    large.artifact("large.bin", os.urandom(1 << 20) * 200)
    large.end()
    after = peak_kib()
    assert differences(mlflow_server, large.logged) == []
    assert after - before < 40 << 10, f"{after - before} KiB more for a file of 200 MiB"


# -- runs and writers ---------------------------------------------------


def test_a_child_names_its_parent_by_the_servers_id_even_when_it_is_delivered_first(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    experiment = unique("nested")
    parent = SpooledRun(ferry.spool, experiment, run_name="parent")
    child = SpooledRun(ferry.spool, experiment, run_name="child", parent_run_id=parent.run_id)
    grandchild = SpooledRun(ferry.spool, experiment, run_name="grandchild", parent_run_id=child.run_id)
    grandchild.writer.put(records.Tags(T0, {"mlflow.parentRunId": child.run_id}))
    for run in (grandchild, child, parent):
        run.metrics(0, {"depth": 1.0})
        run.end()
    done = ferry("sync", grandchild.run_id)
    assert done.returncode == ALL, done.stderr
    deliver(ferry)
    ids = [on_server(mlflow_server, run) for run in (parent, child, grandchild)]
    parents = [mlflow_server.stored(server_id).tags.get("mlflow.parentRunId") for server_id in ids]
    assert parents == [None, ids[0], ids[1]]
    grandchild.logged.tags["mlflow.parentRunId"] = ids[1]
    assert [differences(mlflow_server, run.logged) for run in (parent, child, grandchild)] == [[], [], []]


@pytest.mark.parametrize("directories", [1, 2])
def test_ranks_of_one_job_make_one_run(ferry: Ferry, mlflow_server: MlflowServer, directories: int) -> None:
    run = SpooledRun(ferry.spool, unique("ranks"), rank=0, attempt="a job")
    other = new_run_directory(ferry.spool, run.run_id, T0 + 5_000)
    ranks = [run]
    for rank in (1, 2, 3):
        place = {"directory": other} if directories == 2 and rank % 2 else {}
        ranks.append(run.beside(rank=rank, attempt="a job", **place))
    for number, part in enumerate(ranks):
        for step in range(700):
            part.metrics(step, {f"rank {number}/loss": float(step), "shared": float(number)})
        part.artifact(f"rank-{number}.bin", os.urandom(50_000))
    for number, part in enumerate(ranks):
        part.end(end_time=T0 + 1_000_000 + number)
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []
    assert mlflow_server.stored(on_server(mlflow_server, run)).end_time == T0 + 1_000_003


def test_a_run_of_which_one_rank_failed_has_failed(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = SpooledRun(ferry.spool, unique("ranks"), rank=0, attempt="a job")
    run.beside(rank=1, attempt="a job").end("FAILED")
    run.end("FINISHED")
    run.logged.status = "FAILED"
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []


def test_a_resumed_run_goes_on_in_the_same_run_of_the_server(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    experiment = unique("resumed")
    with live_writer(ferry.spool, experiment) as first:
        first.await_steps(200)
        first.kill()
    first.logged.status = "KILLED"
    deliver(ferry)
    assert differences(mlflow_server, first.logged) == []
    [directory] = (ferry.spool / "runs").iterdir()
    second = SpooledRun(ferry.spool, experiment, logged=first.logged, directory=directory, resumed=True)
    second.metrics(10_000, {"loss": 0.5})
    deliver(ferry)
    first.logged.status = "RUNNING"
    assert differences(mlflow_server, first.logged) == []
    second.end()
    deliver(ferry)
    assert differences(mlflow_server, first.logged) == []


_FORKING = """
import os, sys
from pathlib import Path
from mlferry_spool import records
from mlferry_spool.writer import Writer
directory, run_id, experiment = sys.argv[1:]
opening = records.Open(writer_id="the-parent", run_id=run_id, experiment_name=experiment, start_time=1_700_000_000_000)
writer = Writer(Path(directory), opening)
writer.append(4, (1_700_000_000_000, 0, {"parent": 0.0}))
for number in range(3):
    child = os.fork()
    if child == 0:
        for step in range(100):
            writer.append(4, (1_700_000_000_000 + step, step, {f"child {number}": float(step)}))
        os._exit(9)  # as a DataLoader worker that is killed: no end is written
    os.waitpid(child, 0)
writer.append(4, (1_700_000_000_001, 1, {"parent": 1.0}))
writer.close(records.RunEnd(1_700_000_900_000, "FINISHED"))
"""


def test_what_forked_helpers_log_arrives_and_their_death_is_not_the_runs(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    logged = Logged(uuid.uuid4().hex, status="FINISHED")
    directory = new_run_directory(ferry.spool, logged.run_id, T0)
    words = [str(directory), logged.run_id, unique("forked")]
    subprocess.run([sys.executable, "-c", _FORKING, *words], env=ferry.env(), check=True)
    logged.points.update(stored_point("parent", float(step), T0 + step, step) for step in range(2))
    for child in range(3):
        logged.points.update(stored_point(f"child {child}", float(step), T0 + step, step) for step in range(100))
    deliver(ferry)
    assert differences(mlflow_server, logged) == []


# -- the agent beside a living run ---------------------------------------------------


def test_points_appear_while_the_run_lives_and_it_is_closed_soon_after_its_death(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    with ferry.agent(), live_writer(ferry.spool, unique("live")) as live:
        live.await_steps(100)
        wait_until(lambda: server_runs(mlflow_server, live.logged.run_id), "the run appears")
        server_id = on_server(mlflow_server, live.logged.run_id)
        wait_until(lambda: len(mlflow_server.metric_points(server_id)) >= live.steps, "its points appear")
        live.await_steps(300)
        wait_until(lambda: len(mlflow_server.metric_points(server_id)) >= live.steps, "new points appear")
        assert mlflow_server.stored(server_id).status == "RUNNING"
        live.kill()
        live.logged.status = "KILLED"
        wait_for_arrival(mlflow_server, live.logged, 15)


def test_the_first_run_of_a_spool_that_was_not_there_is_seen_at_once(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with ferry.agent(log=log):
        wait_until(lambda: log.exists() and "idle" in log.read_text(), "the agent has looked and found nothing")
        with live_writer(ferry.spool, unique("first")) as live:
            live.await_steps(1)
            # Far below the 15 seconds after which the whole spool is looked at in any case.
            wait_until(lambda: server_runs(mlflow_server, live.logged.run_id), "the run appears", 8)


def test_an_idle_agent_hardly_uses_the_processor(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    runs = [a_bit_of_everything(ferry.spool, unique("idle"), points=20, files=1) for _ in range(10)]
    still_open = SpooledRun(ferry.spool, runs[0].experiment)
    still_open.metrics(0, {"loss": 1.0})
    with ferry.agent() as agent:
        for run in [*runs, still_open]:
            wait_for_arrival(mlflow_server, run.logged)
        process = psutil.Process(agent.pid)
        before, began = process.cpu_times(), time.monotonic()
        threading.Event().wait(5)
        after, took = process.cpu_times(), time.monotonic() - began
    used = (after.user - before.user + after.system - before.system) / took
    print(f"idle: {used:.1%} of a processor")
    assert used < 0.10
    still_open.end()


def test_a_second_agent_on_the_same_ledger_says_so_and_leaves(ferry: Ferry, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ferry.agent(log=log):
        wait_until(lambda: log.exists() and "destination" in log.read_text(), "the first agent is up")
        second = ferry("agent")
    assert second.returncode == 1
    assert "Another mlferry process delivers by this ledger" in second.stderr
    assert "Traceback" not in second.stderr


def test_sync_beside_a_running_agent_watches_it_and_returns(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    first = a_bit_of_everything(ferry.spool, unique("beside"))
    with ferry.agent():
        wait_for_arrival(mlflow_server, first.logged)
        second = a_bit_of_everything(ferry.spool, first.experiment, points=3000)
        done = ferry("sync")
        assert done.returncode == ALL, done.stdout + done.stderr
        assert "An agent is delivering this spool" in done.stderr
        assert differences(mlflow_server, second.logged) == []


def test_an_agent_that_is_told_to_stop_ends_in_order(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    run = SpooledRun(ferry.spool, unique("stopped"))
    for step in range(30_000):
        run.metrics(step, {"loss": float(step)})
    run.end()
    with ferry.agent() as agent:
        wait_until(lambda: server_runs(mlflow_server, run.run_id), "delivery begins")
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=30) == 0
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []


def test_a_ledger_that_is_lost_costs_neither_records_nor_doubles(ferry: Ferry, mlflow_server: MlflowServer) -> None:
    runs = [a_bit_of_everything(ferry.spool, unique("lost ledger")) for _ in range(3)]
    deliver(ferry)
    ids = [on_server(mlflow_server, run) for run in runs]
    for file in ferry.state.glob("*.sqlite*"):
        file.unlink()
    deliver(ferry)
    assert [differences(mlflow_server, run.logged) for run in runs] == [[], [], []]
    assert [on_server(mlflow_server, run) for run in runs] == ids


def test_a_spool_that_was_copied_elsewhere_goes_to_the_same_runs(
    ferry: Ferry, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = a_bit_of_everything(ferry.spool, unique("copied"))
    deliver(ferry)
    elsewhere = Ferry(tmp_path / "copy", tmp_path / "other state", mlflow_server.url)
    subprocess.run(["cp", "-a", str(ferry.spool), str(elsewhere.spool)], check=True)
    deliver(elsewhere)
    assert differences(mlflow_server, run.logged) == []


async def test_a_run_of_more_points_than_fit_in_memory_is_verified_in_groups(
    ferry: Ferry, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = SpooledRun(ferry.spool, unique("groups"))
    for step in range(30):
        run.metrics(step, {f"m{key}": float(step) for key in range(10)})
    run.end()
    deliver(ferry)
    monkeypatch.setattr(verification, "_POINTS_AT_ONCE", 70)
    folds: list[tuple[str, ...]] = []
    fold = verification._Spooled.fold
    monkeypatch.setattr(verification._Spooled, "fold", lambda self, keys: (folds.append(keys), fold(self, keys))[1])
    config = Config(to=mlflow_server.url, dir=ferry.spool, state_dir=ferry.state)
    [found] = await verify(config, {}, [])
    assert (found.differences, found.points) == ([], 300)
    assert [len(keys) for keys in folds] == [0, 2, 2, 2, 2, 2]


def test_a_clock_that_goes_back_while_a_process_logs_changes_nothing_of_what_comes_last(
    ferry: Ferry, mlflow_server: MlflowServer
) -> None:
    run = SpooledRun(ferry.spool, unique("clock"))
    for time_ms, value in ((T0 + 86_400_000, "first"), (T0, "last")):
        assert run.writer.put(records.Tags(time_ms, {"state": value}))
    run.logged.tags["state"] = "last"
    run.end()
    deliver(ferry)
    assert differences(mlflow_server, run.logged) == []
    verified = ferry("verify")
    assert verified.returncode == 0, verified.stdout
