"""Reading runs, experiments and logged models back: the reading half of the tracking store, answered from the catalogue.

Filters, orders and pages are MLflow's own (``mlflow.utils.search_utils``), applied to entities; what differs from its SQL
store is mended here: which experiments an unknown id means, and how ties are ordered.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mlflow.entities import Experiment, LoggedModel, Metric, Run, ViewType
from mlflow.entities.dataset_summary import _DatasetSummary
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking import SEARCH_MAX_RESULTS_THRESHOLD
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.search_logged_model_utils import parse_filter_string
from mlflow.utils.search_utils import SearchExperimentsUtils, SearchLoggedModelsUtils, SearchUtils

from mlferry.plugin import entities, versions
from mlferry_spool.catalogue import Catalogue
from mlferry_spool.fold import ModelState, Point, RunState
from mlferry_spool.fold_store import ExperimentState

__all__ = ["Reads", "as_shown", "in_session", "invalid", "no_such"]

_MODELS_A_PAGE, _MOST_DATASETS = 100, 1000

#: Runs that are kept as entities, a few kilobytes each.
#: Beyond: all are made anew.
#: Test: tests/unit/plugin/test_writes.py::test_a_search_over_more_runs_than_are_kept_finds_all_of_them
_MOST_SHOWN = 20_000
_NEWEST_EXPERIMENT_FIRST = ["creation_time DESC", "experiment_id ASC"]


def no_such(what: str) -> MlflowException:
    return MlflowException(what, RESOURCE_DOES_NOT_EXIST)


def invalid(what: str) -> MlflowException:
    return MlflowException(what, INVALID_PARAMETER_VALUE)


@contextlib.contextmanager
def in_session() -> Iterator[None]:
    """What goes wrong inside a session of the SQL store, MLflow's users see as its own exception."""
    try:
        yield
    except MlflowException:
        raise
    except Exception as error:
        raise MlflowException(str(error), INTERNAL_ERROR) from error


