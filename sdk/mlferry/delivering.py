"""Delivery from Python: ``mlferry sync`` and ``mlferry status`` as functions, for notebooks and the ends of scripts.

They start the command and read its JSON. The agent is a program of its own so that nothing of it is ever loaded into a
training process: an import of it here would bring an event loop, a network library and their threads along.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, TypeAlias

from mlferry.errors import NotDelivered

__all__ = ["RunStanding", "Verdict", "status", "status_async", "sync", "sync_async"]

#: Exit codes of a command that came to a verdict: all acknowledged, something set aside, something pending.
_VERDICTS = {0, 3, 4}

StrPath: TypeAlias = "str | PathLike[str]"


@dataclass(frozen=True, slots=True)
class RunStanding:
    """How a run stands. What belongs to no run (experiments, registered models, traces) stands as one called ``(store)``.

    ``acknowledged`` and ``pending`` count records; ``quarantined`` holds what was set aside, each with its ``name`` and
    ``reason``; ``parked`` says why the whole run waits for a person; ``lag_s``: age in seconds of its oldest pending record.
    """

    run_id: str
    run_name: str | None
    experiment_name: str | None
    server_run_id: str | None
    status: str | None
    live: bool
    acknowledged: int
    pending: int
    quarantined: list[dict[str, Any]]
    parked: str | None
    lag_s: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the command found. ``complete``: the server has all of it; ``needs_you``: something is quarantined or parked.
    ``said``: what the command would have told you."""

    runs: list[RunStanding]
    complete: bool
    needs_you: bool
    said: str

    @property
    def acknowledged(self) -> int:
        """Records that the server has."""
        return sum(run.acknowledged for run in self.runs)

    @property
    def pending(self) -> int:
        """Records that wait."""
        return sum(run.pending for run in self.runs)


def sync(*runs: str, to: str | None = None, dir: StrPath | None = None, give_up_after: float | None = None) -> Verdict:
    """Deliver now, and return the verdict. Safe beside a running agent.

    Args:
        runs: ids, or beginnings of them; all of the spool if none.
        to: the server's address; else ``MLFERRY_TO``, else ``MLFLOW_TRACKING_URI``.
        dir: the spool; else ``MLFERRY_DIR``, else the default one.
        give_up_after: seconds until it comes back from a server that is away; 120.

    Raises:
        NotDelivered: it could not be tried (no server named, a wrong token, no such run, the agent's packages missing).
    """
    return _run(_command("sync", runs, to, dir, give_up_after))


async def sync_async(
    *runs: str, to: str | None = None, dir: StrPath | None = None, give_up_after: float | None = None
) -> Verdict:
    """As ``sync``, while the event loop goes on. Cancelled, the delivery ends and goes on at the next one."""
    return await _run_async(_command("sync", runs, to, dir, give_up_after))


def status(*runs: str, to: str | None = None, dir: StrPath | None = None) -> Verdict:
    """What is acknowledged, pending and quarantined; nothing is sent. Arguments and errors as ``sync``."""
    return _run(_command("status", runs, to, dir, None))


async def status_async(*runs: str, to: str | None = None, dir: StrPath | None = None) -> Verdict:
    """As ``status``, while the event loop goes on."""
    return await _run_async(_command("status", runs, to, dir, None))


def _command(
    verb: str, runs: Sequence[str], to: str | None, dir: StrPath | None, give_up_after: float | None
) -> list[str]:
    flags = {"--to": to, "--dir": dir, "--give-up-after": give_up_after}
    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    return [sys.executable, "-m", "mlferry_agent.main", verb, "--json", *given, "--", *runs]


def _run(command: list[str]) -> Verdict:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return _verdict(done.returncode, done.stdout, done.stderr)


async def _run_async(command: list[str]) -> Verdict:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            process.terminate()
        await process.wait()
        raise
    return _verdict(process.returncode or 0, out, err)


def _verdict(code: int, out: bytes, err: bytes) -> Verdict:
    said = err.decode(errors="replace").strip()
    if code not in _VERDICTS:
        raise NotDelivered(said or f"the command ended with {code}")
    names = {item.name for item in fields(RunStanding)}
    runs = [RunStanding(**{name: run[name] for name in names}) for run in json.loads(out)]
    # A server that is away is what the exit code says first, also where something is set aside.
    needs_you = code == 3 or any(run.quarantined or run.parked for run in runs)
    return Verdict(runs, complete=code == 0, needs_you=needs_you, said=said)
