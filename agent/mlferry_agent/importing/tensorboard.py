"""TensorBoard event files -> runs. A folder with event files is a run, as it is in TensorBoard; its scalars are metrics.

Scalars are float32 in the files, and become the float64 of the same value. Hyperparameters of the hparams plugin are params.
What has no place in MLflow (images, histograms, graphs...) is counted and not lost: the event files themselves are
artifacts of the run, where TensorBoard can read them.

The files do not say how a run ended, or whether it has: one that is still written to is RUNNING, any other FINISHED.

Identity. A run's id follows from its first event file, from its name (which has the time, the host and the process in it)
and its first record: so it stays when the folder is moved, renamed or imported from above, and when the run has gone on.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlferry_agent.errors import BadSource
from mlferry_agent.importing.content import Columns, Run, RunsAlone, allowed_key
from mlferry_agent.importing.foreign import File, Folder, copy_file
from mlferry_agent.importing.recognition import Kind

__all__ = ["TensorBoard"]

_EXPERIMENT = "tensorboard"
_IN_ARTIFACTS = "tensorboard"
_MARK = "tfevents"

_SCALARS, _HPARAMS = "scalars", "hparams"
_HPARAMS_START = "_hparams_/session_start_info"

#: Of the first record as many bytes as every version of it has: its length, checksums and time.
_FIRST_BYTES = 128


@dataclass(slots=True)
class _Read:
    """What the event files of one folder hold."""

    first: float = math.inf
    last: float = -math.inf
    points: Columns = field(default_factory=Columns)
    params: dict[str, str] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)


class TensorBoard(RunsAlone):
    """A source: see ``content.Source``. ``scratch``: a directory for copies of the files.

    Raises:
        BadSource: the tensorboard package is not installed.
    """

    kind = Kind.TENSORBOARD.value

    def __init__(self, path: Path, scratch: Path, experiment: str | None, left_out: Counter[str]) -> None:
        self.left_out = left_out
        self._scratch = scratch
        self._experiment = experiment or _EXPERIMENT
        folder = Folder(path if path.is_dir() else path.parent)
        wanted = None if path.is_dir() else path.name
        self._runs: dict[tuple[str, ...], list[File]] = {}
        self._top = folder.root.resolve().name
        for file in folder.files((), left_out):
            if _MARK in file.parts[-1] and wanted in (None, file.parts[-1]) and _is_event_file(file):
                self._runs.setdefault(file.parts[:-1], []).append(file)

    def __len__(self) -> int:
        return len(self._runs)

    def runs(self) -> Iterator[Run]:
        seen: set[str] = set()
        for number, (parts, files) in enumerate(self._runs.items()):
            place = self._scratch / f"run-{number}"
            place.mkdir()
            run = self._run(parts, sorted(files, key=lambda file: file.parts[-1]), place)
            if run.run_id in seen:
                self.left_out["copies of runs that stand in another folder too"] += 1
            else:
                seen.add(run.run_id)
                yield run
            shutil.rmtree(place)

    def _run(self, parts: tuple[str, ...], files: list[File], place: Path) -> Run:
        read = _Read()
        for file in files:
            with file.open() as source:
                copy_file(source, place / file.parts[-1])
            self._read(place / file.parts[-1], read)
        start = _milliseconds(read.first) if math.isfinite(read.first) else 0
        copies = Folder(place)
        names = [file.parts[-1] for file in files]
        return Run(
            run_id=_identity(place / names[0]),
            experiment=self._experiment,
            start_time=start,
            status="RUNNING" if any(file.is_growing() for file in files) else "FINISHED",
            end_time=_milliseconds(read.last) if math.isfinite(read.last) else start,
            name="/".join(parts) or self._top,
            name_is_ours=True,
            params=read.params,
            tags={"mlflow.source.name": "tensorboard", "mlferry.imported_from": "tensorboard"},
            points=read.points.points(),
            files=[File(f"{_IN_ARTIFACTS}/{name}", copies, (name,)) for name in names],
        )

    def _read(self, path: Path, read: _Read) -> None:
        try:
            for event in _events(path):
                self._take(event, read)
        except Exception as error:  # the reader raises whatever its parser and its file layer raise
            if isinstance(error, (MemoryError, BadSource)):
                raise
            self.left_out["event files that are damaged, from the damage on"] += 1

    def _take(self, event: Any, read: _Read) -> None:
        time = event.wall_time
        if math.isfinite(time) and 0 < time < 1e11:
            read.first, read.last = min(read.first, time), max(read.last, time)
        for value in event.summary.value if event.HasField("summary") else ():
            plugin = value.metadata.plugin_data.plugin_name
            if plugin:
                read.plugins[value.tag] = plugin
            plugin = read.plugins.get(value.tag, "")
            if plugin == _SCALARS:
                self._take_scalar(value, event, read)
            elif plugin == _HPARAMS and value.tag == _HPARAMS_START:
                read.params.update(_hparams(value.metadata.plugin_data.content))
            elif plugin != _HPARAMS:
                self.left_out[
                    f"values of TensorBoard's {plugin or 'unnamed'} plugin, which are in the event files"
                ] += 1
        for part in ("graph_def", "meta_graph_def"):
            if event.HasField(part):
                self.left_out["graphs, which are in the event files"] += 1

    def _take_scalar(self, value: Any, event: Any, read: _Read) -> None:
        number = _scalar(value.tensor)
        if number is None:
            self.left_out["scalars that are no single number"] += 1
            return
        time = event.wall_time if math.isfinite(event.wall_time) and abs(event.wall_time) < 1e11 else 0.0
        read.points.add(allowed_key(value.tag), number, event.step, _milliseconds(time))


def _is_event_file(file: File) -> bool:
    with suppress(OSError), file.open() as source:
        return b"brain.Event:" in source.read(_FIRST_BYTES)
    return False


def _events(path: Path) -> Iterator[Any]:
    """Raises BadSource: the reader is not installed; whatever it raises for damage."""
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    except ImportError as error:
        raise BadSource("to read event files, TensorBoard is needed: pip install 'mlferry[import]'") from error
    yield from EventFileLoader(str(path)).Load()


def _scalar(tensor: Any) -> float | None:
    """The one number in a TensorProto: float32, float64 or an integer; None if it holds anything else."""
    for part in ("float_val", "double_val", "int_val", "int64_val", "half_val", "bool_val"):
        values = getattr(tensor, part)
        if len(values) == 1 and part != "half_val":
            return float(values[0])
    content, codes = tensor.tensor_content, {1: "<f", 2: "<d", 3: "<i", 9: "<q", 19: "<e"}
    code = codes.get(tensor.dtype)
    if code is None or len(content) != struct.calcsize(code):
        return None
    return float(struct.unpack(code, content)[0])


def _hparams(content: bytes) -> dict[str, str]:
    """Params of a training session. A number that is whole is written as one: the file knows only float64."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = HParamsPluginData.FromString(content).session_start_info.hparams
    return {allowed_key(name): _text(value) for name, value in sorted(found.items())}


def _text(value: Any) -> str:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return str(int(number)) if number.is_integer() and abs(number) < 1 << 53 else repr(number)
    return str(getattr(value, kind)) if kind in ("string_value", "bool_value") else ""


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _identity(first: Path) -> str:
    with first.open("rb") as file:
        head = file.read(12)
        size = min(struct.unpack("<Q", head[:8])[0], 1 << 20)
        record = file.read(size)
    return hashlib.sha256(b"tensorboard\0" + first.name.encode() + b"\0" + head + record).hexdigest()[:32]
