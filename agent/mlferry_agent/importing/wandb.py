"""wandb's offline runs -> runs: history is metrics, config is params, summary and run fields are tags, files are artifacts.

Numbers of history rows become points at the row's step and time; a nested number is ``outer.inner``. Config is flattened the
same way. What was a wandb type (histogram, image, table) is counted; files that wandb saved for it are among the artifacts.

Identity. A run's id follows from entity, project and run id, so several files of one run (it was resumed) and a file that
has grown are the same run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlferry_agent.errors import BadSource
from mlferry_agent.importing.content import Columns, Run, RunsAlone, allowed_key
from mlferry_agent.importing.foreign import File, Folder
from mlferry_agent.importing.recognition import Kind
from mlferry_agent.importing.wandb_files import records

__all__ = ["Wandb"]

_MARK = b":W&B"
#: Keys of history and config that are wandb's own.
_OWN = ("_step", "_timestamp", "_runtime", "_wandb")

_NO_NUMBERS = "values of wandb's history that are no numbers (texts, media, histograms, tables)"

#: How deep wandb's config and history may be nested.
#: Beyond: what lies deeper is one value, as JSON.
#: Test: tests/unit/importing/test_wandb.py::test_config_nested_deeper_than_that_becomes_json
_MAX_DEPTH = 20


@dataclass(slots=True)
class _Read:
    """What the files of one run hold. Times are seconds."""

    run: Any = None
    started: float = math.inf
    last: float = 0.0
    exit_code: int | None = None
    points: Columns = field(default_factory=Columns)
    config: dict[str, str] = field(default_factory=dict)
    summary: dict[str, str] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)
    growing: bool = False


class Wandb(RunsAlone):
    """A source: see ``content.Source``; ``experiment``: instead of the wandb project's name."""

    kind = Kind.WANDB.value

    def __init__(self, path: Path, scratch: Path, experiment: str | None, left_out: Counter[str]) -> None:
        self.left_out = left_out
        self._experiment = experiment
        folder = Folder(path if path.is_dir() else path.parent)
        wanted = None if path.is_dir() else path.name
        self._logs = [
            file
            for file in folder.files((), Counter(), enters=_is_no_data)
            if file.parts[-1].endswith(".wandb") and wanted in (None, file.parts[-1])
        ]

    def __len__(self) -> int:
        return len(self._logs)

    def runs(self) -> Iterator[Run]:
        """Files of one run are read together, in the order of their folders, which begin with the time."""
        found: dict[str, list[File]] = {}
        for file in self._logs:
            identity = self._identity(file)
            if identity is not None:
                found.setdefault(identity, []).append(file)
        for identity, files in found.items():
            read = _Read()
            for file in files:
                self._read(file, read)
            yield self._run(identity, read)

    # -- reading -------------------------------------------------------------------------------------------------------

    def _records(self, file: File, *, counting: bool = True) -> Iterator[Any]:
        def damaged() -> None:
            self.left_out["records of wandb files that are damaged"] += counting

        try:
            with file.open() as source:
                if source.read(4) != _MARK:
                    damaged()
                    return
                yield from records(source, damaged)
        except ImportError as error:
            raise BadSource("to read wandb's files, protobuf is needed: pip install 'mlferry[import]'") from error

    def _identity(self, file: File) -> str | None:
        for record in self._records(file, counting=False):
            if record.HasField("run") and record.run.run_id:
                run = record.run
                told = "\0".join(("wandb", run.entity, run.project, run.run_id))
                return hashlib.sha256(told.encode()).hexdigest()[:32]
        self.left_out["wandb files that name no run"] += 1
        return None

    def _read(self, file: File, read: _Read) -> None:
        for record in self._records(file):
            if record.HasField("run"):
                read.run = record.run
                _change(read.config, record.run.config)
                read.started = min(read.started, _seconds(record.run.start_time))
                read.last = max(read.last, read.started if math.isfinite(read.started) else 0.0)
            elif record.HasField("config"):
                _change(read.config, record.config)
            elif record.HasField("summary"):
                _change(read.summary, record.summary)
            elif record.HasField("history"):
                self._take_row(record.history, read)
            elif record.HasField("stats"):
                self._take_stats(record.stats, read)
            elif record.HasField("artifact"):
                self.left_out["wandb artifacts, of which an offline run has the description alone"] += 1
            elif record.HasField("exit"):
                read.exit_code = record.exit.exit_code
        read.growing |= file.is_growing()
        above = file.parts[:-1]
        read.files += file.folder.files((*above, "files"), self.left_out)

    def _take_row(self, row: Any, read: _Read) -> None:
        values = _tree(row.item)
        time = values.get("_timestamp")
        seconds = float(time) if isinstance(time, (int, float)) and 0 < time < 1e11 else read.last
        read.last = max(read.last, seconds)
        step = values.get("_step", row.step.num)
        plain, media = _without_media(values)
        self.left_out[_NO_NUMBERS] += media
        for key, value in _leaves(plain):
            if key.split(".")[0] in _OWN:
                continue
            if isinstance(value, (int, float)) and isinstance(step, int):
                self._add(read, allowed_key(key), value, step, seconds)
            else:
                self.left_out[_NO_NUMBERS] += 1

    def _take_stats(self, stats: Any, read: _Read) -> None:
        seconds = _seconds(stats.timestamp)
        if not math.isfinite(seconds):
            return
        for item in stats.item:
            value = _json(item.value_json)
            if isinstance(value, (int, float)):
                # As a step the time since the start, since a sample belongs to no step of the training.
                step = max(0, int(seconds - read.started)) if math.isfinite(read.started) else 0
                self._add(read, f"system/{allowed_key(item.key)}", value, step, seconds)

    def _add(self, read: _Read, key: str, value: float, step: int, seconds: float) -> None:
        try:
            read.points.add(key, float(value), step, round(seconds * 1000))
        except OverflowError:
            self.left_out["values of wandb's history that are out of range"] += 1

    # -- telling -------------------------------------------------------------------------------------------------------

    def _run(self, identity: str, read: _Read) -> Run:
        run = read.run
        start = round(read.started * 1000) if math.isfinite(read.started) else 0
        return Run(
            run_id=identity,
            experiment=self._experiment or run.project or "wandb",
            start_time=start,
            status=_status(read),
            end_time=max(start, round(read.last * 1000)),
            name=run.display_name or run.run_id,
            params=_params(read.config),
            tags=_tags(run, read.summary),
            points=read.points.points(),
            files=read.files,
        )


