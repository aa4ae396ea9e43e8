"""The unit files: systemd accepts them, the sandbox keeps its score, and they only name what exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
SYSTEM_UNIT = SYSTEMD / "mlferry-agent.service"
TEMPLATE = SYSTEMD / "mlferry-agent@.service"
USER_UNIT = SYSTEMD / "user" / "mlferry-agent.service"

EVERY = pytest.mark.parametrize("unit", [SYSTEM_UNIT, TEMPLATE, USER_UNIT], ids=["system", "template", "user"])
THE_SYSTEMS = pytest.mark.parametrize("unit", [SYSTEM_UNIT, TEMPLATE], ids=["system", "template"])

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
needs_sysusers = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed"
)
needs_tmpfiles = pytest.mark.skipif(
    shutil.which("systemd-tmpfiles") is None, reason="systemd-tmpfiles is not installed"
)


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], env={**os.environ, **environ}, capture_output=True, text=True, timeout=60
    )


def settings(unit: Path) -> dict[str, list[str]]:
    """Every setting of a unit; one that is given several times has several values."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def with_present_command(unit: Path, directory: Path) -> Path:
    """A copy that starts a program which is on this machine: `verify` refuses a unit whose command is not installed."""
    copy = directory / unit.name
    copy.write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()))
    return copy


@needs_analyze
@EVERY
def test_systemd_accepts_the_unit_without_a_word(unit: Path, tmp_path: Path) -> None:
    manager = "--user" if unit is USER_UNIT else "--system"
    copy = with_present_command(unit, tmp_path)
    verdict = run("systemd-analyze", manager, "verify", "--man=no", copy, XDG_RUNTIME_DIR=str(tmp_path))
    said = [line for line in verdict.stderr.splitlines() if unit.name in line]
    assert verdict.returncode == 0 and not said, verdict.stderr


@needs_analyze
@THE_SYSTEMS
def test_the_unit_is_no_more_exposed_than_1_2(unit: Path) -> None:
    verdict = run("systemd-analyze", "security", "--offline=true", "--threshold=12", "--no-pager", unit)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


@EVERY
def test_the_unit_starts_the_agent_and_waits_for_its_word(unit: Path) -> None:
    given = settings(unit)
    assert given["ExecStart"][0].endswith("/mlferry agent")
    assert given["Type"] == ["notify"]
    assert int(given["WatchdogSec"][0]) >= 30
    assert given["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


@THE_SYSTEMS
def test_the_unit_holds_no_capability(unit: Path) -> None:
    """Least of all CAP_DAC_READ_SEARCH, with which an agent would read everybody's spool; the score hardly sees it."""
    given = settings(unit)
    assert given["CapabilityBoundingSet"] == given["AmbientCapabilities"] == [""]


def test_the_sandbox_of_the_template_is_that_of_the_system_unit_but_for_the_homes() -> None:
    system, template = settings(SYSTEM_UNIT), settings(TEMPLATE)
    of_a_place = {"Description", "User", "Group", "Environment", "LoadCredential", "StateDirectory", "ReadOnlyPaths"}
    apart = {name for name in {*system, *template} if system.get(name) != template.get(name)} - of_a_place
    assert apart == {"ProtectHome"}
    assert template["ProtectHome"] == ["read-only"]


def test_each_agent_of_the_template_has_a_user_a_token_and_a_state_of_its_own() -> None:
    given = settings(TEMPLATE)
    assert given["User"] == ["%i"]
    assert given["LoadCredential"][0].endswith("/%i") and given["StateDirectory"][0].endswith("/%i")


@EVERY
def test_no_secret_has_a_place_in_a_unit(unit: Path) -> None:
    assert not re.search(r"(?i)^(?!#).*(MLFLOW_TRACKING_TOKEN|PASSWORD=)", unit.read_text(), re.MULTILINE)


@THE_SYSTEMS
def test_the_token_comes_as_a_credential_under_the_name_that_the_agent_reads(unit: Path) -> None:
    name = settings(unit)["LoadCredential"][0].partition(":")[0]
    source = (SYSTEMD.parent / "agent/mlferry_agent/credentials.py").read_text()
    assert f'"{name}"' in source


def test_the_places_of_the_unit_are_made_by_tmpfiles_or_by_systemd() -> None:
    given = settings(SYSTEM_UNIT)
    environ = dict(item.split("=") for line in given["Environment"] for item in line.split())
    made = (SYSTEMD / "tmpfiles.d/mlferry.conf").read_text().split()
    assert environ["MLFERRY_DIR"] in made
    assert environ["MLFERRY_STATE_DIR"] == f"/var/lib/{given['StateDirectory'][0]}"
    tokens = [value for unit in (SYSTEM_UNIT, TEMPLATE) for value in settings(unit)["LoadCredential"]]
    assert all(str(Path(value.split(":")[1]).parent) in made for value in tokens)


@needs_sysusers
def test_sysusers_makes_the_user_of_the_unit() -> None:
    verdict = run("systemd-sysusers", "--dry-run", SYSTEMD / "sysusers.d/mlferry.conf")
    assert verdict.returncode == 0, verdict.stderr
    assert settings(SYSTEM_UNIT)["User"] == ["mlferry"]
    assert re.search(r"(?m)^u mlferry ", (SYSTEMD / "sysusers.d/mlferry.conf").read_text())


@needs_tmpfiles
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory to root")
def test_tmpfiles_makes_a_spool_that_only_its_owner_may_enter(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("mlferry:x:990:990::/:/bin/false\n")
    (tmp_path / "etc/group").write_text("mlferry:x:990:\n")
    verdict = run("systemd-tmpfiles", "--create", f"--root={tmp_path}", SYSTEMD / "tmpfiles.d/mlferry.conf")
    assert verdict.returncode == 0, verdict.stderr
    spool = (tmp_path / "var/spool/mlferry").stat()
    assert (spool.st_uid, spool.st_mode & 0o777) == (990, 0o700)
    tokens = (tmp_path / "etc/mlferry/tokens").stat()
    assert (tokens.st_uid, tokens.st_mode & 0o777) == (0, 0o700)