class Shown:
    """Runs as entities for searches, made anew only for what has changed: 1,000 of them take longer than the search."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[RunState, tuple[Any, ...], Run]] = {}

    def get(self, state: RunState, place: ExperimentState, make: Callable[[RunState, ExperimentState], Run]) -> Run:
        version = (state.revision, place.experiment_id, place.artifact_location)
        known = self._known.get(state.run_id)
        if known is None or known[0] is not state or known[1] != version:
            if len(self._known) >= _MOST_SHOWN:
                self._known.clear()
            known = self._known[state.run_id] = state, version, make(state, place)
        return known[2]


class Reads:
    """The reading half of the tracking store of the spool at ``root``."""

    root: Path
    catalogue: Catalogue

    def __init__(self) -> None:
        self._shown = Shown()

    # -- runs ----------------------------------------------------------------------------------------------------------

    def get_run(self, run_id: str) -> Run:
        state = self.catalogue.run(run_id)
        if state is None or state.opening is None:
            raise no_such(f"Run with id={run_id} not found")
        return self._run(state, self._experiment_of(state))

    def _run(self, state: RunState, experiment: ExperimentState) -> Run:
        return entities.run_entity(self.root, state, experiment, self.catalogue.directories(state.run_id))

    def _experiment_of(self, state: RunState) -> ExperimentState:
        experiment_id = self.catalogue.experiment_id_of(state)
        return self.catalogue.store().experiments().get(experiment_id) or ExperimentState(experiment_id, experiment_id)

    def _search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str | None,
        run_view_type: int,
        max_results: int | None,
        order_by: list[str] | None,
        page_token: str | None,
    ) -> tuple[list[Run], str | None]:
        check_max_results(max_results, allow_none=True)
        SearchUtils.parse_search_filter(
            filter_string
        )  # says what is wrong with it also where there is nothing to filter
        for experiment_id in experiment_ids:
            _number(experiment_id)
        of_run = {state.run_id: (state, place) for state, place in self._runs_of(experiment_ids, run_view_type)}
        runs = [self._shown.get(state, place, self._run) for state, place in of_run.values()]
        found = _sorted(SearchUtils.filter(runs, filter_string), order_by)
        most = max_results if max_results is not None else max(len(found), 1)
        page, token = SearchUtils.paginate(found, page_token, most)
        return [self._run(*of_run[run.info.run_id]) for run in page], token  # the caller's own, to do with as it likes

    def _runs_of(self, experiment_ids: list[str], view: int) -> Iterable[tuple[RunState, ExperimentState]]:
        states = self.catalogue.runs()
        wanted, experiments = {str(experiment_id) for experiment_id in experiment_ids}, self.catalogue.experiments()
        by_name = {state.name: state.experiment_id for state in experiments.values()}
        for state in states:
            opening = state.opening
            assert opening is not None
            experiment_id = opening.offline_experiment_id or by_name.get(opening.experiment_name or "")
            experiment_id = experiment_id or opening.experiment_id or "0"
            if experiment_id in wanted and _in_view(state.lifecycle.value, view):
                experiment = experiments.get(experiment_id) or ExperimentState(experiment_id, experiment_id)
                yield state, experiment

    def _search_datasets(self, experiment_ids: list[str]) -> list[_DatasetSummary]:
        """What the UI offers to choose from: the datasets of some experiments' runs."""
        found: dict[tuple[str, str, str, str | None], None] = {}
        for state, place in self._runs_of(experiment_ids, ViewType.ALL):
            for _, dataset in state.datasets.values():
                context = dataset.tags.get(MLFLOW_DATASET_CONTEXT)
                found[place.experiment_id, dataset.name, dataset.digest, context] = None
        return [_DatasetSummary(*told) for told in list(found)[:_MOST_DATASETS]]

    # -- metrics -------------------------------------------------------------------------------------------------------

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> PagedList[Metric]:
        points = self._history(run_id, metric_key)
        start = SearchUtils.parse_start_offset_from_page_token(page_token)
        end = len(points) if max_results is None else start + max_results
        token = SearchUtils.create_page_token(end) if end < len(points) else None
        return PagedList([entities.metric(metric_key, point) for point in points[start:end]], token)

    def _history(self, run_id: str, metric_key: str) -> list[Point]:
        """Points as the SQL store keeps them: each once, by time, step and value."""
        seen: dict[tuple[Any, ...], Point] = {}
        for point in self.catalogue.history(run_id, metric_key):
            seen.setdefault((point.timestamp, point.step, _comparable(point.value), point.value != point.value), point)
        return [seen[key] for key in sorted(seen)]

    def get_metric_history_bulk(self, run_ids: list[str], metric_key: str, max_results: int) -> list[Any]:
        """Histories of one metric in several runs, by run id; as the SQL store, for MLflow's own server."""
        found = [(run_id, point) for run_id in sorted(run_ids) for point in self._history(run_id, metric_key)]
        return [_with_run(run_id, metric_key, point) for run_id, point in found[:max_results]]

    def get_max_step_for_metric(self, run_id: str, metric_key: str) -> int:
        return max((point.step for point in self.catalogue.history(run_id, metric_key)), default=0)

    def get_metric_history_bulk_interval_from_steps(
        self, run_id: str, metric_key: str, steps: Iterable[int], max_results: int
    ) -> list[Any]:
        wanted = set(steps)
        points = [point for point in self._history(run_id, metric_key) if point.step in wanted]
        points.sort(key=lambda point: (point.step, point.timestamp, _comparable(point.value)))
        return [_with_run(run_id, metric_key, point) for point in points[:max_results]]

    def get_metric_history_bulk_interval(
        self, run_ids: list[str], metric_key: str, max_results: int, start_step: int | None, end_step: int | None
    ) -> list[Any]:
        """At most ``max_results`` points of each run, spread evenly over what was logged, first and last among them."""
        if (start_step is None) != (end_step is None):
            raise invalid("Both start_step and end_step must be specified together, or neither may be specified.")
        told = []
        for run_id in run_ids:
            points = [
                point
                for point in self._history(run_id, metric_key)
                if start_step is None or end_step is None or start_step <= point.step <= end_step
            ]
            points.sort(key=lambda point: (point.step, point.timestamp, _comparable(point.value)))
            told += [_with_run(run_id, metric_key, point) for point in _sampled(points, max(1, max_results))]
        return told

    # -- experiments ---------------------------------------------------------------------------------------------------

    def get_experiment(self, experiment_id: str) -> Experiment:
        return entities.experiment_entity(self.root, self._experiment(experiment_id))

    def _experiment(self, experiment_id: str | int | None, view: int = ViewType.ALL) -> ExperimentState:
        wanted = str(experiment_id or "0")
        state = self.catalogue.experiment(wanted)
        if state is None or not _in_view(state.lifecycle, view):
            raise no_such(f"No Experiment with id={_number(wanted)} exists")
        return state

    def get_experiment_by_name(self, experiment_name: str) -> Experiment | None:
        state = self.catalogue.experiment_by_name(experiment_name)
        return None if state is None else entities.experiment_entity(self.root, state)

    def search_experiments(
        self,
        view_type: int = ViewType.ACTIVE_ONLY,
        max_results: int = 1000,
        filter_string: str | None = None,
        order_by: list[str] | None = None,
        page_token: str | None = None,
    ) -> PagedList[Experiment]:
        check_max_results(max_results)
        states = [state for state in self.catalogue.experiments().values() if _in_view(state.lifecycle, view_type)]
        found = [entities.experiment_entity(self.root, state) for state in states]
        filtered = SearchExperimentsUtils.filter(found, filter_string)
        ordered = SearchExperimentsUtils.sort(filtered, order_by or _NEWEST_EXPERIMENT_FIRST)
        page, token = SearchUtils.paginate(ordered, page_token, max_results)
        return PagedList(page, token)

    # -- logged models -------------------------------------------------------------------------------------------------

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> LoggedModel:
        found = self.catalogue.model(model_id)
        if found is None or found[0].start is None or (found[0].deleted and not allow_deleted):
            raise no_such(f"Logged model with ID '{model_id}' not found.")
        return as_shown(self._logged_model(found[0], self.catalogue.measured(found[0])))

    def _logged_model(self, model: ModelState, points: Iterable[tuple[str, str, Point]]) -> LoggedModel:
        experiment_id = _experiment_of_model(model)
        known = self.catalogue.store().experiments().get(experiment_id)
        experiment = known or ExperimentState(experiment_id, experiment_id)
        return entities.logged_model(self.root, model, experiment, points)

    def search_logged_models(
        self,
        experiment_ids: list[str],
        filter_string: str | None = None,
        datasets: list[Any] | None = None,
        max_results: int | None = None,
        order_by: list[dict[str, Any]] | None = None,
        page_token: str | None = None,
    ) -> PagedList[LoggedModel]:
        if datasets and not all(dataset.get("dataset_name") for dataset in datasets):
            raise invalid("`dataset_name` in the `datasets` clause must be specified.")
        parse_filter_string(filter_string)  # says what is wrong with it as the SQL store does
        wanted = {str(experiment_id) for experiment_id in experiment_ids}
        states = [model for model, _ in self.catalogue.models() if _experiment_of_model(model) in wanted]
        points = self.catalogue.measured_by_model()
        models = [self._logged_model(model, points.get(model.model_id, ())) for model in states if not model.deleted]
        filtered = versions.filter_models(_ModelSearch, models, filter_string, datasets)
        ordered = SearchLoggedModelsUtils.sort(filtered, order_by)
        page, token = SearchLoggedModelsUtils.paginate(ordered, page_token, max_results or _MODELS_A_PAGE)
        return PagedList([as_shown(model) for model in page], token)