def _status(read: _Read) -> str:
    """Without an exit code the program still runs, or was killed."""
    if read.exit_code is None:
        return "RUNNING" if read.growing else "KILLED"
    return "FAILED" if read.exit_code else "FINISHED"


def _is_no_data(parts: tuple[str, ...]) -> bool:
    return parts[-1] not in ("files", "logs", "tmp")


def _change(texts: dict[str, str], changes: Any) -> None:
    for item in changes.update:
        texts[_path(item)] = item.value_json
    for item in changes.remove:
        texts.pop(_path(item), None)


def _path(item: Any) -> str:
    return ".".join(item.nested_key) if item.nested_key else str(item.key)


def _tree(items: Any) -> dict[str, Any]:
    return {_path(item): _json(item.value_json) for item in items}


def _without_media(values: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Values that are none of wandb's types, whose parts stand under ``name.``, and how many of those there were."""
    media = tuple(f"{key.removesuffix('_type')}" for key in values if key.endswith("._type"))
    plain = {key: value for key, value in values.items() if not media or not key.startswith(media)}
    whole = {key: value for key, value in plain.items() if not (isinstance(value, dict) and "_type" in value)}
    return whole, len(media) + len(plain) - len(whole)


def _json(text: str) -> Any:
    """A value; what is no JSON, or deeper than anybody's config, is none."""
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _leaves(values: dict[str, Any], before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """``outer.inner`` and its value."""
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, dict) and value and depth < _MAX_DEPTH:
            yield from _leaves(value, f"{name}.", depth + 1)
        else:
            yield name, value


def _params(config: dict[str, str]) -> dict[str, str]:
    """Config as texts: a text as it is, everything else as JSON; wandb wraps each value of some versions in ``value``."""
    values = {key: _json(text) for key, text in config.items()}
    unwrapped = {
        key: value["value"]
        if isinstance(value, dict) and set(value) <= {"value", "desc"} and "value" in value
        else value
        for key, value in values.items()
    }
    told = ((key, value) for key, value in _leaves(unwrapped) if key.split(".")[0] not in _OWN)
    return {allowed_key(key): value if isinstance(value, str) else json.dumps(value) for key, value in told}


def _tags(run: Any, summary: dict[str, str]) -> dict[str, str]:
    tags = {f"wandb.tag.{allowed_key(tag)}": "true" for tag in run.tags}
    told = {
        "mlflow.note.content": run.notes,
        "mlflow.source.git.commit": run.git.commit,
        "mlflow.source.git.repoURL": run.git.remote_url,
        "wandb.entity": run.entity,
        "wandb.project": run.project,
        "wandb.run_id": run.run_id,
        "wandb.group": run.run_group,
        "wandb.job_type": run.job_type,
        "wandb.sweep": run.sweep_id,
        "wandb.host": run.host,
    }
    tags |= {key: str(text) for key, text in told.items() if text}
    for key, text in _without_media(summary)[0].items():
        if key.split(".")[0] not in _OWN and len(text) <= 5000:
            tags[f"wandb.summary.{allowed_key(key)}"] = text
    return tags


def _seconds(time: Any) -> float:
    """Infinite where there is none."""
    return time.seconds + time.nanos / 1e9 if 0 < time.seconds < 10**11 else math.inf
