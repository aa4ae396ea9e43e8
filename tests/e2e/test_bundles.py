"""Across an air gap: exported where the training was, imported where the server is, delivered once."""

from __future__ import annotations

from pathlib import Path

from tests.servers import MlflowServer
from tests.spooling import Ferry, a_bit_of_everything, differences, unique


def test_a_run_that_crosses_in_bundles_is_delivered_once_however_often_it_is_imported(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    first = a_bit_of_everything(inside, unique("carried"))
    here, there = Ferry(inside, tmp_path / "here"), Ferry(outside, tmp_path / "there", mlflow_server.url)
    bundle, later = tmp_path / "monday.tar.zst", tmp_path / "tuesday.tar.zst"
    assert here("export", str(bundle)).returncode == 0
    assert there("import", str(bundle)).returncode == 0
    assert there("sync").returncode == 0
    assert differences(mlflow_server, first.logged) == []
    second = a_bit_of_everything(inside, unique("carried later"))
    receipt = f"{bundle}.receipt.json"
    exported = here("export", str(later), "--since", receipt, "--split", "1")
    assert exported.returncode == 0
    assert "left out" in exported.stdout
    for part in (f"{later}.000", str(bundle), f"{later}.000"):
        imported = there("import", part)
        assert imported.returncode == 0, imported.stderr
        assert there("sync").returncode == 0
    for run in (first, second):
        assert differences(mlflow_server, run.logged) == []
    assert there("verify").returncode == 0


def test_a_damaged_bundle_is_refused_with_the_place_and_nothing_is_half_imported(tmp_path: Path) -> None:
    run = a_bit_of_everything(tmp_path / "inside", "damaged")
    bundle = tmp_path / "b.tar.zst"
    assert Ferry(run.root, tmp_path / "state")("export", str(bundle)).returncode == 0
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 0xFF
    bundle.write_bytes(bytes(data))
    refused = Ferry(tmp_path / "outside", tmp_path / "state")("import", str(bundle))
    assert refused.returncode == 1
    assert "Nothing of it was imported" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list((tmp_path / "outside").iterdir()) == []
