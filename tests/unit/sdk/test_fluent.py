"""The functions that read like MLflow's, each checked by what stands in the spool afterwards."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from tests.spools import only, read_run, read_writers, run_ids, told

import mlferry
from mlferry import errors
from mlferry_spool.records import Metrics, RunUpdate, SegmentEnd


def test_a_run_holds_what_was_logged_to_it(spool: Path) -> None:
    before = time.time_ns() // 1_000_000
    mlferry.set_experiment("nets")
    with mlferry.start_run(run_name="first", tags={"a": 1}, description="of many") as run:
        mlferry.log_metric("loss", 0.5)
        mlferry.log_metric("loss", 0.25, step=7, timestamp=1234)
        mlferry.log_metrics({"acc": 0.1, "f1": 0.2}, step=3)
        mlferry.log_param("lr", 1e-3)
        mlferry.log_params({"depth": 4, "name": "x"})
        mlferry.set_tag("b", True)
        mlferry.set_tags({"c": None, "gone": "soon"})
        mlferry.delete_tag("gone")
    found = told(spool, run.info.run_id)
    assert [point[:3] for point in found.points] == [
        ("loss", 0.5, 0),
        ("loss", 0.25, 7),
        ("acc", 0.1, 3),
        ("f1", 0.2, 3),
    ]
    assert found.points[1][3] == 1234
    assert all(before <= when <= time.time_ns() // 1_000_000 for _, _, step, when in found.points if step != 7)
    assert found.params == {"lr": "0.001", "depth": "4", "name": "x"}
    assert found.tags.items() >= {"a": "1", "b": "True", "c": "None", "mlflow.note.content": "of many"}.items()
    assert "gone" not in found.tags
    assert found.status == "FINISHED"
    assert found.dropped == 0
    opened = found.opens[0]
    assert (opened.run_name, opened.experiment_name, opened.resumed, opened.role) == ("first", "nets", False, "primary")
    assert isinstance(read_run(spool, run.info.run_id)[-1], SegmentEnd)


def test_metrics_logged_together_are_one_record(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metrics({f"m{index}": 1.0 for index in range(10)})
        mlferry.log_metrics({f"m{index}": 2.0 for index in range(10)})
        mlferry.log_metrics({f"n{index}": 2.0 for index in range(1200)})
    assert [len(record.values) for record in only(Metrics, read_run(spool, run.info.run_id))] == [10, 10, 500, 500, 200]


def test_no_metrics_are_no_record(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metrics({})
        mlferry.log_params({})
    assert only(Metrics, read_run(spool, run.info.run_id)) == []
    assert told(spool, run.info.run_id).dropped == 0


def test_logging_without_a_run_starts_one(spool: Path) -> None:
    assert mlferry.active_run() is None
    mlferry.log_metric("loss", 1.0)
    run = mlferry.active_run()
    assert run is not None
    mlferry.end_run()
    assert mlferry.active_run() is None
    assert mlferry.last_active_run() is run
    assert told(spool, run.info.run_id).values("loss") == [1.0]
    mlferry.log_metrics({"loss": 2.0})
    assert len(run_ids(spool)) == 2


def test_a_nested_run_knows_its_parent(spool: Path) -> None:
    with mlferry.start_run() as parent:
        with mlferry.start_run(nested=True) as child:
            mlferry.log_metric("loss", 1.0)
            assert mlferry.active_run() is child
        mlferry.log_metric("loss", 2.0)
        assert mlferry.active_run() is parent
    assert told(spool, child.info.run_id).values("loss") == [1.0]
    assert told(spool, parent.info.run_id).values("loss") == [2.0]
    assert told(spool, child.info.run_id).opens[0].parent_run_id == parent.info.run_id
    assert told(spool, child.info.run_id).tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_parent_may_be_named_where_none_is_active(spool: Path) -> None:
    with mlferry.start_run(parent_run_id="a" * 32) as child:
        pass
    assert told(spool, child.info.run_id).opens[0].parent_run_id == "a" * 32


def test_a_parent_that_is_not_the_active_run_is_refused(spool: Path) -> None:
    with mlferry.start_run(), pytest.raises(errors.WrongParent):
        mlferry.start_run(nested=True, parent_run_id="a" * 32)


def test_a_second_run_is_refused_while_one_is_active(spool: Path) -> None:
    with mlferry.start_run() as run:
        with pytest.raises(errors.RunAlreadyActive, match=run.info.run_id):
            mlferry.start_run()
        assert mlferry.active_run() is run
    assert len(run_ids(spool)) == 1


def test_a_run_is_resumed_in_its_own_directory(spool: Path) -> None:
    with mlferry.start_run(run_name="first") as run:
        mlferry.log_metric("loss", 1.0)
    with mlferry.start_run(run_id=run.info.run_id, run_name="second", tags={"more": "yes"}):
        mlferry.log_metric("loss", 2.0)
    assert run_ids(spool) == [run.info.run_id]
    found = told(spool, run.info.run_id)
    assert found.values("loss") == [1.0, 2.0]
    assert [opened.resumed for opened in found.opens] == [False, True]
    assert len({opened.attempt for opened in found.opens}) == 2
    assert found.tags["more"] == "yes"
    assert [update.run_name for update in only(RunUpdate, read_run(spool, run.info.run_id))] == ["second"]


def test_the_environment_may_name_the_run_once(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "b" * 32)
    with mlferry.start_run() as run:
        assert run.info.run_id == "b" * 32
    assert told(spool, "b" * 32).opens[0].resumed
    with mlferry.start_run() as another:
        assert another.info.run_id != run.info.run_id


def test_the_environment_may_name_the_experiment(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlferry.start_run() as by_default:
        pass
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from outside")
    with mlferry.start_run() as outside:
        pass
    mlferry.set_experiment("from inside")
    with mlferry.start_run() as inside:
        pass
    with mlferry.start_run(experiment_name="given") as given:
        pass
    with mlferry.start_run(experiment_id=12) as by_id:
        pass
    names = [
        told(spool, run.info.run_id).opens[0].experiment_name for run in (by_default, outside, inside, given, by_id)
    ]
    assert names == ["Default", "from outside", "from inside", "given", None]
    assert told(spool, by_id.info.run_id).opens[0].experiment_id == "12"


@pytest.mark.parametrize("arguments", [{}, {"experiment_name": "a", "experiment_id": "1"}, {"experiment_name": ""}])
def test_an_experiment_is_set_by_exactly_one_of_name_and_id(spool: Path, arguments: dict[str, str]) -> None:
    with pytest.raises(errors.BadExperiment):
        mlferry.set_experiment(**arguments)


def test_a_run_begins_with_the_tags_of_mlflow(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    with mlferry.start_run() as run:
        pass
    tags = told(spool, run.info.run_id).tags
    assert tags["mlflow.user"] == "ada"
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.name"]
    assert tags["mlflow.runName"] == run.info.run_name == told(spool, run.info.run_id).opens[0].run_name
    adjective, noun, number = str(run.info.run_name).split("-")
    assert adjective.isalpha()
    assert noun.isalpha()
    assert number.isdecimal()


def test_a_status_that_is_none_is_refused_and_the_run_stays(spool: Path) -> None:
    with mlferry.start_run() as run:
        with pytest.raises(errors.BadStatus):
            mlferry.end_run("DONE")
        assert mlferry.active_run() is run


def test_an_explicit_status_is_kept(spool: Path) -> None:
    run = mlferry.start_run()
    mlferry.end_run("KILLED")
    run.end("FINISHED")
    assert told(spool, run.info.run_id).status == run.info.status == "KILLED"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError(), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(3), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(), "FINISHED"),
    ],
)
def test_leaving_by_an_exception_says_how_the_run_ended(spool: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), mlferry.start_run() as run:
        raise error
    assert told(spool, run.info.run_id).status == status


def test_each_thread_has_its_own_active_run(spool: Path) -> None:
    names = [f"thread-{index}" for index in range(4)]

    def work(name: str) -> None:
        with mlferry.start_run(run_name=name):
            for step in range(50):
                mlferry.log_metric(name, float(step), step)

    with mlferry.start_run() as mine:
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert mlferry.active_run() is mine
    found = {told(spool, run_id).opens[0].run_name: told(spool, run_id) for run_id in run_ids(spool)}
    assert {name: found[name].values(name) for name in names} == {
        name: [float(step) for step in range(50)] for name in names
    }
    assert found[mine.info.run_name].points == []


def test_threads_may_share_a_run(spool: Path) -> None:
    with mlferry.start_run() as run:
        threads = [
            threading.Thread(target=lambda key=f"k{index}": [run.log_metric(key, float(at)) for at in range(300)])
            for index in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = told(spool, run.info.run_id)
    assert all(found.values(f"k{index}") == [float(at) for at in range(300)] for index in range(4))


def test_a_run_ended_by_another_thread_is_not_active_any_more(spool: Path) -> None:
    run = mlferry.start_run()
    thread = threading.Thread(target=run.end)
    thread.start()
    thread.join()
    assert mlferry.active_run() is None
    with mlferry.start_run() as another:
        assert another is not run


def test_a_run_may_be_used_without_being_active(spool: Path) -> None:
    with mlferry.open_run(experiment_name="explicit") as run:
        assert mlferry.active_run() is None
        run.log_metric("loss", 1.0, step=2)
        run.log_params({"a": 1})
    assert told(spool, run.info.run_id).values("loss") == [1.0]
    assert told(spool, run.info.run_id).status == "FINISHED"


def test_a_flushed_record_is_there_while_the_run_goes_on(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metric("loss", 1.0)
        mlferry.flush()
        assert told(spool, run.info.run_id).values("loss") == [1.0]
        assert told(spool, run.info.run_id).status is None


def test_one_process_is_one_writer(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_text("a", "a.txt")
    assert len(read_writers(spool, run.info.run_id)) == 1


def test_the_end_of_a_run_says_how_to_deliver_it(
    spool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFERRY_QUIET", "0")
    with mlferry.start_run() as run:
        mlferry.log_metric("bad", "no number")
        with mlferry.start_run(nested=True) as child:
            pass
    said = capsys.readouterr().err
    assert f"MLFERRY_DIR={spool} mlferry sync {run.info.run_id} --to http://your-mlflow-server:5000" in said
    assert "1 could not be stored (BadMetric 1)" in said
    assert child.info.run_id not in said
