"""Lightning's logger, checked by what stands in the spool; that it equals MLFlowLogger is the oracle's to say."""

from __future__ import annotations

import os
import pickle  # noqa: TID251
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.spools import read_writers, run_ids, told
from tests.unit.sdk.conftest import Program

import mlferry
from mlferry.errors import BadStatus

pytest.importorskip("lightning", reason="lightning is not installed; it comes with the extra `oracle`")

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mlferry.lightning import MLFerryLogger, _import_lightning


def only_run(spool: Path) -> Any:
    (run_id,) = run_ids(spool)
    return told(spool, run_id)


@pytest.mark.parametrize(
    ("said", "status"), [("success", "FINISHED"), ("finished", "FINISHED"), ("failed", "FAILED"), ("KILLED", "KILLED")]
)
def test_the_run_ends_as_lightning_says(spool: Path, said: str, status: str) -> None:
    logger = MLFerryLogger()
    logger.log_metrics({"loss": 0.5}, step=3)
    logger.finalize(said)
    assert only_run(spool).status == status
    assert [point[:3] for point in only_run(spool).points] == [("loss", 0.5, 3)]


def test_an_end_that_is_none_is_an_error(spool: Path) -> None:
    logger = MLFerryLogger()
    logger.log_metrics({"loss": 0.5})
    with pytest.raises(BadStatus):
        logger.finalize("over")


def test_a_logger_that_was_not_used_leaves_no_run(spool: Path) -> None:
    MLFerryLogger().finalize("success")
    assert run_ids(spool) == []


def test_what_is_logged_after_the_end_goes_to_the_same_run_and_a_failed_one_stays_failed(spool: Path) -> None:
    logger = MLFerryLogger()
    logger.log_metrics({"loss": 0.5})
    logger.finalize("failed")
    logger.log_metrics({"after": 1.0})
    logger.experiment.end()
    assert only_run(spool).status == "FAILED"
    assert only_run(spool).values("after") == [1.0]
    logger.finalize("success")
    assert only_run(spool).status == "FINISHED"
    assert len(read_writers(spool, str(logger.run_id))) == 3 + 1  # run_id opened it once more


def test_the_run_is_not_the_active_one(spool: Path) -> None:
    MLFerryLogger().log_metrics({"loss": 0.5})
    assert mlferry.active_run() is None


def test_other_ranks_than_the_first_do_nothing(spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = MLFerryLogger("nets", log_model="all")
    logger.log_hyperparams({"lr": 1})
    logger.log_metrics({"loss": 0.5})
    logger.experiment.log_text("x", "x.txt")
    logger.after_save_checkpoint(checkpoint(tmp_path))
    logger.finalize("success")
    assert (logger.name, logger.version, run_ids(spool)) == ("nets", None, [])


def test_a_copy_in_another_process_goes_on_with_the_run(spool: Path) -> None:
    logger = MLFerryLogger(run_name="one")
    logger.log_metrics({"loss": 0.5})
    copied = pickle.loads(pickle.dumps(logger))  # noqa: S301
    copied.log_metrics({"loss": 0.25}, step=1)
    copied.finalize("success")
    assert sorted(only_run(spool).values("loss")) == [0.25, 0.5]


def test_a_run_that_is_resumed_keeps_its_name_and_tags(spool: Path) -> None:
    with mlferry.start_run(run_name="first") as run:
        pass
    logger = MLFerryLogger("other", run_name="second", tags={"team": "red"}, run_id=run.info.run_id)
    logger.log_metrics({"loss": 0.5})
    logger.finalize("success")
    found = only_run(spool)
    assert (found.tags["mlflow.runName"], "team" in found.tags, found.values("loss")) == ("first", False, [0.5])
    assert found.opens[-1].resumed and found.opens[-1].experiment_name != "other"


@pytest.mark.parametrize(("given", "name"), [({"run_name": "a"}, "a"), ({}, "b")])
def test_the_name_of_a_run_may_come_from_its_tags(spool: Path, given: dict[str, str], name: str) -> None:
    logger = MLFerryLogger(tags={"mlflow.runName": "b", "team": "red"}, **given)  # type: ignore[arg-type]
    assert logger.experiment.info.run_name == name
    found = only_run(spool)
    assert (found.tags["mlflow.runName"], found.opens[0].run_name, found.tags["team"]) == (name, name, "red")


def test_hyperparameters_are_flattened_and_cut_and_metrics_get_their_prefix(spool: Path) -> None:
    import torch

    logger = MLFerryLogger(prefix="p")
    logger.log_hyperparams({"a": {"b": [{"c": 1}, {"c": 2}], "none": {}}, 5: "x" * 300})
    logger.log_hyperparams(None)
    logger.log_metrics({"tensor": torch.tensor(1.5), "odd(1)": 2, "text": "3"})
    assert only_run(spool).params == {"a/b/0/c": "1", "a/b/1/c": "2", "5": "x" * 250}
    assert sorted(point[:2] for point in only_run(spool).points) == [("p-odd1", 2.0), ("p-tensor", 1.5)]


@pytest.mark.parametrize("experiment", ["/Users/me/nets", "..", "../../etc", "nets"])
def test_the_folder_of_checkpoints_stays_below_the_root(spool: Path, experiment: str) -> None:
    logger = MLFerryLogger(experiment, save_dir="/scratch")
    folder = os.path.normpath(os.path.join(str(logger.save_dir), logger.name, str(logger.version)))
    assert folder.startswith("/scratch/") and folder.count("/") == 3
    assert logger.experiment.info.experiment_name == experiment


def checkpoint(folder: Path, score: Any = 0.5) -> Any:
    """A callback that has saved one checkpoint."""
    path = folder / "epoch=1.ckpt"
    path.write_bytes(b"weights")
    scores = {"current_score": score, "best_model_score": score, "best_k_models": {str(path): score}}
    return SimpleNamespace(last_model_path=str(path), best_model_path=str(path), save_top_k=1, monitor="loss", **scores)


def test_a_checkpoint_is_logged_when_it_was_written_anew(spool: Path, tmp_path: Path) -> None:
    logger, callback = MLFerryLogger(log_model="all"), checkpoint(tmp_path)
    logger.after_save_checkpoint(callback)
    path = Path(callback.last_model_path)
    first = only_run(spool).artifacts
    assert first["epoch=1/epoch=1.ckpt"] == b"weights"
    assert first["epoch=1/aliases.txt"] == b"['latest', 'best']"
    assert first["epoch=1/metadata.yaml"].splitlines()[-2:] == [b"original_filename: epoch=1.ckpt", b"score: 0.5"]
    before = path.stat()
    path.write_bytes(b"unseen, for its time is the same")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    logger.after_save_checkpoint(callback)
    assert only_run(spool).artifacts == first
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 5))
    logger.after_save_checkpoint(callback)
    assert only_run(spool).artifacts["epoch=1/epoch=1.ckpt"] == path.read_bytes()


