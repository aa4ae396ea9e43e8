"""The tags that a run begins with, beside those that MLflow makes in the same place."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from mlferry.automatic import automatic_tags


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The running program, in a folder of a git checkout with one commit."""
    script = tmp_path / "checkout" / "src" / "train.py"
    script.parent.mkdir(parents=True)
    script.write_text("pass\n")
    git(script, "init", "-q", "-b", "feature/one")
    git(script, "add", ".")
    git(script, "commit", "-q", "-m", "first")
    monkeypatch.setattr("sys.argv", [str(script)])
    return script


def git(script: Path, *words: str) -> None:
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    subprocess.run(["git", *words], cwd=script.parents[1], env={**os.environ, **who}, check=True, capture_output=True)


def of_git(script: Path) -> dict[str, str]:
    """What MLflow says of the checkout."""
    from mlflow.utils import git_utils

    told = {
        "mlflow.source.git.commit": git_utils.get_git_commit(str(script)),
        "mlflow.source.git.branch": git_utils.get_git_branch(str(script)),
        "mlflow.source.git.repoURL": git_utils.get_git_repo_url(str(script)),
    }
    return {key: value for key, value in told.items() if value is not None}


@pytest.mark.parametrize(
    "remote",
    [
        None,
        "https://somebody:s3cret@git.example.org:8443/nets.git",
        "ssh://git@git.example.org/nets.git",
        "git@git.example.org:nets.git",
        "/srv/git/nets.git",
    ],
)
def test_the_tags_of_a_git_checkout_are_those_of_mlflow_and_hold_no_password(program: Path, remote: str | None) -> None:
    if remote:
        git(program, "remote", "add", "origin", remote)
        git(program, "remote", "add", "other", "https://elsewhere.example.org/x.git")
    tags = {key: value for key, value in automatic_tags({}, "me").items() if ".git." in key}
    assert tags == of_git(program)
    assert tags["mlflow.source.git.branch"] == "feature/one" and len(tags) == (3 if remote else 2)
    assert "s3cret" not in str(tags)


def test_a_checkout_of_no_branch_has_its_commit_alone(program: Path) -> None:
    git(program, "checkout", "-q", "--detach")
    assert (
        [key for key in automatic_tags({}, "me") if ".git." in key]
        == ["mlflow.source.git.commit"]
        == [*of_git(program)]
    )


def test_a_checkout_without_a_commit_has_no_tags(program: Path) -> None:
    git(program, "checkout", "-q", "--orphan", "empty")
    assert [key for key in automatic_tags({}, "me") if ".git." in key] == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_worktree_and_a_submodule_have_the_tags_that_mlflow_gives_them(
    program: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packed: bool
) -> None:
    """There ``.git`` is a file."""
    git(program, "remote", "add", "origin", "https://git.example.org/nets.git")
    git(program, "worktree", "add", "-q", "-b", "feature/two", str(tmp_path / "worktree"))
    outer = tmp_path / "outer" / "src" / "outer.py"
    outer.parent.mkdir(parents=True)
    git(outer, "init", "-q", "-b", "outside")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "checkout"), "nets")
    if packed:
        git(program, "pack-refs", "--all")
    for folder, branch in (("worktree", "feature/two"), ("outer/nets", "feature/one")):
        script = tmp_path / folder / "src" / "train.py"
        assert (tmp_path / folder / ".git").is_file()
        monkeypatch.setattr("sys.argv", [str(script)])
        tags = {key: value for key, value in automatic_tags({}, "me").items() if ".git." in key}
        assert tags == of_git(script)
        assert tags["mlflow.source.git.branch"] == branch and len(tags) == 3
