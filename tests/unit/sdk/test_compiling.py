"""Logging calls inside of what torch compiles: what becomes of the graph, and that nothing of ours is compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.spools import told
from tests.unit.sdk.conftest import Program

HEAD = """
import warnings
warnings.simplefilter("ignore")
import torch
import mlferry
from torch._dynamo import config
from torch._dynamo.utils import counters

run = mlferry.start_run()
print(run.info.run_id)
"""

#: Each in a process of its own: the compiler's state belongs to a process, and it takes seconds to import.
ENDS_THE_GRAPH = f"""{HEAD}
def step(x, number):
    loss = (x * 2).sum()
    mlferry.log_metric("loss", loss, number)
    more = loss + 1
    mlferry.log_metrics({{"more": more, "lr": 0.5}}, number)
    return more * 3

compiled = torch.compile(step, backend="aot_eager", dynamic=True)
for number in range(4):
    assert compiled(torch.full((3,), float(number), requires_grad=True), number).item() == (6 * number + 1) * 3

assert counters["frames"]["total"] <= 6, counters["frames"]
assert not [reason for reason in counters["graph_break"] if "mlferry" in reason and "log_metric" not in reason]

try:
    torch.compile(step, backend="eager", fullgraph=True)(torch.ones(3), 9)
except Exception as error:
    print(str(error).count("log what the compiled function returns"))
"""

AT_ITS_END = f"""{HEAD}
def log_loss(loss):
    mlferry.log_metric("loss", loss)

config.reorderable_logging_functions.add(log_loss)

def step(x):
    loss = (x * 2).sum()
    log_loss(loss)
    return loss * 3

compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
for number in range(3):
    assert compiled(torch.full((3,), float(number))).item() == 18 * number
assert counters["stats"]["unique_graphs"] == 1
assert not counters["graph_break"]
"""


def test_a_call_ends_the_graph_and_nothing_of_ours_is_compiled(program: Program, tmp_path: Path) -> None:
    ended = program(ENDS_THE_GRAPH, PYTHONWARNINGS="ignore")
    assert ended.returncode == 0, ended.stderr
    run_id, said = ended.stdout.split()
    assert int(said) >= 1
    found = told(tmp_path / "spool", run_id)
    assert found.values("loss") == [0.0, 6.0, 12.0, 18.0]
    assert found.values("more") == [1.0, 7.0, 13.0, 19.0]
    assert [step for key, _, step, _ in found.points if key == "lr"] == [0, 1, 2, 3]
    assert found.dropped == 0


@pytest.mark.long
def test_a_call_may_be_moved_to_the_end_of_the_graph(program: Program, tmp_path: Path) -> None:
    ended = program(AT_ITS_END, PYTHONWARNINGS="ignore")
    assert ended.returncode == 0, ended.stderr
    found = told(tmp_path / "spool", ended.stdout.split()[0])
    assert found.values("loss") == [0.0, 6.0, 12.0]
