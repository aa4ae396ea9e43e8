"""The same numbers for Prometheus, in its text format. docs/monitoring.md says what each means; a test compares the two.

No metric has a run or an experiment in a label: there are thousands of them, and their names are anybody's.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from mlferry_agent.web.state import Agent, counts
from mlferry_agent.web.surveys import Survey

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(agent: Agent, survey: Survey | None, now_s: float, streams: int) -> bytes:
    """The answer to one scrape. ``now_s``: of the courier's clock. ``streams``: browsers that look."""
    registry = CollectorRegistry()
    registry.register(_Numbers([*_of_agent(agent, now_s, streams), *(_of_survey(survey) if survey else ())]))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Numbers(Collector):
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        yield from self._found


def _of_agent(agent: Agent, now_s: float, streams: int) -> Iterator[Metric]:
    health = agent.health
    yield InfoMetricFamily("mlferry_build", "The release that runs.", {"version": agent.version})
    yield _gauge("mlferry_start_time_seconds", "When the agent began, Unix time.", agent.pulse.started_at)
    yield _counter("mlferry_acknowledged_records", "Records that the server acknowledged.", agent.pulse.records)
    yield _counter("mlferry_requests", "Requests to the server.", health.requests)
    yield _counter("mlferry_request_failures", "Requests that have to be made again.", health.failures)
    yield _gauge(
        "mlferry_server_up", "Whether the server's last answer was a good one.", float(agent.server == "answering")
    )
    yield _gauge("mlferry_server_misconfigured", "Whether the server refuses the agent.", float(health.misconfigured))
    since = 0.0 if health.failing_since is None else now_s - health.failing_since
    yield _gauge("mlferry_server_failing_seconds", "For how long there was no good answer; 0 while all is well.", since)
    yield _gauge("mlferry_status_streams", "Browsers that look at the status page.", streams)


def _of_survey(survey: Survey) -> Iterator[Metric]:
    tally, found = survey.tally, counts(survey)
    runs = GaugeMetricFamily("mlferry_runs", "Runs, each in one state.", labels=["state"])
    for state in ("set_aside", "live", "waiting", "delivered"):
        runs.add_metric([state], getattr(found, state))
    yield runs
    yield _gauge("mlferry_spool_readable", "Whether the spool could be read.", float(survey.work.blind is None))
    yield _gauge("mlferry_delayed_runs", "Runs whose last delivery was broken off.", len(survey.work.delayed))
    yield _gauge("mlferry_parked_runs", "Runs that cannot go on without a person.", tally.parked)
    yield _gauge("mlferry_pending_records", "Records that wait for the server.", found.pending)
    yield _gauge("mlferry_lag_seconds", "Age of the oldest record that waits; 0 if none does.", found.lag_s or 0.0)
    yield _gauge("mlferry_quarantined_records", "Records that were refused and wait for a person.", tally.quarantined)
    yield _gauge("mlferry_lost_records", "Records that damage of files took.", tally.lost)
    yield _gauge("mlferry_dropped_records", "Records that training could not store.", tally.dropped)
    yield _gauge("mlferry_given_up_records", "Records that somebody dropped.", tally.given_up)
    free = GaugeMetricFamily("mlferry_disk_free_bytes", "Room on the file system.", labels=["of"])
    size = GaugeMetricFamily("mlferry_disk_size_bytes", "Size of the file system.", labels=["of"])
    for disk in survey.disks:
        free.add_metric([disk.of], disk.free)
        size.add_metric([disk.of], disk.size)
    yield from (free, size)
    yield _gauge("mlferry_survey_timestamp_seconds", "When the spool was counted, Unix time.", survey.at)
    yield _gauge("mlferry_survey_duration_seconds", "How long that took.", survey.took_s)
    yield _gauge("mlferry_survey_uncounted_runs", "Runs that no survey came to yet.", survey.uncounted)


def _gauge(name: str, means: str, value: float) -> Metric:
    return GaugeMetricFamily(name, means, value)


def _counter(name: str, means: str, value: float) -> Metric:
    return CounterMetricFamily(name, means, value)
