"""A small training's worth of records; says on descriptor 3 which of them were kept, each after its call had returned."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from mlferry_spool.blobs import Blobs
from mlferry_spool.caretaker import Caretaker
from mlferry_spool.records import Artifact, Kind, Open, Params, RunEnd
from mlferry_spool.settings import Fsync, Settings
from mlferry_spool.writer import Writer


class NoThread(threading.Thread):
    """All calls are made by one thread, in the same order each time, so that each of them can be hit."""

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


def main(run: Path, acknowledged: Path) -> None:
    """Write; ``acknowledged`` lies outside the spool, so that calls on it are never the ones that are hit."""
    out = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    settings = Settings(fsync=Fsync.ALWAYS, segment_bytes=700)
    writer = Writer(run, Open(writer_id="w", run_id="run"), settings, tended_by=Caretaker(NoThread))
    if writer.put(Params(0, {"lr": "0.1"})):
        os.write(out, b"params\n")
    for step in range(12):
        if writer.append(Kind.METRICS, (step, step, {"loss": float(step)})):
            os.write(out, f"{step}\n".encode())
    blob = Blobs(run).put_bytes(b"weights" * 1000)
    if writer.put(Artifact(1, "weights", blob.sha256, blob.size)):
        os.write(out, b"artifact\n")
    writer.close(RunEnd(99, "FINISHED"))
    os.write(out, b"end\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
