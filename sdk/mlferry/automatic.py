"""The tags that MLflow sets by itself: user, program, source type, git checkout. Owns where they come from.

Everything is read from the environment or from small files; no process is started for it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from mlferry.validation import readable

__all__ = ["automatic_tags", "user_name"]

_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_URL = re.compile(r'url\s*=\s*"?([^"]+)"?')
_CREDENTIALS = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")


def automatic_tags(environ: Mapping[str, str], user: str) -> dict[str, str]:
    """``mlflow.user``, ``mlflow.source.name``, ``mlflow.source.type``; of a git checkout, ``mlflow.source.git.*`` too."""
    program = sys.argv[0] if sys.argv and sys.argv[0] else ""
    name = readable(program or "<console>")
    tags = {"mlflow.user": user, "mlflow.source.name": name, "mlflow.source.type": "LOCAL"}
    return {**tags, **_git_tags(Path(program))} if program else tags


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


def _git_tags(program: Path) -> dict[str, str]:
    """Commit, branch and repository of the checkout that the program lies in, read from ``.git`` itself; none of them where
    the commit is not found in a simple way."""
    try:
        for directory in program.resolve().parents:
            git = _git_directory(directory / ".git")
            if (git / "HEAD").is_file():
                common = _common(git)
                told = {"commit": _resolve_head(git, common), "branch": _branch(git), "repoURL": _repository(common)}
                kept = {f"mlflow.source.git.{name}": value for name, value in told.items() if value is not None}
                return kept if told["commit"] is not None else {}
    except (OSError, UnicodeDecodeError, ValueError):
        pass
    return {}


def _git_directory(git: Path) -> Path:
    """Where the repository is: in worktrees and submodules ``.git`` is a file that says so."""
    if not git.is_file():
        return git
    return git.parent / git.read_text().strip().removeprefix("gitdir: ")


def _common(git: Path) -> Path:
    """Where the repository keeps what its worktrees share."""
    shared = git / "commondir"
    return git / shared.read_text().strip() if shared.is_file() else git


def _branch(git: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    return head.removeprefix("ref: refs/heads/") if head.startswith("ref: refs/heads/") else None


def _repository(git: Path) -> str | None:
    """The address of the first remote, without the user and password that it may hold."""
    lines = (git / "config").read_text().splitlines() if (git / "config").is_file() else []
    within = False
    for line in map(str.strip, lines):
        if line.startswith("["):
            within = line.startswith('[remote "')
        elif within and (found := _URL.fullmatch(line)):
            return _CREDENTIALS.sub(r"\1", found[1])
    return None


def _resolve_head(git: Path, common: Path) -> str | None:
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head if _COMMIT.fullmatch(head) else None
    ref = head.removeprefix("ref: ")
    if (common / ref).is_file():
        commit = (common / ref).read_text().strip()
        return commit if _COMMIT.fullmatch(commit) else None
    packed = common / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    found = [line.split()[0] for line in lines if line.endswith(f" {ref}") and _COMMIT.match(line)]
    return found[0] if found else None
