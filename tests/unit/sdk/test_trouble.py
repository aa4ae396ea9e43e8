"""Training never fails because of logging: what cannot be kept is counted, said once, stated in the log, and reported."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from numpy import array
from tests.spools import only, read_run, told
from tests.unit.sdk.conftest import Program

import mlferry
from mlferry import ending, errors
from mlferry.guard import explained
from mlferry_spool.records import Dropped

BAD: list[tuple[str, Callable[[], Any], type[errors.NotLogged]]] = [
    ("key", lambda: mlferry.log_metric("a@b", 1.0), errors.BadKey),
    ("key that is no text", lambda: mlferry.log_metric(7, 1.0), errors.BadKey),  # type: ignore[arg-type]
    ("key that cannot be hashed", lambda: mlferry.log_metric([], 1.0), errors.BadKey),  # type: ignore[arg-type]
    ("value", lambda: mlferry.log_metric("a", "x"), errors.BadMetric),
    ("value that raises", lambda: mlferry.log_metric("a", Raises()), errors.BadMetric),
    ("no mapping", lambda: mlferry.log_metrics([1.0]), errors.BadKey),  # type: ignore[arg-type]
    ("metrics that fail", lambda: mlferry.log_metrics(RaisesInside()), errors.BadKey),
    ("sum that fails", lambda: mlferry.log_metrics({"other": 1.0, "a": RaisesInside()}), errors.BadMetric),
    ("step", lambda: mlferry.log_metric("a", 1.0, step=2**63), errors.BadStep),
    ("step of several", lambda: mlferry.log_metrics({"a": 1.0}, step=array([1, 2])), errors.BadStep),
    ("step that raises", lambda: mlferry.log_metric("a", 1.0, step=Raises()), errors.BadStep),  # type: ignore[arg-type]
    ("series", lambda: mlferry.log_series("a", ["x"]), errors.BadSeries),
    ("param changed", lambda: (mlferry.log_param("p", 1), mlferry.log_param("p", 2)), errors.ParamChanged),
    ("surrogate", lambda: mlferry.log_param("q", "\ud800"), errors.BadText),
    ("param that raises", lambda: mlferry.log_param("q", Raises()), errors.BadText),
    ("param whose key raises", lambda: mlferry.log_param(Raises(), 1), errors.BadKey),  # type: ignore[arg-type]
    ("param whose key cannot be hashed", lambda: mlferry.log_param([], 1), errors.BadKey),  # type: ignore[arg-type]
    ("params that fail", lambda: mlferry.log_params(RaisesInside()), errors.BadKey),
    ("tag", lambda: mlferry.set_tag("/t", 1), errors.BadKey),
    ("tag that raises", lambda: mlferry.set_tag("q", Raises()), errors.BadText),
    ("tags that fail", lambda: mlferry.set_tags(RaisesInside()), errors.BadKey),
    ("artifact", lambda: mlferry.log_artifact("/nowhere"), errors.BadArtifact),
    ("path", lambda: mlferry.log_text("x", ".."), errors.BadArtifactPath),
    ("figure", lambda: mlferry.log_figure(Raises(), "x.png"), errors.BadArtifact),
    ("dictionary", lambda: mlferry.log_dict({"a": Raises()}, "x.yaml"), errors.BadArtifact),
    ("table", lambda: mlferry.log_table(Raises(), "x.json"), errors.BadArtifact),
    ("image", lambda: mlferry.log_image(Raises(), "x.png"), errors.BadArtifact),
    ("dataset", lambda: mlferry.log_input(Raises()), errors.BadDataset),
    ("deleted tag", lambda: mlferry.delete_tag("a\nb"), errors.BadKey),
]


class Raises:
    """Somebody's object that fails whatever it is asked for."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not today")

    def __float__(self) -> float:
        raise RuntimeError("not today")

    def __reduce__(self) -> Any:
        raise RuntimeError("not today")

    def __repr__(self) -> str:
        raise RuntimeError("not today")


