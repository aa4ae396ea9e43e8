"""The agent's configuration: one frozen object, parsed once, each value with where it came from.

Later sources win: built-in default, ``/etc/mlferry/agent.toml``, ``~/.config/mlferry/agent.toml``, ``MLFERRY_*``, flags.
Credentials are not configuration: see ``credentials``.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mlferry_agent import stores
from mlferry_agent.errors import BadConfiguration
from mlferry_agent.web import addresses
from mlferry_spool.layout import default_root

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Config", "OnDeleted", "load"]

#: How it shows that there is no file for this user, whatever a ``HOME`` may hold.
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}

#: What becomes of a run that somebody deleted on the server: it waits for a person, is made again, or is given up.
OnDeleted = Literal["quarantine", "recreate", "drop"]


@dataclass(frozen=True, slots=True)
class Config:
    """What the agent was told. ``origins`` names the source of each value."""

    to: str | None = field(default=None, repr=False)  # it may carry a password
    dir: Path = Path()
    state_dir: Path = Path()
    stale_after_s: float = 900.0
    poll_s: float = 0.5
    give_up_after_s: float = 120.0
    connections: int = 4
    uploads: int = 4
    deleted: OnDeleted = "quarantine"
    http: str | None = None
    stores: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)


def load(environ: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """Read every source. ``flags`` that are None were not given.

    Raises:
        BadConfiguration: a file cannot be read, or a value is not what its name asks for.
    """
    values: dict[str, Any] = {"dir": default_root(environ), "state_dir": _default_state_dir(environ)}
    origins = dict.fromkeys(("dir", "state_dir"), "default")
    tracking = environ.get("MLFLOW_TRACKING_URI", "")
    if tracking.startswith(("http://", "https://")):
        values["to"], origins["to"] = tracking, "MLFLOW_TRACKING_URI"
    for source, found in _sources(environ, flags):
        for name, value in found.items():
            values[name], origins[name] = _checked(name, value, source), source
    return Config(**values, origins={item.name: origins.get(item.name, "default") for item in fields(Config)[:-1]})


def _sources(environ: Mapping[str, str], flags: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    home = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/nonexistent")) / ".config")
    files = [Path("/etc/mlferry/agent.toml"), home / "mlferry" / "agent.toml"]
    names = [item.name for item in fields(Config)[:-1]]
    variables = {name: f"MLFERRY_{name.upper()}" for name in names}
    found = [(str(path), _toml(path)) for path in files]
    found += [(variable, {name: environ[variable]}) for name, variable in variables.items() if environ.get(variable)]
    found += [(f"--{name.replace('_', '-')}", {name: value}) for name, value in flags.items() if value is not None]
    return found


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # a text that is no TOML, in each of the ways it may be none
        if isinstance(error, OSError) and error.errno in _NO_FILE:
            return {}
        raise BadConfiguration(f"{path}: {error}") from error


def _checked(name: str, value: Any, source: str) -> Any:
    texts = dict.fromkeys(("to", "deleted", "http", "stores"), str)
    kinds = {**texts, "dir": Path, "state_dir": Path, "connections": int, "uploads": int}
    numbers = {"stale_after_s", "poll_s", "give_up_after_s"}
    if name not in kinds and name not in numbers:
        raise BadConfiguration(f"{source}: there is no setting called {name!r}")
    try:
        made = kinds.get(name, float)(value)
    except (TypeError, ValueError, OverflowError):
        raise BadConfiguration(f"{source}: {name} = {value!r:.200}") from None
    if isinstance(made, Path):
        return _home_resolved(made, source)
    if name == "http":
        return _http(made, source)
    if name == "stores":
        return _stores(made, source)
    if name == "deleted" and made not in get_args(OnDeleted):
        raise BadConfiguration(f"{source}: {name} is one of {', '.join(get_args(OnDeleted))}, not {made!r:.200}")
    if not isinstance(made, str) and not made > 0:  # NaN is not above 0 either
        raise BadConfiguration(f"{source}: {name} must be above 0")
    return made


def _http(made: str, source: str) -> str | None:
    try:
        return None if addresses.parse(made) is None else made
    except ValueError as error:
        raise BadConfiguration(f"{source}: http = {made!r:.200}: {error}") from None


def _stores(made: str, source: str) -> str | None:
    try:
        return made if stores.parse(made) else None
    except ValueError as error:
        raise BadConfiguration(f"{source}: stores = {made!r:.200}: {error}") from None


def _home_resolved(path: Path, source: str) -> Path:
    if "\0" in str(path):
        raise BadConfiguration(f"{source}: no path holds a NUL character")
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise BadConfiguration(f"{source}: {path}: {error}") from None


def _default_state_dir(environ: Mapping[str, str]) -> Path:
    """systemd's ``StateDirectory=``, else ``$XDG_STATE_HOME/mlferry``, else ``~/.local/state/mlferry``."""
    if environ.get("STATE_DIRECTORY"):
        return Path(environ["STATE_DIRECTORY"].partition(":")[0])
    home = _home_resolved(Path(environ.get("HOME", "~")), "HOME")
    state = environ.get("XDG_STATE_HOME") or home / ".local" / "state"
    return Path(state) / "mlferry"
