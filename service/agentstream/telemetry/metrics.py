"""The metrics of a process, from the tables in ``names``. Processes that share a port report their totals together.

A count that changes with every token or message is a plain integer where it is counted. ``set_total`` copies it when
the metrics are read, so that counting costs no stream anything.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from agentstream.telemetry.names import Combination, Metric

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OBSERVE_S: Final = 1.0  # the greatest age of a number that another process reports
_MODES: Final[dict[Combination, Literal["livesum", "mostrecent", "livemin"]]] = {
    "sum": "livesum",
    "latest": "mostrecent",
    "lowest": "livemin",
}
# The value of a series that a process no longer has. The file of a process keeps each series for ever. If another
# process still has the series, its value is lower than this one.
_GONE: Final = math.inf


class Metrics:
    """The metrics of one process, or of all processes that share its port, in their own registry."""

    def __init__(self, table: Sequence[Metric], number: int | None = None) -> None:
        """Register every metric of ``table``. ``number`` is this process's number among those that share a port.

        With a ``number`` the counts are in files (see ``multiproc_env``), so every process reports the total of all. A
        process that is started again continues the counts of the process that had its number.
        """
        self._multiprocess = number is not None
        if number is not None:
            values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # it would add a series to each metric
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._last_totals: dict[tuple[str, ...], int] = {}
        self._series: dict[str, set[str]] = {}
        for metric in table:
            self._register(metric)

    def _register(self, metric: Metric) -> None:
        name, help_text, labels, registry = metric.name, metric.help_text, tuple(metric.labels or ()), self._registry
        if metric.kind == "counter":
            counter = self._counters[name] = Counter(name, help_text, labels, registry=registry)
            if len(labels) == 1:  # without a 0, the first count of a series has no rate
                for value in (metric.labels or {})[labels[0]]:
                    counter.labels(value)
        elif metric.kind == "gauge":
            self._gauges[name] = Gauge(
                name,
                help_text,
                labels,
                registry=registry,
                multiprocess_mode=_MODES[metric.combined_as],
            )
        else:
            self._histograms[name] = Histogram(name, help_text, labels, registry=registry, buckets=metric.buckets_s)

    def counter(self, name: str, *labels: str) -> Counter:
        """Return a counter, or its series with these label values."""
        counter = self._counters[name]
        return counter.labels(*labels) if labels else counter

    def gauge(self, name: str, *labels: str) -> Gauge:
        """Return a gauge, or its series with these label values."""
        gauge = self._gauges[name]
        return gauge.labels(*labels) if labels else gauge

    def histogram(self, name: str, *labels: str) -> Histogram:
        """Return a histogram, or its series with these label values."""
        histogram = self._histograms[name]
        return histogram.labels(*labels) if labels else histogram

    def set_total(self, total: int, name: str, *labels: str) -> None:
        """Set a counter to ``total``, a count that something else has kept since this process began."""
        key = (name, *labels)
        last_total = self._last_totals.get(key, 0)
        if total > last_total:  # a total may go back by one for a moment, because it is summed while it changes
            self._last_totals[key] = total
            self.counter(name, *labels).inc(total - last_total)

    def set_series(self, values: Mapping[str, float], name: str) -> None:
        """Set the series of a gauge whose ``combined_as`` is "lowest". ``values`` has the value for each label value.

        Remove the series of other label values.
        """
        gauge, before = self._gauges[name], self._series.get(name, set())
        for value in before - values.keys():
            if self._multiprocess:
                gauge.labels(value).set(_GONE)
            else:
                gauge.remove(value)
        for value, number in values.items():
            gauge.labels(value).set(number)
        self._series[name] = {*values}

    def render(self) -> bytes:
        """Return the metrics in the Prometheus text format."""
        if not self._multiprocess:
            return generate_latest(self._registry)
        every = CollectorRegistry()
        every.register(_OfAllProcesses())
        return generate_latest(every)


class _OfAllProcesses(Collector):
    """The metrics in the files of all processes that share a port, without the series that none of them has."""

    def collect(self) -> Iterator[prometheus_client.Metric]:
        """Yield each metric."""
        for metric in MultiProcessCollector(None).collect():  # type: ignore[no-untyped-call]
            if metric.type == "gauge":
                metric.samples = [sample for sample in metric.samples if sample.value != _GONE]
            yield metric


async def observe_periodically(observe: Callable[[], None]) -> None:
    """Update the metrics of this process regularly, so that other processes on the port report current totals."""
    while True:
        try:
            observe()
        except Exception:  # an error in the metrics must not end a run
            log.exception("cannot update the metrics of this process")
        await asyncio.sleep(OBSERVE_S)


def multiproc_env(folder: str) -> dict[str, str]:
    """Return the environment variables that make processes count into one folder."""
    return {"PROMETHEUS_MULTIPROC_DIR": folder}


def remove_process_gauges(folder: str, number: int) -> None:
    """Remove the gauges of a process that has ended. Its counters stay in the totals."""
    mark_process_dead(number, folder)  # type: ignore[no-untyped-call]
