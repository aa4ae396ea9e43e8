"""The tags that MLflow sets by itself: user, program, source type, git commit. Owns where they come from.

Everything is read from the environment or from small files; no process is started for it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["automatic_tags", "user_name"]

_COMMIT = re.compile(r"[0-9a-f]{40,64}")


def automatic_tags(environ: Mapping[str, str], user: str) -> dict[str, str]:
    """``mlflow.user``, ``mlflow.source.name``, ``mlflow.source.type`` and, inside a git checkout, its commit."""
    program = sys.argv[0] if sys.argv and sys.argv[0] else ""
    commit = _git_commit(Path(program)) if program else None
    tags = {"mlflow.user": user, "mlflow.source.name": program or "<console>", "mlflow.source.type": "LOCAL"}
    return tags if commit is None else {**tags, "mlflow.source.git.commit": commit}


def user_name(environ: Mapping[str, str]) -> str:
    """Who runs this, as MLflow finds it: its own variable, then what ``getpass.getuser`` looks at."""
    for name in ("MLFLOW_TRACKING_USERNAME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        if environ.get(name):
            return environ[name]
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # a container's uid often has no name
        return "unknown"


def _git_commit(program: Path) -> str | None:
    """The commit checked out where the program lies, read from ``.git`` itself; None where that is not simple."""
    try:
        for directory in program.resolve().parents:
            git = directory / ".git"
            if (git / "HEAD").is_file():
                return _resolve_head(git)
    except (OSError, UnicodeDecodeError, ValueError):
        pass
    return None


def _resolve_head(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head if _COMMIT.fullmatch(head) else None
    ref = head.removeprefix("ref: ")
    if (git / ref).is_file():
        commit = (git / ref).read_text().strip()
        return commit if _COMMIT.fullmatch(commit) else None
    packed = git / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    found = [line.split()[0] for line in lines if line.endswith(f" {ref}") and _COMMIT.match(line)]
    return found[0] if found else None
