"""torchrun with two ranks on gloo that log to one run; started without torchrun, it starts itself with it."""

import os
import subprocess
import sys

import mlflow

if "RANK" not in os.environ:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *sys.argv]
    raise SystemExit(subprocess.run(command, check=False).returncode)

import torch
import torch.distributed

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
told: list[str | None] = [None]
if rank == 0:
    run = mlflow.start_run(run_name="ranks")
    mlflow.log_param("world", torch.distributed.get_world_size())
    told = [run.info.run_id]
torch.distributed.broadcast_object_list(told, src=0)
client = mlflow.MlflowClient()
for step in range(5):
    total = torch.tensor(float(rank + step))
    torch.distributed.all_reduce(total)
    client.log_metric(told[0], f"rank{rank}/loss", 1.0 / (step + 1 + rank), step=step)
    if rank == 0:
        mlflow.log_metric("total", total.item(), step=step)
client.log_text(told[0], f"rank {rank}", f"rank{rank}.txt")
torch.distributed.barrier()
if rank == 0:
    mlflow.end_run()
torch.distributed.destroy_process_group()
