"""How fast files reach a real `mlflow server --serve-artifacts`: a large one beside `curl -T`, many small beside aiohttp.

    python benchmarks/uploads.py [large] [small] [--gib N] [--files N] [--rounds N] [--json FILE] [--directory DIR]

``large``: a file of --gib GiB in a run's spool, delivered as `mlferry sync` does in a process of its own, and `curl -T` of
the same file to the same server, by turns. ``small``: --files files of 1 KB in one run, and a bare aiohttp client that sends
as many over as many connections. The agent's time is that from opening the first file to the answer to the last, check of
the SHA-256 and ledger included; curl's and the bare client's that of their transfers alone.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import aiohttp  # noqa: E402
from backlog import T0, a_large_file, opened  # noqa: E402
from scale import cpu_model  # noqa: E402
from tests.servers import MlflowServer  # noqa: E402

from mlferry_agent.answers import Answer  # noqa: E402
from mlferry_agent.config import load  # noqa: E402
from mlferry_agent.discovery import discover  # noqa: E402
from mlferry_agent.filesystems import file_system  # noqa: E402
from mlferry_agent.requests import Request  # noqa: E402
from mlferry_agent.sessions import open_session  # noqa: E402
from mlferry_agent.transport import MAX_FILE_CONNECTIONS, Transport  # noqa: E402
from mlferry_agent.uploads import Uploads  # noqa: E402
from mlferry_spool import records  # noqa: E402
from mlferry_spool.blobs import Blobs  # noqa: E402

SMALL_BYTES = 1024


# -- the agent, in a process of its own ---------------------------------------------------------------------------------


class Watched:
    """When the first file was begun and the last one was there; and how long requests with a file took, in all."""

    def __init__(self) -> None:
        self.began, self.ended, self.sending_s, self.files = 0.0, 0.0, 0.0, 0

    def watch(self) -> None:
        upload, put = Uploads.upload, Transport.upload

        async def whole(this: Uploads, *args: Any) -> Any:
            self.began = self.began or time.perf_counter()
            reply = await upload(this, *args)
            self.ended, self.files = time.perf_counter(), self.files + 1
            return reply

        async def one(this: Transport, request: Request, file: BinaryIO, size: int) -> Answer:
            began = time.perf_counter()
            answer = await put(this, request, file, size)
            self.sending_s += time.perf_counter() - began
            return answer

        Uploads.upload, Transport.upload = whole, one  # type: ignore[method-assign,assignment]


def be_agent(spool: Path, state: Path, url: str) -> None:
    """Deliver a spool as `mlferry sync` does, and tell of its files."""
    watched = Watched()
    watched.watch()
    environ = {"MLFERRY_DIR": str(spool), "MLFERRY_STATE_DIR": str(state), "MLFERRY_TO": url, "HOME": str(state)}

    async def deliver() -> None:
        async with open_session(load(environ, {}), environ, patient=False) as session:
            await session.carrier.deliver(discover(spool))

    before = resource.getrusage(resource.RUSAGE_SELF)
    asyncio.run(deliver())
    after = resource.getrusage(resource.RUSAGE_SELF)
    told = {
        "took_s": watched.ended - watched.began,
        "sending_s": watched.sending_s,
        "files": watched.files,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": round(after.ru_maxrss / 1024, 1),
    }
    print(json.dumps(told))


def agent(directory: Path, url: str) -> dict[str, Any]:
    """One delivery of the spool, as of a run that the server does not have."""
    state = Path(tempfile.mkdtemp(dir=directory, prefix="state-"))
    words = [sys.executable, str(Path(__file__).resolve()), "--be-agent", str(directory / "spool"), str(state), url]
    told: dict[str, Any] = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    return told


# -- one large file -----------------------------------------------------------------------------------------------------


def curl(file: Path, url: str, number: int) -> float:
    """Seconds from the start of the transfer to its end, as curl tells them."""
    to = f"{url}/api/2.0/mlflow-artifacts/artifacts/curl/{number}/checkpoint.pt"
    words = ["curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{time_total} %{time_pretransfer}", "-T", str(file), to]
    total, before = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(total) - float(before)


def large(directory: Path, server: MlflowServer, given: argparse.Namespace) -> list[dict[str, Any]]:
    (directory / "spool").mkdir(mode=0o700)
    a_large_file(directory / "spool", argparse.Namespace(gigabytes=given.gib))
    file = max((directory / "spool").glob("runs/*/blobs/*"), key=lambda path: path.stat().st_size)
    mib = file.stat().st_size / 2**20
    found: list[dict[str, Any]] = []
    for number in range(given.rounds):
        by_curl = curl(file, server.url, number)
        free(server)
        told = agent(directory, server.url)
        free(server)
        found.append(
            {
                "curl": mib / by_curl,
                "agent": mib / told["took_s"],
                "ratio": by_curl / told["took_s"],
                "request": mib / told["sending_s"],
                "cpu_s": told["cpu_s"],
                "peak_mb": told["peak_mb"],
            }
        )
        print(json.dumps({name: round(value, 3) for name, value in found[-1].items()}), flush=True)
    return found


def free(server: MlflowServer) -> None:
    """What has arrived is deleted, for the disk's sake. The agent that comes next has no ledger, and sends it again."""
    shutil.rmtree(server.artifact_root, ignore_errors=True)