class RaisesInside(Mapping[str, Any]):
    """A mapping that breaks once somebody looks into it; as a number it is no better."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("not today")

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1

    def __radd__(self, other: object) -> Any:
        raise RuntimeError("not today")


@pytest.mark.parametrize(("call", "error"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_cannot_be_logged_is_counted_and_the_rest_goes_on(
    spool: Path, caplog: pytest.LogCaptureFixture, call: Callable[[], Any], error: type[errors.NotLogged]
) -> None:
    with mlferry.start_run() as run:
        call()
        call()
        mlferry.log_metric("after", 1.0)
    found = told(spool, run.info.run_id)
    assert found.values("after") == [1.0]
    assert found.status == "FINISHED"
    assert found.dropped == run.dropped >= 2
    assert error.says() in caplog.text
    assert caplog.text.count(error.says()) == len({record.getMessage() for record in caplog.records})


@pytest.mark.parametrize(("call", "error"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_the_same_is_raised_where_that_is_asked_for(
    raising: Path, call: Callable[[], Any], error: type[errors.NotLogged]
) -> None:
    with mlferry.start_run() as run, pytest.raises(error):
        call()
    assert told(raising, run.info.run_id).status == "FINISHED"


def test_a_bad_entry_stops_only_itself(spool: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_metrics({"good": 1.0, "bad@": 2.0, "worse": "x", "fine": 3})
        mlferry.log_params({"good": 1, "bad@": 2})
        mlferry.set_tags({"good": 1, "bad@": 2})
    found = told(spool, run.info.run_id)
    assert {key for key, *_ in found.points} == {"good", "fine"}
    assert found.params == {"good": "1"}
    assert found.tags["good"] == "1"
    assert found.dropped == 4
    (gaps, *_) = only(Dropped, read_run(spool, run.info.run_id))
    assert gaps.reason


def test_the_good_entries_are_kept_before_the_bad_one_is_raised(raising: Path) -> None:
    with mlferry.start_run() as run, pytest.raises(errors.BadKey):
        mlferry.log_metrics({"bad@": 2.0, "good": 1.0})
    assert told(raising, run.info.run_id).values("good") == [1.0]


def test_what_a_signal_handler_raises_reaches_the_program_and_nothing_is_logged_twice(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        """An appender in whose methods a handler raises, after the write."""

        def __init__(self, appender: Any) -> None:
            self._appender = appender

        def append_point(self, *given: Any) -> bool:
            assert self._appender.append_point(*given)
            raise TimeoutError

        def append_points(self, *given: Any) -> bool:
            assert self._appender.append_points(*given)
            raise TimeoutError

    with mlferry.start_run() as run:
        run.log_metrics({"a": 0.0, "b": 0.0})  # now the names are known
        monkeypatch.setattr(run, "_appender", Interrupted(run._appender))
        for call in (lambda: run.log_metric("a", 1.0), lambda: run.log_metrics({"a": 2.0, "b": 2.0})):
            with pytest.raises(TimeoutError):
                call()
        monkeypatch.undo()
    assert told(spool, run.info.run_id).values("a") == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("text", ["\ud800", "name\udce9", 7], ids=ascii)
def test_a_run_begins_whatever_its_texts_hold(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: Any
) -> None:
    for name in ("LOGNAME", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "\udce9")  # what Python makes of a byte that is not UTF-8
    monkeypatch.setattr("sys.argv", ["caf\udce9.py"])
    with mlferry.start_run(run_name=text) as run:
        mlferry.log_metric("a", 1.0)
    found = told(spool, run.info.run_id)
    assert found.values("a") == [1.0]
    assert found.tags["mlflow.source.name"] == r"caf\udce9.py"
    assert found.tags["mlflow.runName"] == str(text).encode("utf-8", "backslashreplace").decode()


def test_an_experiment_that_utf_8_cannot_hold_is_refused_before_it_is_set(spool: Path) -> None:
    with pytest.raises(errors.BadExperiment):
        mlferry.set_experiment("\ud800")
    with mlferry.start_run() as run:
        assert run.info.experiment_name == "Default"


def test_a_param_may_be_logged_again_with_the_same_value(raising: Path) -> None:
    with mlferry.start_run() as run:
        mlferry.log_param("lr", 0.1)
        mlferry.log_param("lr", "0.1")
        with pytest.raises(errors.ParamChanged, match=r"'0\.1' is kept, '0\.2' is not"):
            mlferry.log_param("lr", 0.2)
    assert told(raising, run.info.run_id).params == {"lr": "0.1"}


def test_a_long_value_is_refused_where_it_must_not_be_cut(raising: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    with mlferry.start_run(), pytest.raises(errors.TextTooLong, match="6001"):
        mlferry.log_param("p", "x" * 6001)


def test_nothing_is_said_where_that_is_asked_for(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFERRY_ON_ERROR", "ignore")
    with mlferry.start_run() as run:
        mlferry.log_metric("a@b", 1.0)
    assert caplog.records == []
    assert told(spool, run.info.run_id).dropped == 1


def test_complaints_do_not_fill_the_terminal(spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mlferry.start_run() as run:
        for index in range(100):
            mlferry.log_metric(f"bad@{index}", 1.0)
    assert len(caplog.records) == 21
    assert "only counted" in caplog.records[-1].getMessage()
    assert told(spool, run.info.run_id).dropped == 100


@pytest.mark.parametrize("name", ["MLFERRY_FSYNC", "MLFERRY_ON_ERROR", "MLFERRY_QUIET", "MLFLOW_TRUNCATE_LONG_VALUES"])
def test_a_setting_that_makes_no_sense_does_not_stop_training(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setenv(name, "perhaps")
    with mlferry.start_run() as run:
        mlferry.log_metric("a", 1.0)
    assert f"{name}='perhaps'" in caplog.text
    assert told(spool, run.info.run_id).values("a") == [1.0]


def test_logging_to_a_run_that_has_ended_is_counted_and_said(spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mlferry.start_run() as run:
        pass
    run.log_metric("late", 1.0)
    run.log_metric("late", 2.0)
    assert "has ended" in caplog.text
    assert run.dropped == 2


def test_a_spool_that_cannot_be_made_does_not_stop_training(
    tmp_path: Path, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MLFERRY_DIR", str(tmp_path / "file" / "spool"))
    with mlferry.start_run() as run:
        for step in range(5):
            mlferry.log_metric("loss", 1.0, step)
        mlferry.log_text("x", "x.txt")
        mlferry.log_param("p", 1)
    assert run.dropped >= 7
    assert caplog.records


def test_a_spool_that_cannot_be_made_is_raised_where_that_is_asked_for(
    tmp_path: Path, raising: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MLFERRY_DIR", str(tmp_path / "file" / "spool"))
    with pytest.raises(errors.NotStored):
        mlferry.start_run()
    assert mlferry.active_run() is None
    assert ending.open_runs() == []


def test_a_full_disk_does_not_stop_training(program: Program, tmp_path: Path) -> None:
    ended = program("""
