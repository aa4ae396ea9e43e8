"""Ranks find the same run without talking; what only looks alike does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.spools import read_writers, run_ids, told

import mlferry
from mlferry import fluent
from mlferry.launch import Launch, derive_run_id, detect
from mlferry.opening import Process

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_PROCID": "3"}


def first_run(environ: dict[str, str], launcher: str = "") -> str:
    return Process(dict(environ), detect(environ, launcher)).identify(None, None).run_id


def test_one_process_is_no_launch() -> None:
    assert detect({}) == Launch()
    assert detect({"WORLD_SIZE": "1", "RANK": "0"}) == Launch()
    assert detect({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}) == Launch()


def test_two_single_processes_never_share_a_run() -> None:
    assert first_run({}) != first_run({})


@pytest.mark.parametrize(
    "common",
    [{**TORCHRUN, "TORCHELASTIC_RUN_ID": "8f3c"}, {**TORCHRUN, **SLURM, "LOCAL_WORLD_SIZE": "2"}],
    ids=["rendezvous", "slurm step"],
)
def test_ranks_of_torchrun_share_a_run(common: dict[str, str]) -> None:
    assert len({first_run({**common, "RANK": str(rank)}) for rank in range(4)}) == 1


def test_ranks_of_a_slurm_step_share_a_run_with_ranks_of_their_own() -> None:
    launches = [detect({**SLURM, "SLURM_PROCID": str(rank)}) for rank in range(8)]
    assert [launch.rank for launch in launches] == list(range(8))
    assert len({first_run({**SLURM, "SLURM_PROCID": str(rank)}) for rank in range(8)}) == 1


def test_a_default_torchrun_is_told_apart_by_the_process_that_started_it() -> None:
    same = [
        first_run({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "RANK": str(rank)}, "boot/12/345") for rank in range(4)
    ]
    assert len(set(same)) == 1
    assert first_run({**TORCHRUN, "TORCHELASTIC_RUN_ID": "none"}, "boot/13/999") != same[0]


def test_ranks_on_several_machines_share_no_run_where_nothing_tells_two_launches_apart() -> None:
    across = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1"}
    assert detect(across, "boot/12/345").job is None
    assert first_run(across, "boot/12/345") != first_run(across, "boot/12/345")
    assert Process(across, detect(across, "x")).undecided


def test_a_rank_that_shares_its_run_with_nobody_says_so_unless_the_run_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    across = {**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1"}
    for name, value in {**across, "MLFERRY_DIR": str(tmp_path), "MLFERRY_QUIET": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fluent, "_process", lambda: Process(across, detect(across, "x")))
    fluent.open_run("f" * 32).end()
    assert not caplog.records
    fluent.open_run().end()
    assert "this run is of this rank alone" in caplog.text and "--rdzv-id" in caplog.text


@pytest.mark.parametrize(
    "other",
    [{"SLURM_JOB_ID": "78"}, {"SLURM_STEP_ID": "1"}, {"SLURM_CLUSTER_NAME": "second"}],
    ids=["array task", "step", "cluster"],
)
def test_another_job_is_another_run(other: dict[str, str]) -> None:
    assert first_run(SLURM) != first_run({**SLURM, **other})


def test_programs_of_a_batch_script_outside_any_step_share_no_run() -> None:
    script = {key: value for key, value in SLURM.items() if key != "SLURM_STEP_ID"}
    assert first_run(script) != first_run(script)


@pytest.mark.parametrize(
    ("common", "name"),
    [(SLURM, "SLURM_RESTART_COUNT"), ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "8f3c"}, "TORCHELASTIC_RESTART_COUNT")],
    ids=["requeue", "elastic restart"],
)
def test_a_restart_is_another_attempt_at_the_same_run(common: dict[str, str], name: str) -> None:
    environments = [{**common, name: "0"}, {**common, name: "2"}]
    first, second = (Process(environ, detect(environ)).identify(None, None) for environ in environments)
    assert first.run_id == second.run_id
    assert first.attempt != second.attempt
    assert (first.resumed, second.resumed) == (False, True)


def test_ranks_share_the_attempt() -> None:
    environments = [{**SLURM, "SLURM_PROCID": str(rank)} for rank in range(3)]
    assert len({Process(environ, detect(environ)).identify(None, None).attempt for environ in environments}) == 1


@pytest.mark.parametrize(
    ("environ", "local_rank", "nodes"),
    [
        ({**SLURM, "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "4", "SLURM_NNODES": "8"}, 1, 4),
        ({**TORCHRUN, "WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}, 1, 2),
        ({**SLURM, "WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": "3", "SLURM_LOCALID": "0", "SLURM_NNODES": "2"}, 3, 2),
        ({"WORLD_SIZE": "4", "RANK": "2"}, 2, 1),
        ({}, 0, 1),
    ],
    ids=["slurm", "torchrun", "torchrun below srun", "nobody says", "one process"],
)
def test_a_rank_knows_its_place_on_its_node_and_how_many_nodes_there_are(
    environ: dict[str, str], local_rank: int, nodes: int
) -> None:
    found = detect({name: value for name, value in environ.items() if value}, "launcher")
    assert (found.local_rank, found.nodes) == (local_rank, nodes)


def test_the_runs_of_a_process_follow_each_other_in_the_same_order_on_each_rank() -> None:
    ranks = [Process(dict(SLURM), detect({**SLURM, "SLURM_PROCID": str(rank)})) for rank in range(2)]
    ids = []
    for rank in ranks:
        first = rank.identify(None, None).run_id
        ids.append(
            [
                first,
                rank.identify(None, first).run_id,
                rank.identify(None, first).run_id,
                rank.identify(None, None).run_id,
            ]
        )
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == 4


def test_a_child_that_one_rank_alone_starts_does_not_shift_the_runs_after_it() -> None:
    ranks = [Process(dict(SLURM), detect({**SLURM, "SLURM_PROCID": str(rank)})) for rank in range(2)]
    first = [rank.identify(None, None).run_id for rank in ranks]
    ranks[0].identify(None, first[0])
    assert ranks[0].identify(None, None).run_id == ranks[1].identify(None, None).run_id


def test_a_chosen_run_id_is_shared_and_its_followers_are_derived() -> None:
    process = Process({"MLFERRY_RUN_ID": "c" * 32, "MLFLOW_RUN_ID": "d" * 32}, Launch())
    assert process.identify(None, None).run_id == "c" * 32
    assert process.identify(None, None).run_id == derive_run_id(f"run/{'c' * 32}", None, 1)


def test_a_derived_id_never_changes_between_versions() -> None:
    """Ranks may run different installations, and a requeued job a newer one."""
    assert derive_run_id("slurm//77/0", None, 0) == "0ac2ca7045b4b204d2a80b5ebe846660"


def test_the_writers_of_a_launch_stand_in_one_run(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(3):
        for name, value in {**SLURM, "SLURM_PROCID": str(rank)}.items():
            monkeypatch.setenv(name, value)
        fluent._process.process = None
        with mlferry.start_run():
            mlferry.log_metric(f"rank{rank}/loss", 1.0)
    (run_id,) = run_ids(spool)
    assert len(read_writers(spool, run_id)) == 3
    opens: list[Any] = told(spool, run_id).opens
    assert sorted(opened.rank for opened in opens) == [0, 1, 2]
    assert len({opened.attempt for opened in opens}) == 1
    assert len({opened.run_name for opened in opens}) == 1
    assert {key for key, *_ in told(spool, run_id).points} == {f"rank{rank}/loss" for rank in range(3)}