def test_a_score_that_cannot_be_read_stops_only_its_description(spool: Path, tmp_path: Path) -> None:
    class Lost:
        def item(self) -> float:
            raise RuntimeError("device lost")

    logger = MLFerryLogger(log_model=True)
    logger.log_metrics({})
    logger.experiment.log_param("a", 1)
    logger.after_save_checkpoint(checkpoint(tmp_path, Lost()))
    logger.finalize("success")
    found = only_run(spool)
    assert sorted(found.artifacts) == ["epoch=1/aliases.txt", "epoch=1/epoch=1.ckpt"]
    assert (found.dropped, found.status) == (1, "FINISHED")


@pytest.mark.parametrize(
    ("loaded", "chosen"),
    [
        ({"lightning.pytorch"}, "lightning.pytorch"),
        ({"pytorch_lightning"}, "pytorch_lightning"),
        ({"lightning.pytorch", "pytorch_lightning"}, "lightning.pytorch"),
        (set(), "lightning.pytorch"),
    ],
    ids=["lightning", "pytorch_lightning", "both", "neither"],
)
def test_it_belongs_to_the_package_that_the_program_uses(
    monkeypatch: pytest.MonkeyPatch, loaded: set[str], chosen: str
) -> None:
    for package in ("lightning.pytorch", "pytorch_lightning"):
        module = SimpleNamespace(Logger=package, DummyLogger=None, rank_zero_only=None)
        monkeypatch.setitem(sys.modules, f"{package}.loggers.logger", module)
        monkeypatch.setitem(sys.modules, f"{package}.utilities.rank_zero", module)
        monkeypatch.setitem(sys.modules, package, module)
        if package not in loaded:
            monkeypatch.delitem(sys.modules, package)
    assert _import_lightning()[0] == chosen


def test_without_lightning_the_error_says_what_to_install(program: Program) -> None:
    ended = program("""
import sys
sys.modules.update({"lightning": None, "pytorch_lightning": None})
import mlferry.lightning
""")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith("which is not installed: pip install lightning")


RANKS = """
import sys
sys.modules.update({"lightning": None, "mlflow": None})  # importing them raises, as where they are not installed
import pytorch_lightning
from pytorch_lightning.demos.boring_classes import BoringModel
from mlferry.lightning import MLFerryLogger

class Model(BoringModel):
    def training_step(self, batch, index):
        self.logger.experiment.log_metric(f"rank{self.global_rank}", 1.0, index)
        self.log("loss", 2.0, sync_dist=True)
        return super().training_step(batch, index)["loss"]

trainer = pytorch_lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, limit_train_batches=2, limit_val_batches=0,
    log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, logger=MLFerryLogger("ranks"),
)
trainer.fit(Model())
"""


def test_of_two_ranks_without_mlflow_the_first_logs_once(program: Program, tmp_path: Path) -> None:
    ended = program(RANKS, PYTHONWARNINGS="ignore", OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stderr
    found = only_run(tmp_path / "spool")
    assert (found.values("loss"), found.values("rank0"), found.values("rank1")) == ([2.0, 2.0], [1.0, 1.0], [])
    assert (found.status, len(found.opens)) == ("FINISHED", 1)
    checkpoints = [path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.ckpt")]
    assert checkpoints == [("ranks", run_ids(tmp_path / "spool")[0])]
