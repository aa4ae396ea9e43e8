"""An MLflow store -> a database of the newest schema in a directory of ours, which is all that is read afterwards.

The original is never written, and never read by anybody's code but SQLite's and ours. A database is copied with SQLite's
backup, which is whole even while a server writes to it, and MLflow's own migration brings the copy up to date. Of a file
store everything but the artifacts is copied, without following a link, and MLflow's own ``migrate-filestore`` makes a
database of the copy. These run as commands of their own, so that the agent never imports MLflow.

A file store keeps a point as often as it was sent; the migration stops at the second. So each point is copied once.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mlferry_agent.errors import BadSource, FileTrouble
from mlferry_agent.importing.foreign import File, Folder, copy_file
from mlferry_spool.fold import as_stored

__all__ = ["copy_database", "copy_file_store", "write_traces"]

_NO_POINTS = "lines of a file store that are no points"

#: Characters of an error of MLflow's that are shown.
_SHOWN = 300


def copy_database(original: Path, directory: Path) -> Path:
    """A copy of a SQLite database, brought up to date.

    Raises:
        BadSource: it is damaged, no database of MLflow's, newer than the MLflow here, or there is none.
        OSError: the disk.
    """
    copy = directory / "mlflow.db"
    try:
        _back_up(f"{original.resolve().as_uri()}?mode=ro", copy)
    except sqlite3.Error:
        # Its last writer was killed: what that left has to be rolled back or read in, which SQLite does in a copy of all.
        with contextlib.suppress(FileNotFoundError):
            copy.unlink()
        try:
            _back_up(_with_logs(original, directory).as_uri(), copy)
        except sqlite3.Error as error:
            if "full" in str(error):
                raise FileTrouble(f"{directory}: the disk takes no more") from error
            raise BadSource(f"the database is damaged: {error}") from error
    _run("mlflow", "db", "upgrade", f"sqlite:///{copy}", where=directory)
    return copy


def _with_logs(original: Path, directory: Path) -> Path:
    aside = directory / "as-found.db"
    for ending in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError), Path(f"{original}{ending}").open("rb") as source:
            copy_file(source, Path(f"{aside}{ending}"))
    return aside.resolve()


def _back_up(uri: str, copy: Path) -> None:
    """Raises sqlite3.Error: it cannot be opened as it is. BadSource: it is damaged, or not MLflow's."""
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30)) as source:
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        with contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target, pages=4096)
            try:
                [(verdict,)] = target.execute("PRAGMA quick_check(1)").fetchall()
                tables = {name for (name,) in target.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            except sqlite3.Error as error:
                raise BadSource(f"the database is damaged: {error}") from error
    if verdict != "ok":
        raise BadSource(f"the database is damaged: {verdict}")
    if not {"experiments", "runs", "metrics"} <= tables:
        raise BadSource("the database is none of MLflow's: it has no experiments, runs and metrics")


def copy_file_store(original: Folder, directory: Path, left_out: Counter[str]) -> Path:
    """A database with what a file store (``mlruns``) holds, its artifacts apart. Raises as ``copy_database``."""
    store, target = directory / "mlruns", directory / "mlflow.db"
    store.mkdir()
    for file in original.files((), left_out, enters=_is_no_artifacts):
        to = store.joinpath(*file.parts)
        to.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = file.open()
        except OSError:
            left_out["files that cannot be read"] += 1
            continue
        with source:
            _copy_part(file, source, to, left_out)
    _run("mlflow", "migrate-filestore", "--source", str(store), "--target", f"sqlite:///{target}", where=directory)
    return target


def _is_no_artifacts(parts: tuple[str, ...]) -> bool:
    """Whether a folder is entered: artifacts are taken from where they are."""
    parts = parts[1:] if parts[0] == ".trash" else parts
    depth = 3 if len(parts) > 1 and parts[1] in ("models", "traces") else 2
    return not (len(parts) == depth + 1 and parts[depth] == "artifacts")


def _copy_part(file: File, source: BinaryIO, to: Path, left_out: Counter[str]) -> None:
    parts = file.parts[1:] if file.parts[0] == ".trash" else file.parts
    is_of_model = len(parts) > 4 and parts[1] == "models" and parts[3] == "metrics"
    if is_of_model or (len(parts) > 3 and parts[2] == "metrics" and parts[1] not in ("models", "traces")):
        to.write_bytes(b"".join(_points_once(source, is_of_model, left_out)))
    else:
        copy_file(source, to)


def _points_once(lines: BinaryIO, is_of_model: bool, left_out: Counter[str]) -> Iterator[bytes]:
    """Each point once, as MLflow's database would keep it: of a model's there is one a time, step and run."""
    seen: set[tuple[object, ...]] = set()
    for line in lines:
        words = line.split()
        try:
            time, value, step = int(words[0]), float(words[1]), int(words[2]) if len(words) > 2 else 0
            if any(abs(number) >= 1 << 63 for number in (time, step)):
                raise ValueError
        except (ValueError, IndexError):
            left_out[_NO_POINTS] += bool(words)
            continue
        point = (
            (time, step, words[3] if len(words) > 3 else b"") if is_of_model else (time, step, repr(as_stored(value)))
        )
        if point not in seen:
            seen.add(point)
            words[1] = repr(as_stored(value)).encode()  # the migration does this for the points of runs alone
            yield b" ".join(words) + b"\n"


def write_traces(database: Path, directory: Path) -> Path:
    """A file with the traces of an up-to-date database: see ``mlflow_traces``. Raises BadSource."""
    out = directory / "traces"
    _run("mlferry_agent.importing.mlflow_traces", str(database), str(out), where=directory)
    return out


def _run(module: str, *words: str, where: Path) -> None:
    """Run a module of Python's. Raises BadSource: MLflow is not installed, or refuses what it was given."""
    empty = where / "work"
    empty.mkdir(exist_ok=True)  # Python looks for modules where it works
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MLFERRY_"))}
    told = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        env={**clean, **told},
        cwd=empty,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise BadSource(_what_failed(done.stderr.decode("utf-8", "replace")))


def _what_failed(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith((" ", "(Background", "["))]
    if "No module named mlflow" in said:
        return "to read an MLflow store, MLflow itself is needed: pip install 'mlferry[import]'"
    if "No such command" in said:
        return "this MLflow is too old to read a file store: pip install -U mlflow"
    if "Can't locate revision" in said:
        return "the database was written by a newer MLflow than the one here: pip install -U mlflow"
    return f"MLflow cannot read it: {lines[-1][:_SHOWN] if lines else 'it says nothing'}"
