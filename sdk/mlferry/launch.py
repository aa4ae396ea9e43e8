"""Which launch this process is part of, and which run and attempt follow from that. Pure: a mapping in, values out.

The ranks of one launch share one run without talking to each other, so its id must follow from what all of them can see
and nobody else has. That needs an identity that is *unique to the launch*: a Slurm job step, torchrun's rendezvous id, or,
on one machine, the process that started all ranks. torchrun's default rendezvous id is the word "none" and its default
port is always the same, so two trainings on two evenings look alike; where nothing better is known across machines, ranks
do not share a run (``Launch.job`` is None), since one run too many can be deleted and two trainings mixed in one cannot be
told apart again.

A restart (``TORCHELASTIC_RESTART_COUNT``, ``SLURM_RESTART_COUNT``) is the same run in another *attempt*. Tasks of a Slurm
array have job ids of their own, so they are different runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Launch", "derive_run_id", "detect"]

_THIS_MACHINE = frozenset({"", "localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Launch:
    """What the environment says of the launch.

    Attributes:
        rank: this process among ``world``; None where there is but one.
        job: what identifies the launch, the same in each rank and after a restart; None: not known, or only one process.
        attempt: tells restarts of the job apart, the same in each rank.
        local_rank: this process among those of its node; where nobody says, its rank.
        nodes: machines that the launch is known to be spread over.
    """

    rank: int | None = None
    world: int = 1
    job: str | None = None
    attempt: str = "0"
    local_rank: int = 0
    nodes: int = 1


def detect(environ: Mapping[str, str], launcher: str = "") -> Launch:
    """The launch of a process with this environment.

    Args:
        launcher: names the process that started this one (boot, pid and start time), for ranks that share a parent.
    """
    if _int(environ, "WORLD_SIZE") > 1 and "RANK" in environ:
        world, rank = _int(environ, "WORLD_SIZE"), _int(environ, "RANK")
        attempt = f"{_int(environ, 'SLURM_RESTART_COUNT')}.{_int(environ, 'TORCHELASTIC_RESTART_COUNT')}"
        local = _local_rank(environ, ("LOCAL_RANK", "SLURM_LOCALID"), rank)
        return Launch(rank, world, _torch_job(environ, world, launcher), attempt, local, _torch_nodes(environ, world))
    tasks = _int(environ, "SLURM_STEP_NUM_TASKS") or _int(environ, "SLURM_NTASKS")
    step = _slurm_step(environ)
    if tasks > 1 and step is not None:
        rank, attempt = _int(environ, "SLURM_PROCID"), str(_int(environ, "SLURM_RESTART_COUNT"))
        return Launch(rank, tasks, step, attempt, _local_rank(environ, ("SLURM_LOCALID",), rank), _slurm_nodes(environ))
    return Launch()


def derive_run_id(job: str, parent_run_id: str | None, ordinal: int) -> str:
    """The id (32 hex digits) of the ``ordinal``-th run that a process of this job starts below the same parent."""
    return hashlib.sha256(f"{job}\0{parent_run_id or ''}\0{ordinal}".encode()).hexdigest()[:32]


def _torch_job(environ: Mapping[str, str], world: int, launcher: str) -> str | None:
    rendezvous = environ.get("TORCHELASTIC_RUN_ID", "none")
    step = _slurm_step(environ)
    if rendezvous != "none":
        return f"torch/{rendezvous}/{step or ''}"
    if step is not None:
        return f"torch/{step}"
    local = _int(environ, "LOCAL_WORLD_SIZE")
    here = local == world or (not local and environ.get("MASTER_ADDR", "") in _THIS_MACHINE)
    return f"torch/{launcher}/{environ.get('MASTER_PORT', '')}" if here and launcher else None


def _local_rank(environ: Mapping[str, str], names: tuple[str, ...], otherwise: int) -> int:
    """By the launcher that is nearest: of torchrun below srun, each has a count of its own."""
    said = [environ[name] for name in names if environ.get(name, "").isdecimal()]
    return int(said[0]) if said else otherwise


def _torch_nodes(environ: Mapping[str, str], world: int) -> int:
    local = _int(environ, "LOCAL_WORLD_SIZE")
    return -(-world // local) if local else _slurm_nodes(environ)


def _slurm_nodes(environ: Mapping[str, str]) -> int:
    names = ("SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES")
    return next((count for name in names if (count := _int(environ, name))), 1)


def _slurm_step(environ: Mapping[str, str]) -> str | None:
    """A job step: what one ``srun`` starts. Without a step a batch script runs its programs one after the other."""
    step = environ.get("SLURM_STEP_ID") or environ.get("SLURM_STEPID")
    if not environ.get("SLURM_JOB_ID") or not step:
        return None
    return f"slurm/{environ.get('SLURM_CLUSTER_NAME', '')}/{environ['SLURM_JOB_ID']}/{step}"


def _int(environ: Mapping[str, str], name: str) -> int:
    given = environ.get(name, "")
    return int(given) if given.isdecimal() else 0