def _experiment_of_model(model: ModelState) -> str:
    start = model.start
    return (start.offline_experiment_id if start is not None else None) or "0"


class _ModelSearch(SearchLoggedModelsUtils):  # type: ignore[misc]
    """A clause on a metric is met when any of its points meets it, as in the SQL store."""

    @classmethod
    def _does_logged_model_match_clause(cls, model: LoggedModel, condition: dict[str, Any], *datasets: Any) -> bool:
        told = super()._does_logged_model_match_clause
        if not cls.is_metric(condition.get("type"), condition["comparator"].upper()):
            return bool(told(model, condition, *datasets))
        return any(told(_with_metrics(model, [metric]), condition, *datasets) for metric in model.metrics or ())


def _with_metrics(model: LoggedModel, metrics: list[Metric] | None) -> LoggedModel:
    changed = copy.copy(model)
    changed.metrics = metrics
    return changed


def as_shown(model: LoggedModel) -> LoggedModel:
    """The SQL store shows a model that nobody measured with no list of metrics at all."""
    return model if model.metrics else _with_metrics(model, None)


def check_max_results(max_results: int | None, *, allow_none: bool = False) -> None:
    """Raises MlflowException, as ``SqlAlchemyStore._validate_max_results_param``."""
    if (not allow_none and max_results is None) or (max_results is not None and max_results < 1):
        raise invalid(
            f"Invalid value {max_results} for parameter 'max_results' supplied. It must be a positive integer"
        )
    if max_results is not None and max_results > SEARCH_MAX_RESULTS_THRESHOLD:
        raise invalid(
            f"Invalid value {max_results} for parameter 'max_results' supplied. It must be at "
            f"most {SEARCH_MAX_RESULTS_THRESHOLD}"
        )


def _sorted(runs: list[Run], order_by: list[str] | None) -> list[Run]:
    """By ``order_by``, then the latest first, then by id, as the SQL store."""
    fields = [SearchUtils.parse_order_by_for_search_runs(clause)[:2] for clause in order_by or ()]
    for kind, _ in fields:
        if kind == "dataset":
            raise invalid(f"Invalid identifier type '{kind}'")
    if len(set(fields)) < len(fields):
        raise MlflowException(f"`order_by` contains duplicate fields: {order_by}")
    ordered: list[Run] = SearchUtils.sort(runs, order_by)
    return ordered


def _number(experiment_id: str) -> int:
    try:
        return int(experiment_id)
    except ValueError:
        raise invalid(f"Invalid experiment ID '{experiment_id}'. Experiment ID must be a valid integer.") from None


def _in_view(lifecycle: str, view: int) -> bool:
    if view == ViewType.ALL:
        return True
    return (lifecycle == "deleted") == (view == ViewType.DELETED_ONLY)


def _comparable(value: float) -> float:
    return 0.0 if value != value else value


def _sampled(points: list[Point], most: int) -> list[Point]:
    """The first point of each of ``most`` even parts, and the last of all: SQL's ``ntile``."""
    if len(points) <= most:
        return points
    small, larger = divmod(len(points), most)
    firsts = [points[part * small + min(part, larger)] for part in range(most)]
    return [*firsts[:-1], points[-1]]


def _with_run(run_id: str, key: str, point: Point) -> Any:
    from mlflow.entities.metric import MetricWithRunId

    return MetricWithRunId(run_id=run_id, metric=entities.metric(key, point))
