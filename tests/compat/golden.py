"""One record of every kind of the format, as the golden segments hold them; each was made once and never again.

``python -m tests.compat.golden`` makes those that are missing and writes over none: what was released must stay readable.
A kind that is added to the format gets a segment of its own.
"""

from __future__ import annotations

from pathlib import Path

from mlferry_spool import frames
from mlferry_spool.codec import KIND_OF, pack
from mlferry_spool.records import (
    Artifact,
    ArtifactDeleted,
    BlobRef,
    Dataset,
    Dropped,
    ExperimentOperation,
    Heartbeat,
    Inputs,
    Metrics,
    ModelOutput,
    ModelStart,
    ModelUpdate,
    NarrowSeries,
    Open,
    Outputs,
    Params,
    Record,
    RegistryOperation,
    RunEnd,
    RunUpdate,
    SegmentEnd,
    Series,
    Spans,
    Tags,
    TagsDeleted,
    Trace,
)

SEGMENT = Path(__file__).parent / "v1" / "00000000000000000000.seg"
SALT = 0x5EA5A17E
DIGEST = bytes(range(32))

RECORDS: list[Record] = [
    Open(
        writer_id="20260101T000000000-r1-00ff",
        run_id="ab" * 16,
        experiment_name="experiment",
        run_name="ünï-run",
        user="somebody",
        start_time=1767225600000,
        parent_run_id="cd" * 16,
        resumed=True,
        workspace="team",
        attempt="7.0",
        rank=1,
        host="node1",
        machine_id="m",
        boot_id="b",
        pid=42,
        opened=1767225600001,
        locked=True,
        heartbeat_s=30.0,
        program="train.py",
    ),
    RunUpdate(1, run_name="renamed", status="RUNNING", lifecycle="active"),
    Metrics(2, -3, {"loss": 0.1, "inf": float("inf"), "tiny": 5e-324}, "m-1", "data", "d1"),
    Series("curve", bytes.fromhex("000000000000e03f000000000000f03f"), (0, 10), bytes(range(16))),
    Params(4, {"lr": "0.1", "日本": "値"}),
    Tags(5, {"mlflow.runName": "ünï-run"}),
    TagsDeleted(6, ("gone", "too")),
    Artifact(7, "model/weights.pt", DIGEST, 123456789012),
    ArtifactDeleted(8, "model"),
    Inputs(9, (Dataset("name", "digest", "local", BlobRef(DIGEST, 9), "{}", None, {"k": "v"}),), ("m-1",)),
    Outputs(10, (ModelOutput("m-1", 3),)),
    ModelStart(11, "m-1", "name", "agent", "ab" * 16, "experiment", {"p": "1"}, {"t": "2"}),
    ModelUpdate(12, "m-1", "READY", {"p": "1"}, {"t": "2"}, ("x",), True, "MLmodel", DIGEST, 5),
    ExperimentOperation(13, "create", "experiment", {"tags": {"a": "b"}}),
    RegistryOperation(14, "create_version", "model", "uid", {"source": "models:/m-1", "n": [1, 2.5, None, True]}),
    Trace(15, "tr-1", {"state": "OK"}),
    Spans(16, "tr-1", b"\x00\x01otlp"),
    Dropped(17, 18, 5, "No space left on device", {"metrics": 5}),
    Heartbeat(19),
    RunEnd(20, "FINISHED"),
    SegmentEnd(None),
]


#: Narrow columns of 1, 2 and 4 bytes, above a level line, a rising and a falling one; beside a plain and a regular one.
NARROW: list[Record] = [
    Open(writer_id="w"),
    NarrowSeries("a", bytes.fromhex("000000000000e03f000000000000f03f"), (-7, 0, b"\x00\xff"), (1767225600000, 9)),
    NarrowSeries(
        "b", bytes(24), (10, 1 << 40, bytes(range(6))), (1767225600000, -3, bytes(range(12))), "m-1", "d", "d1"
    ),
    NarrowSeries("c", bytes(8), bytes(range(8)), (5, 0, b"\x01")),
    SegmentEnd(None),
]

#: Each golden segment with what it holds.
SEGMENTS = {SEGMENT: RECORDS, SEGMENT.parent / "narrow" / SEGMENT.name: NARROW}


def make(records: list[Record]) -> bytes:
    """The segment as this version of the code would write it."""
    made = (frames.encode(KIND_OF[type(item)], at, pack(item), SALT) for at, item in enumerate(records))
    return frames.preamble(SALT) + b"".join(made)


if __name__ == "__main__":
    for segment, told in SEGMENTS.items():
        if not segment.exists():
            segment.parent.mkdir(exist_ok=True)
            segment.write_bytes(make(told))
