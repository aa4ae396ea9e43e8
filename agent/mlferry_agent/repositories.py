"""Artifact stores that the tracking server leaves to its clients, ``s3://`` and the like, by MLflow's own repositories.

Why a process apart: MLflow and the cloud's libraries take seconds and a hundred megabytes to import, block while they
transfer, and cannot be interrupted. The agent stays what it is where no run needs them; a transfer that nobody waits for any
more ends with that process. It gets the agent's environment, in which MLflow and these libraries find their credentials
(``AWS_*``, ``MLFLOW_S3_ENDPOINT_URL``, ...), and answers as a server would: with a status, which ``answers`` judges.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from mlferry_agent import stores
from mlferry_agent.answers import Answer
from mlferry_agent.errors import NotProxied, Unreachable
from mlferry_agent.requests import Request

__all__ = ["Repositories"]

_CHUNK_BYTES = 1 << 20

#: MLflow would tell its makers of its use, and look for the server's credentials.
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": ""}


class Repositories:
    """Takes the requests whose path is an artifact URI (``Request.is_direct``). Starts its process when first asked.

    Args:
        at_once: transfers at once; the others wait.
        allowed: places below which it may read and write (see ``stores``).
    """

    def __init__(self, at_once: int, allowed: tuple[str, ...]) -> None:
        self._at_once, self._allowed = at_once, allowed
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = count()

    async def close(self) -> None:
        """Break off what is on its way."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if self._reading is not None:
            await self._reading

    async def send(self, request: Request) -> Answer:
        """PUT a body, or DELETE. Raises as ``upload``."""
        if request.body is None:
            return await self._ask(request)
        with tempfile.TemporaryFile() as file:
            file.write(request.body)
            file.flush()
            return await self.upload(request, file, len(request.body))

    async def upload(self, request: Request, file: BinaryIO, size: int) -> Answer:
        """PUT an open file. Raises Unreachable: whether it was stored is unknown. NotProxied: nobody allowed the place."""
        found = os.fstat(file.fileno())
        return await self._ask(request, f"/proc/{os.getpid()}/fd/{file.fileno()}", (found.st_dev, found.st_ino))

    async def download(self, request: Request, sink: Callable[[bytes], object]) -> Answer:
        """GET: pass the bytes to ``sink`` if they are there. Raises as ``upload``, and what ``sink`` raises."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "file"
            answer = await self._ask(request, str(file))
            if answer.status == 200:
                await asyncio.to_thread(_pour, file, sink)
            return answer

    async def _ask(self, request: Request, file: str = "", is_file: tuple[int, int] = (0, 0)) -> Answer:
        if not stores.allows(self._allowed, request.path):
            raise NotProxied(f"its artifacts go to {request.path}, and MLFERRY_STORES does not name that place")
        process, number = await self._running(), next(self._numbers)
        told = {"id": number, "method": request.method, "root": request.path, "path": dict(request.query)["path"]}
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answered
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps({**told, "file": file, "is_file": is_file}).encode() + b"\n")
            await process.stdin.drain()
            return await answered
        except OSError as error:
            raise _ended() from error
        finally:
            self._waiting.pop(number, None)

    async def _running(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                words = ("-m", "mlferry_agent.repository_worker", str(self._at_once))
                pipe, environ = asyncio.subprocess.PIPE, {**os.environ, **_QUIET}
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, *words, stdin=pipe, stdout=pipe, env=environ, start_new_session=True
                )
                self._reading = asyncio.create_task(self._read(self._process))
            return self._process

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Hand on what it answers, until it ends."""
        assert process.stdout is not None
        waiting = self._waiting
        try:
            while line := await process.stdout.readline():
                said = json.loads(line)
                answered = waiting.get(said["id"])
                if answered is not None and not answered.done():
                    answered.set_result(_answer(said))
            await process.wait()
        finally:
            for answered in waiting.values():
                if not answered.done():
                    answered.set_exception(_ended())


def _answer(said: dict[str, Any]) -> Answer:
    detail = {"detail": said["detail"]} if "detail" in said else {}
    return Answer(said["status"], {}, json.dumps(detail).encode())


def _ended() -> Unreachable:
    return Unreachable("the process that writes to artifact stores has ended")


def _pour(file: Path, sink: Callable[[bytes], object]) -> None:
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            sink(chunk)
