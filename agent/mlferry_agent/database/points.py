"""Metric records -> rows of MLflow's ``metrics``, ``latest_metrics`` and ``logged_model_metrics``. Pure.

This is the loop that the lane's rate hangs on, so it is plain: a key is checked once, a value costs a subtraction (only what
is finite gives zero when it is taken from itself), and a row is a tuple in the order of the table's primary key, so that
sorting rows brings them into the order of the index.

The rules are MLflow's (``SqlAlchemyStore._log_metrics`` and ``_update_latest_metrics_if_necessary``): NaN stands as 0 beside
a mark, infinities as the largest doubles, equal points are one, and the latest is the greatest (step, timestamp, value).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

from mlferry_agent import encoding
from mlferry_agent.errors import Unencodable
from mlferry_spool.records import Metrics, Series

__all__ = ["LatestRow", "ModelRow", "PointRow", "Points"]

#: key, timestamp, step, run, value, is NaN.
PointRow = tuple[str, int, int, str, float, int]

#: step, timestamp, value, is NaN.
LatestRow = tuple[int, int, float, int]

#: model, metric, timestamp, step, run, value, dataset name and digest.
ModelRow = tuple[str, str, int, int, str, float, "str | None", "str | None"]

_LARGEST = sys.float_info.max

Refuse = Callable[[str, str], None]


class Points:
    """The points of one run: ``rows`` and ``model_rows`` wait to be written, ``latest`` is kept of all that came by."""

    def __init__(self, run_id: str) -> None:
        self.rows: list[PointRow] = []
        self.model_rows: list[ModelRow] = []
        self.latest: dict[str, LatestRow] = {}
        self._run_id = run_id
        self._keys: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, record: Metrics, refuse: Refuse) -> None:
        """Take the points of a record. ``refuse``: told the name and the reason of what no MLflow would store."""
        timestamp, step, run_id = record.timestamp, record.step, self._run_id
        rows, latest, keys = self.rows, self.latest, self._keys
        links = record.model_id is not None or record.dataset_name is not None or record.dataset_digest is not None
        if links or timestamp < 0:
            self._add_slowly(record, refuse)
            return
        for key, value in record.values.items():
            if type(value) is not float or not keys.get(key):
                checked = self._checked(key, value, timestamp, step, refuse)
                if checked is None:
                    continue
                value = checked
            is_nan = 0
            if value - value != 0.0:
                value, is_nan = _stored(value)
            rows.append((key, timestamp, step, run_id, value, is_nan))
            now = latest.get(key)
            if now is None or step > now[0] or (step == now[0] and (timestamp, value) > now[1:3]):
                latest[key] = (step, timestamp, value, is_nan)

    def add_series(self, record: Series, refuse: Refuse) -> None:
        """The same for points that came as columns."""
        links = (record.model_id, record.dataset_name, record.dataset_digest)
        for value, step, timestamp in record.points():
            self.add(Metrics(timestamp, step, {record.key: value}, *links), refuse)

    def take(self) -> tuple[list[PointRow], list[ModelRow]]:
        """Hand over what waits."""
        taken = (self.rows, self.model_rows)
        self.rows, self.model_rows = [], []
        return taken

    def _checked(self, key: str, value: float, timestamp: int, step: int, refuse: Refuse) -> float | None:
        try:
            encoding.metric(key, value, timestamp, step)
        except Unencodable as error:
            refuse(key, error.reason)
            return None
        self._keys[key] = True
        return float(value)

    def _add_slowly(self, record: Metrics, refuse: Refuse) -> None:
        """Points that are a model's as well, or that no server would take."""
        links = {"dataset_name": record.dataset_name, "dataset_digest": record.dataset_digest}
        for key, value in record.values.items():
            try:
                encoding.metric(key, value, record.timestamp, record.step, model_id=record.model_id, **links)
            except Unencodable as error:
                refuse(key, error.reason)
                continue
            plain = Metrics(record.timestamp, record.step, {key: value})
            self.add(plain, refuse)
            if record.model_id is not None:
                stored, (name, digest) = _stored(float(value))[0], links.values()
                place = (record.model_id, key, record.timestamp, record.step, self._run_id)
                self.model_rows.append((*place, stored, name, digest))


def _stored(value: float) -> tuple[float, int]:
    if math.isnan(value):
        return 0.0, 1
    return (math.copysign(_LARGEST, value), 0) if math.isinf(value) else (value, 0)
