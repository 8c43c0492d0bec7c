"""What a process counts, as ``telemetry`` says, and how processes that share a port tell it together.

What is counted every token or message stays a plain integer where it happens; it is taken over here when somebody
asks (``set_total``), so that counting costs no stream anything.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from agentstream.telemetry.names import Metric

log = logging.getLogger(__name__)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OBSERVE_S: Final = 1.0  # how old a number may be that another process tells


class Metrics:
    """The metrics of one process, or of all that share its port, in a registry of their own."""

    def __init__(self, table: Sequence[Metric], number: int | None = None) -> None:
        """Register all of a table; ``number`` is this process's among those that share a port (see multiproc_env).

        Then its counts are kept in files of that number: whichever process is asked tells the sum of all, and one
        that is started again goes on counting where its predecessor ended.
        """
        self._multiprocess = number is not None
        if number is not None:
            values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside each
        self._registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._last_totals: dict[tuple[str, ...], int] = {}
        for metric in table:
            self._register(metric)

    def _register(self, metric: Metric) -> None:
        name, help_text, labels, registry = metric.name, metric.help_text, tuple(metric.labels or ()), self._registry
        if metric.kind == "counter":
            counter = self._counters[name] = Counter(name, help_text, labels, registry=registry)
            if len(labels) == 1:  # a series that is not there before its first count has no rate then
                for value in (metric.labels or {})[labels[0]]:
                    counter.labels(value)
        elif metric.kind == "gauge":
            self._gauges[name] = Gauge(
                name,
                help_text,
                labels,
                registry=registry,
                multiprocess_mode="mostrecent" if metric.shared else "livesum",
            )
        else:
            self._histograms[name] = Histogram(name, help_text, labels, registry=registry, buckets=metric.buckets_s)

    def counter(self, name: str, *labels: str) -> Counter:
        """Return a counter, with these values of its labels."""
        counter = self._counters[name]
        return counter.labels(*labels) if labels else counter

    def gauge(self, name: str, *labels: str) -> Gauge:
        """Return a gauge, with these values of its labels."""
        gauge = self._gauges[name]
        return gauge.labels(*labels) if labels else gauge

    def histogram(self, name: str, *labels: str) -> Histogram:
        """Return a histogram, with these values of its labels."""
        histogram = self._histograms[name]
        return histogram.labels(*labels) if labels else histogram

    def set_total(self, total: int, name: str, *labels: str) -> None:
        """Let a counter tell what was counted elsewhere, ``total`` since this process began."""
        key = (name, *labels)
        taken = self._last_totals.get(key, 0)
        if total > taken:  # read from the side a sum may be one behind itself, for a moment
            self._last_totals[key] = total
            self.counter(name, *labels).inc(total - taken)

    def render(self) -> bytes:
        """Return the text exposition format."""
        if not self._multiprocess:
            return generate_latest(self._registry)
        every = CollectorRegistry()
        MultiProcessCollector(every)  # type: ignore[no-untyped-call]
        return generate_latest(every)


async def observe_periodically(observe: Callable[[], None]) -> None:
    """Let the processes that share the port tell this one's numbers, too, in their sums."""
    while True:
        try:
            observe()
        except Exception:  # numbers are not worth a run
            log.exception("this process's numbers could not be taken")
        await asyncio.sleep(OBSERVE_S)


def multiproc_env(folder: str) -> dict[str, str]:
    """Return the variables with which processes that share a port count into one folder."""
    return {"PROMETHEUS_MULTIPROC_DIR": folder}


def remove_process_gauges(folder: str, number: int) -> None:
    """Count out the gauges of a process that has ended; its counters stay in the sums."""
    mark_process_dead(number, folder)  # type: ignore[no-untyped-call]
