"""Data-parallel training with torchrun: all ranks log into one run, each what only it knows.

    torchrun --nproc-per-node 2 examples/distributed_training.py
    mlferry sync --to http://127.0.0.1:5000

On several machines give the launch a name of its own (``--rdzv-id``), or set MLFERRY_RUN_ID: that makes it one run.
"""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import mlferry

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(rank)
model = DistributedDataParallel(torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

mlferry.set_experiment("distributed")
with mlferry.start_run(run_name="two ranks"):
    if rank == 0:
        mlferry.log_param("world size", dist.get_world_size())
    for step in range(50):
        inputs = torch.randn(32, 8)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mlferry.log_metric(f"loss/rank {rank}", loss, step=step)
        dist.all_reduce(loss, op=dist.ReduceOp.SUM)
        if rank == 0:
            mlferry.log_metric("loss", loss / dist.get_world_size(), step=step)
dist.destroy_process_group()
