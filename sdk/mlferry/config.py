"""The SDK's settings from the environment. Owns their names and defaults; a bad one is complained of and replaced by its
default, because training must not fail for it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mlferry_spool.layout import default_root
from mlferry_spool.settings import Fsync

__all__ = ["Config", "OnError", "boolean", "read"]


class OnError(enum.Enum):
    """What to do with something that cannot be logged."""

    WARN = "warn"
    RAISE = "raise"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Config:
    """One process's settings.

    ``root`` is the spool; ``root_given`` says that ``MLFERRY_DIR`` named it, so that a command printed for the user must
    name it too. ``truncate`` is MLflow's ``MLFLOW_TRUNCATE_LONG_VALUES``.
    """

    root: Path
    root_given: bool = False
    fsync: Fsync = Fsync.INTERVAL
    on_error: OnError = OnError.WARN
    quiet: bool = False
    truncate: bool = True


def read(environ: Mapping[str, str], complain: Callable[[str], None]) -> Config:
    """``MLFERRY_DIR``, ``MLFERRY_FSYNC``, ``MLFERRY_ON_ERROR``, ``MLFERRY_QUIET`` and MLflow's truncation switch."""
    return Config(
        root=default_root(environ),
        root_given=bool(environ.get("MLFERRY_DIR")),
        fsync=_choice(environ, "MLFERRY_FSYNC", Fsync.INTERVAL, complain),
        on_error=_choice(environ, "MLFERRY_ON_ERROR", OnError.WARN, complain),
        quiet=boolean(environ, "MLFERRY_QUIET", False, complain),
        truncate=boolean(environ, "MLFLOW_TRUNCATE_LONG_VALUES", True, complain),
    )


def boolean(environ: Mapping[str, str], name: str, default: bool, complain: Callable[[str], None]) -> bool:
    """``true``, ``1``, ``false`` or ``0`` in any case, as MLflow reads its switches."""
    given = environ.get(name, "").strip().lower()
    if given and given not in ("true", "1", "false", "0"):
        complain(f"{name}={given!r} is neither true nor false; {str(default).lower()} is used")
        return default
    return given in ("true", "1") if given else default


Choice = TypeVar("Choice", bound=enum.Enum)


def _choice(environ: Mapping[str, str], name: str, default: Choice, complain: Callable[[str], None]) -> Choice:
    given = environ.get(name, "").strip().lower()
    if not given:
        return default
    try:
        return type(default)(given)
    except ValueError:
        known = ", ".join(str(item.value) for item in type(default))
        complain(f"{name}={given!r} is none of {known}; {default.value} is used")
        return default
