"""Tags about the cluster on which a run was started. Pure but for the question which store MLflow uses.

They are set only where the job's environment says these things, and only on runs that go to a spool: a run that was logged
offline on a workstation has no tag that an online run would not have. The names are the variables' own, lower case, below
``slurm.`` and ``torchrun.``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

__all__ = ["in_context", "tags"]

_SLURM = (
    *("JOB_ID", "JOB_NAME", "STEP_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT", "CLUSTER_NAME"),
    *("JOB_PARTITION", "JOB_NODELIST", "JOB_ACCOUNT", "NNODES", "NTASKS"),
)
_TORCHRUN = {"TORCHELASTIC_RUN_ID": "run_id", "WORLD_SIZE": "world_size", "TORCHELASTIC_RESTART_COUNT": "restart_count"}


def in_context() -> bool:
    """Whether MLflow's tracking URI is a spool's and there is something to say."""
    utils = sys.modules.get("mlflow.tracking._tracking_service.utils")
    return utils is not None and str(utils.get_tracking_uri()).startswith("spool:") and bool(tags(os.environ))


def tags(environ: Mapping[str, str]) -> dict[str, str]:
    """What the environment says of the job: Slurm's and torchrun's variables that are set, and the host with them."""
    said = {f"slurm.{name.lower()}": environ.get(f"SLURM_{name}", "") for name in _SLURM}
    if "TORCHELASTIC_RUN_ID" in environ:
        said |= {f"torchrun.{name}": environ.get(variable, "") for variable, name in _TORCHRUN.items()}
    told = {name: value for name, value in said.items() if value}
    return {**told, "host": os.uname().nodename} if told else {}
