"""Who delivers on this machine: agents that run, the unit that should, and two that do the same."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlferry_agent.config import Config, load
from mlferry_agent.doctor.check import Check, bad, fine, note, poor
from mlferry_agent.errors import AgentError
from mlferry_agent.holding import is_held

__all__ = ["Agent", "agent_checks", "running", "twice"]

_UNIT = "mlferry-agent.service"
_FLAGS = {"--to": "to", "--dir": "dir"}


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent. ``job``: its spool and server, None where this user may not see that."""

    pid: int
    job: tuple[Path, str] | None


def agent_checks(config: Config) -> Iterator[Check]:
    """What runs, and whether that is one too many."""
    agents = list(running())
    held = [path.stem for path in sorted(config.state_dir.glob("*.sqlite")) if is_held(path)]
    if held:
        yield fine("agent", f"delivering by {', '.join(held)}")
    elif agents:
        yield note("agent", f"runs (pid {', '.join(str(agent.pid) for agent in agents)}), by a ledger elsewhere")
    else:
        yield note("agent", "none runs here", "mlferry sync delivers once; mlferry agent, or its unit, all the time")
    for pids in twice(agents):
        said = f"{len(pids)} deliver one spool to one server by ledgers of their own (pid {', '.join(map(str, pids))})"
        yield bad("agents", said, "stop all but one: nothing arrives twice, and everything is sent twice")
    yield from _units()


def running(proc: Path = Path("/proc")) -> Iterator[Agent]:
    """Every `mlferry agent` of this machine that can be seen."""
    for place in sorted(proc.glob("[0-9]*"), key=lambda place: int(place.name)):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if _is_agent(words):
            yield Agent(int(place.name), _job(place, words))


def _is_agent(words: Sequence[str]) -> bool:
    """`python3 /usr/bin/mlferry agent ...`, or `python3 -m mlferry_agent.main agent ...`."""
    names = [Path(word).name for word in words[:4]]
    return any(
        name in ("mlferry", "mlferry_agent.main") and words[place + 1 : place + 2] == ["agent"]
        for place, name in enumerate(names)
    )


def _job(place: Path, words: Sequence[str]) -> tuple[Path, str] | None:
    try:
        pairs = (place / "environ").read_bytes().decode(errors="replace").split("\0")
        environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        config = load(environ, _flags(words))
        return None if config.to is None else (config.dir.resolve(), config.to.rstrip("/"))
    except (OSError, AgentError):
        return None


def _flags(words: Sequence[str]) -> Mapping[str, str]:
    found = {_FLAGS[word]: words[place + 1] for place, word in enumerate(words[:-1]) if word in _FLAGS}
    for word in words:
        flag, given, value = word.partition("=")
        if given and flag in _FLAGS:
            found[_FLAGS[flag]] = value
    return found


def twice(agents: Sequence[Agent]) -> list[list[int]]:
    """The agents that do what another one does, in groups."""
    counts = Counter(agent.job for agent in agents if agent.job is not None)
    return [[agent.pid for agent in agents if agent.job == job] for job, count in counts.items() if count > 1]


def _units() -> Iterator[Check]:
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        return
    for scope in ("--system", "--user"):
        state = _unit(scope)
        if state.get("LoadState") != "loaded":
            continue
        name, active = f"unit ({scope[2:]})", state.get("ActiveState", "")
        said = f"{_UNIT} is {active}, {state.get('UnitFileState') or 'not enabled'}"
        look = f"journalctl {'--user ' if scope == '--user' else ''}-u {_UNIT}"
        if active == "active" and state.get("NRestarts", "0") in ("", "0"):
            yield fine(name, said)
        elif active == "active":
            yield note(name, f"{said}, restarted {state['NRestarts']} times", look)
        else:
            yield poor(name, said, look)


def _unit(scope: str) -> dict[str, str]:
    """What systemd knows of the unit; nothing where it does not answer."""
    command = ["systemctl", scope, "show", _UNIT, "-p", "LoadState,ActiveState,UnitFileState,NRestarts"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
