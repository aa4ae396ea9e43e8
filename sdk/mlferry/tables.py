"""Tables -> the JSON (or Parquet) that MLflow's UI and ``mlflow.load_table`` read. Owns the appending within a process.

With pandas the bytes are those that MLflow writes; without it a dictionary still becomes the same columns-and-rows JSON.
``log_table`` under a name used before appends, so what was logged is kept in memory. Rows that another process logged under
the same name are not known here: the last writer's table stays.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlferry.errors import BadArtifact
from mlferry.images import is_image

__all__ = ["TABLES_TAG", "Tables", "check_table_name"]

#: Its value is a JSON list of ``{"path": ..., "type": "table"}``, by which MLflow's UI finds tables.
TABLES_TAG = "mlflow.loggedArtifacts"

_FORBIDDEN = "\"',:[]{}"


def check_table_name(artifact_file: str) -> None:
    """Raises BadArtifact where MLflow refuses the name."""
    if any(char in artifact_file for char in _FORBIDDEN) or not artifact_file.endswith((".json", ".parquet")):
        raise BadArtifact(
            f"a table's name ends in .json or .parquet and has none of {_FORBIDDEN} : {artifact_file!r:.100}"
        )


class Tables:
    """The tables that one process has logged in one run."""

    def __init__(self) -> None:
        self._frames: dict[str, Any] = {}

    def extended(self, artifact_file: str, data: Any, keep_image: Callable[[Any], dict[str, str]]) -> bytes:
        """The whole table with ``data`` (a dictionary of columns, or a DataFrame) appended, as the artifact's bytes.

        Args:
            keep_image: stores an image of a cell and returns what stands in the cell for it.

        Raises BadArtifact: it is no table, or cannot be written in this format.
        """
        if not isinstance(data, Mapping) and not hasattr(data, "to_json"):
            raise BadArtifact(f"a table is a dictionary or a pandas.DataFrame, not {type(data).__name__}")
        if hasattr(data, "to_json") or importlib.util.find_spec("pandas") is not None:
            return self._with_pandas(artifact_file, data, keep_image)
        return self._without_pandas(artifact_file, data, keep_image)

    @property
    def tag(self) -> str:
        """The value of ``TABLES_TAG`` for every table so far."""
        return json.dumps([{"path": path, "type": "table"} for path in self._frames])

    def _with_pandas(self, artifact_file: str, data: Any, keep_image: Callable[[Any], dict[str, str]]) -> bytes:
        import pandas

        frame = data.copy() if hasattr(data, "to_json") else _frame(pandas, dict(data))
        for column in frame.select_dtypes(exclude=["number", "bool"]).columns:
            if _images_only(str(column), list(frame[column])):
                frame[column] = frame[column].map(keep_image)
        before = self._frames.get(artifact_file)
        whole = frame if before is None else pandas.concat([before, frame], ignore_index=True)
        content = _parquet(whole) if artifact_file.endswith(".parquet") else _json(whole)
        self._frames[artifact_file] = whole
        return content

    def _without_pandas(self, artifact_file: str, data: Mapping[str, Any], keep_image: Callable[[Any], Any]) -> bytes:
        if artifact_file.endswith(".parquet"):
            raise BadArtifact("Parquet needs pandas: pip install pandas pyarrow")
        columns = {name: list(cells) if isinstance(cells, (list, tuple)) else [cells] for name, cells in data.items()}
        for name, cells in columns.items():
            columns[name] = [keep_image(cell) for cell in cells] if _images_only(str(name), cells) else cells
        before: dict[str, list[Any]] = self._frames.get(artifact_file, {})
        whole = _joined(before, columns)
        rows = list(zip(*whole.values(), strict=True))
        content = json.dumps({"columns": list(whole), "data": rows}, separators=(",", ":"), default=str).encode()
        self._frames[artifact_file] = whole
        return content


def _frame(pandas: Any, data: dict[str, Any]) -> Any:
    try:
        return pandas.DataFrame(data)
    except ValueError:  # only scalars: one row
        return pandas.DataFrame([data])


def _images_only(column: str, cells: list[Any]) -> bool:
    found = [is_image(cell) for cell in cells]
    if any(found) and not all(found):
        raise BadArtifact(f"column {column} mixes images with something else")
    return bool(found) and all(found)


def _json(frame: Any) -> bytes:
    return str(frame.to_json(orient="split", index=False, date_format="iso")).encode()


def _parquet(frame: Any) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="mlferry-") as directory:
        path = Path(directory, "table.parquet")
        frame.to_parquet(path, index=False)
        return path.read_bytes()


def _joined(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Rows below rows; a column that one side lacks is null there."""
    above, below = (max((len(cells) for cells in part.values()), default=0) for part in (before, after))
    return {
        name: [*before.get(name, [None] * above), *after.get(name, [None] * below)]
        for name in dict.fromkeys([*before, *after])
    }