# -- many small ones ----------------------------------------------------------------------------------------------------


def small_files(spool: Path, count: int) -> None:
    directory, writer = opened(spool, 1)
    blobs = Blobs(directory, durable=False)
    for number in range(count):
        blob = blobs.put_bytes(number.to_bytes(8, "big") * (SMALL_BYTES // 8))
        writer.put(records.Artifact(T0, f"files/{number // 100}/{number}.bin", blob.sha256, blob.size))
    writer.close(records.RunEnd(T0 + 10**6, "FINISHED"))


async def bare(url: str, count: int, connections: int) -> float:
    """Seconds that an aiohttp client needs for as many files, which does nothing else."""
    names, body = iter(range(count)), b"x" * SMALL_BYTES

    async def put(session: aiohttp.ClientSession) -> None:
        for number in names:
            path = f"{url}/api/2.0/mlflow-artifacts/artifacts/bare/{number // 100}/{number}.bin"
            async with session.put(path, data=body) as answer:
                await answer.read()
                answer.raise_for_status()

    async with aiohttp.ClientSession() as session:
        began = time.perf_counter()
        await asyncio.gather(*(put(session) for _ in range(connections)))
        return time.perf_counter() - began


def small(directory: Path, server: MlflowServer, given: argparse.Namespace) -> list[dict[str, Any]]:
    (directory / "spool").mkdir(mode=0o700)
    small_files(directory / "spool", given.files)
    found: list[dict[str, Any]] = []
    for _ in range(given.rounds):
        by_bare = asyncio.run(bare(server.url, given.files, MAX_FILE_CONNECTIONS))
        free(server)
        told = agent(directory, server.url)
        free(server)
        assert told["files"] == given.files, told
        found.append(
            {
                "bare": given.files / by_bare,
                "agent": given.files / told["took_s"],
                "ratio": by_bare / told["took_s"],
                "cpu_s": told["cpu_s"],
                "peak_mb": told["peak_mb"],
            }
        )
        print(json.dumps({name: round(value, 3) for name, value in found[-1].items()}), flush=True)
    return found


# -- all of it ----------------------------------------------------------------------------------------------------------


def row(what: str, unit: str, beside: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    def median(name: str, digits: int = 1) -> float:
        return round(statistics.median(one[name] for one in found), digits)

    ratios = sorted(one["ratio"] for one in found)
    spread = statistics.quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else [ratios[0]] * 9
    return {
        "what": what,
        "unit": unit,
        "beside": beside,
        "speed": median("agent"),
        "beside_speed": median(beside_key(beside)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_p10": round(spread[0], 3),
        "ratio_p90": round(spread[-1], 3),
        "cpu_s": median("cpu_s", 2),
        "peak_mb": median("peak_mb"),
    }


def beside_key(beside: str) -> str:
    return "curl" if beside.startswith("curl") else "bare"


def result(rows: list[dict[str, Any]], place: Path, rounds: int) -> dict[str, Any]:
    return {
        "benchmark": "uploads",
        "title": "How fast the agent sends files through mlflow server --serve-artifacts.",
        "date": datetime.date.today().isoformat(),
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "file_system": file_system(place),
        },
        "columns": {
            "what": "files",
            "unit": "unit",
            "speed": "mlferry",
            "beside": "beside",
            "beside_speed": "that one's",
            "ratio": "mlferry / that one",
            "ratio_p10": "p10",
            "ratio_p90": "p90",
            "cpu_s": "processor of the agent (s)",
            "peak_mb": "peak memory of the agent (MB)",
        },
        "rows": rows,
        "plot": None,
        "notes": [
            f"By turns, {rounds} rounds in one run, to the same server on the same machine (one worker, local disk).",
            "The agent's time is that from opening the first file to the answer to the last, its digest included; curl's"
            " that of the transfer alone.",
            f"Small files go over {MAX_FILE_CONNECTIONS} connections, the agent's and the bare client's.",
            "Server, agent and their files share two cores and one disk: with a server elsewhere the network is the limit.",
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="large, small; both if none is named")
    parser.add_argument("--gib", type=float, default=1.0, help="the size of the large file")
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--directory", type=Path, help="where files are made and deleted")
    parser.add_argument("--be-agent", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.be_agent:
        be_agent(Path(given.be_agent[0]), Path(given.be_agent[1]), given.be_agent[2])
        return
    place, rows = Path(given.directory or tempfile.gettempdir()), []
    parts: dict[str, Callable[..., list[dict[str, Any]]]] = {"large": large, "small": small}
    names = {
        "large": (f"one of {given.gib:g} GiB", "MiB/s", "curl -T"),
        "small": (f"{given.files:,} of 1 KB", "files/s", "aiohttp alone"),
    }
    for part in given.parts or parts:
        directory = Path(tempfile.mkdtemp(dir=place, prefix="uploads-"))
        try:
            with MlflowServer(directory / "server") as server:
                rows.append(row(*names[part], parts[part](directory, server, given)))
        finally:
            shutil.rmtree(directory)
        print(json.dumps(rows[-1]), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(result(rows, place, given.rounds), indent=2) + "\n")


if __name__ == "__main__":
    main()
