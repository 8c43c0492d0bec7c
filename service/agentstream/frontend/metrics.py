"""The metrics of the front end, for ``GET /metrics``."""

from collections.abc import Iterable
from typing import Final

from agentstream.frontend.connection_limit import ConnectionLimit
from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.latency_timer import LatencyTimer
from agentstream.frontend.runs.model_router import QueueState
from agentstream.frontend.runs.pump import StreamPump
from agentstream.frontend.runs.watcher import WatchedRun
from agentstream.store.bus.counts import FeedCounts
from agentstream.store.connection.link import Link
from agentstream.telemetry import names as metric_names
from agentstream.telemetry.metrics import Metrics

_REASONS: Final = frozenset(metric_names.REJECTIONS)


class FrontendMetrics:
    """The metrics of one front-end process, or of all processes that share its port."""

    def __init__(self, number: int | None = None) -> None:
        """Register all metrics. ``agentstream.telemetry.metrics.Metrics`` explains ``number``."""
        self._metrics = metrics = Metrics(metric_names.FRONTEND_METRICS, number)
        self._requests = metrics.counter(metric_names.REQUESTS)
        self._on_begun = metrics.histogram(metric_names.DISPATCH_SECONDS).observe  # one bound method for all timers
        self._on_text = metrics.histogram(metric_names.FIRST_TOKEN_SECONDS).observe
        self._slow_client_cuts = metrics.counter(metric_names.SLOW_CLIENT_CUTS)
        self._cancel_seconds = metrics.histogram(metric_names.CANCEL_SECONDS)
        self._answers = metrics.counter(metric_names.ANSWERS)
        self._parked_seconds = metrics.histogram(metric_names.PARKED_SECONDS)
        self._texts_before = 0  # pieces of text in streams that have ended

    # -- counts and times ---------------------------------------------------------------------------

    def request_answered(self, route: str, status: int, rejected_as: str | None) -> None:
        """Count a request by its route's pattern (not its path) and status; a refusal also by its error code."""
        self._requests.labels(route, str(status)).inc()
        if rejected_as is not None:
            self._metrics.counter(metric_names.REJECTED, rejected_as if rejected_as in _REASONS else "other").inc()

    def reader_closed(self, run: StreamPump | Collector) -> None:
        """Add the counts of a reader that ends. Call this once for each reader."""
        if isinstance(run, StreamPump):
            self._texts_before += run.text_count
        if run.given_up_code:
            self._metrics.counter(metric_names.GIVEN_UP, run.given_up_code).inc()

    def slow_client_cut(self) -> None:
        """Count a stream that was cut because its client stopped reading."""
        self._slow_client_cuts.inc()

    def cancel_requested(self, cause: str) -> None:
        """Count a cancel by its cause, one of ``telemetry.names.CANCEL_CAUSES``."""
        self._metrics.counter(metric_names.CANCELS, cause).inc()

    def cancel_took(self, seconds: float) -> None:
        """Record the time from a cancel request to the end of the run."""
        self._cancel_seconds.observe(seconds)

    def answered(self, interrupts: int, waited_s: float | None) -> None:
        """Count the interrupts that a request has answered.

        ``waited_s`` is the time for which the run was parked, if it goes on after this request, or None.
        """
        self._answers.inc(interrupts)
        if waited_s is not None:
            self._parked_seconds.observe(waited_s)

    def latency_timer(self) -> LatencyTimer:
        """Return a started timer for a new run."""
        return LatencyTimer(self._on_begun, self._on_text)

    # -- current state ------------------------------------------------------------------------------

    def observe(self, runs: Iterable[WatchedRun], feeds: FeedCounts, link: Link, connections: ConnectionLimit) -> None:
        """Update the metrics of this process from its open runs, their feeds, its link and its connections."""
        metrics = self._metrics
        open_runs = streams = buffered_bytes = 0
        texts = self._texts_before
        for run in runs:
            open_runs += 1
            if isinstance(run, StreamPump):
                streams += 1
                texts += run.text_count
                buffered_bytes += run.buffered_bytes
        metrics.gauge(metric_names.OPEN_RUNS).set(open_runs)
        metrics.gauge(metric_names.OPEN_STREAMS).set(streams)
        metrics.gauge(metric_names.BUFFERED_BYTES).set(buffered_bytes)
        metrics.gauge(metric_names.OPEN_CONNECTIONS).set(connections.open)
        metrics.gauge(metric_names.MAX_CONNECTIONS).set(connections.limit or 0)
        metrics.gauge(metric_names.BROKER_RECONNECTS).set(link.reconnects)
        metrics.set_series(link.connections, metric_names.BROKER_CONNECTED)
        metrics.set_total(texts, metric_names.TOKENS)
        for cause, times in feeds.catch_ups.items():
            metrics.set_total(times, metric_names.CATCH_UPS, cause)
        metrics.set_total(feeds.gaps, metric_names.GAPS)
        metrics.set_total(feeds.duplicates, metric_names.DUPLICATES)

    def observe_pings(self, link: Link) -> None:
        """Record the duration of each ping of the link from now on."""
        link.on_pong = self._metrics.histogram(metric_names.BUS_LATENCY_SECONDS).observe

    def set_queue_state(self, queue: str, state: QueueState) -> None:
        """Update the metrics of a queue."""
        metrics = self._metrics
        metrics.gauge(metric_names.WORKERS_ALIVE, queue).set(state.workers)
        metrics.gauge(metric_names.QUEUED, queue).set(state.queued)
        metrics.gauge(metric_names.WAITING, queue).set(state.waiting)
        metrics.gauge(metric_names.OLDEST_WAITING_SECONDS, queue).set(state.oldest_s)
        metrics.gauge(metric_names.PARKED_RUNS, queue).set(state.parked)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return self._metrics.render()
