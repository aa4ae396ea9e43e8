"""MLflow's own calls on a full disk: none raises, and what a call needs of an earlier one it is given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.disks import can_mount, disk

SCRIPT = Path(__file__).with_name("full_disk_script.py")

pytestmark = pytest.mark.skipif(not can_mount(), reason="making a small disk needs root and loop devices")


def test_no_logging_call_of_mlflow_fails_on_a_full_disk(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    with disk(tmp_path, 24) as small:
        done = subprocess.run(
            [sys.executable, SCRIPT, str(small.path), str(own)],
            env={**clean, "MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=own,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.endswith(": fine")] == []
    assert len(lines) == 25
    assert "No space left on device" in done.stderr