import resource, signal
import mlferry
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with mlferry.start_run() as run:
    mlferry.log_metric("before", 1.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    for step in range(100):
        mlferry.log_metric("during", 1.0, step)
    mlferry.log_text("x" * 100, "during.txt")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    import time
    time.sleep(1.1)
    mlferry.log_metric("after", 1.0)
print(run.info.run_id, run.dropped)
""")
    assert ended.returncode == 0, ended.stderr
    run_id, dropped = ended.stdout.split()
    found = told(tmp_path / "spool", run_id)
    assert found.values("before") == [1.0]
    assert found.values("after") == [1.0]
    assert found.values("during") == []
    assert found.dropped == int(dropped) == 101
    assert found.status == "FINISHED"
    assert "101 could not be stored" in ended.stderr


def test_warnings_reach_a_terminal_without_any_logging_set_up(program: Program) -> None:
    ended = program("import mlferry\nwith mlferry.start_run(): mlferry.log_metric('a@b', 1.0)\n")
    assert ended.returncode == 0
    assert "'a@b'" in ended.stderr


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left"), errors.NotStored),
        (OSError(errno.ENOENT, "No such file"), errors.BadArtifact),
        (ValueError("x"), errors.BadArtifact),
        (errors.BadKey("x"), errors.BadKey),
    ],
)
def test_an_error_is_named_by_what_it_means_for_the_user(error: Exception, kind: type[errors.MlferryError]) -> None:
    assert type(explained(error)) is kind


def test_every_error_says_what_happened_in_a_sentence_or_two() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MlferryError)]
    assert len(kinds) > 10
    for kind in kinds:
        assert kind.says().endswith(".")
        assert str(kind("detail")).endswith("(detail)")
    assert logging.getLogger("mlferry").level == logging.NOTSET
