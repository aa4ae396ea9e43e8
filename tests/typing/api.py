"""What users write, for the type checker alone: ``mypy --strict`` must accept it as it stands (see test_imports)."""

from __future__ import annotations

from typing import IO, Any

from typing_extensions import assert_type

import mlferry
from mlferry import Run
from mlferry.huggingface import MLFerryCallback
from mlferry.lightning import MLFerryLogger


def delivered() -> None:
    assert_type(mlferry.sync("4f2c", to="http://there", give_up_after=10), mlferry.Verdict)
    assert_type(mlferry.status().runs[0].pending, int)


def training(tensor: Any, figure: Any, image: Any) -> None:
    mlferry.set_experiment("nets")
    with mlferry.start_run(run_name="first", tags={"a": 1}, log_system_metrics=False) as run:
        assert_type(run, Run)
        assert_type(run.info.run_id, str)
        assert_type(run.info.end_time, int | None)
        mlferry.log_metric("loss", 0.5)
        mlferry.log_metric("loss", tensor, step=1, timestamp=2, synchronous=False)
        mlferry.log_metrics({"a": 1, "b": 2.0}, step=3)
        mlferry.log_series("s", [1.0, 2.0], steps=range(2), timestamps=None)
        assert_type(mlferry.log_param("lr", 1e-3), Any)
        mlferry.log_params({"depth": 3})
        mlferry.set_tag("a", 1)
        mlferry.set_tags({"b": None})
        mlferry.delete_tag("a")
        mlferry.log_artifact("model.pt", "models")
        mlferry.log_artifacts("out")
        with mlferry.open_artifact("a.bin") as file:
            assert_type(file, IO[bytes])
        mlferry.log_text("x", "x.txt")
        mlferry.log_dict({"a": [1]}, "a.json")
        mlferry.log_figure(figure, "a.png", save_kwargs={"dpi": 100})
        mlferry.log_image(image, key="dogs", step=3)
        mlferry.log_table({"a": [1]}, "t.json")
        mlferry.log_input(mlferry.Dataset("iris", "abc"), context="training")
        with mlferry.start_run(nested=True):
            assert_type(mlferry.active_run(), Run | None)
    mlferry.flush()
    mlferry.end_run("FAILED")


def explicit() -> None:
    run = mlferry.open_run(experiment_name="nets")
    try:
        run.log_metric("loss", 0.5, step=1)
        run.log_text("x", "x.txt")
    except mlferry.NotLogged:
        run.end("FAILED")


def frameworks() -> None:
    logger = MLFerryLogger("nets", run_name="first", tags={"a": 1}, log_model="all", prefix="p")
    assert_type(logger.experiment, Run)
    assert_type(logger.version, str | None)
    logger.log_metrics({"loss": 0.5}, step=1)
    logger.log_hyperparams({"lr": 1e-3})
    logger.finalize("success")
    MLFerryCallback()


def wrong() -> None:
    mlferry.log_metric(1, 1.0)  # type: ignore[arg-type]
    mlferry.log_text("x")  # type: ignore[call-arg]
    MLFerryLogger(log_model="best")  # type: ignore[arg-type]
    mlferry.start_run(nested="yes")  # type: ignore[arg-type]
