"""What the front end counts, for GET /metrics."""

from collections.abc import Iterable
from typing import Final

from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.latency_timer import LatencyTimer
from agentstream.frontend.runs.model_router import QueueState
from agentstream.frontend.runs.pump import StreamPump
from agentstream.frontend.runs.watcher import OpenRun
from agentstream.store.bus.counts import FeedCounts
from agentstream.store.connection.link import Link
from agentstream.telemetry import names as metric_names
from agentstream.telemetry.metrics import Metrics

_REASONS: Final = frozenset(metric_names.REJECTIONS)


class FrontendMetrics:
    """The numbers of one front-end process, or of all that share its port."""

    def __init__(self, number: int | None = None) -> None:
        """Register everything; see ``agentstream.telemetry.metrics.Metrics`` for ``number``."""
        self._metrics = metrics = Metrics(metric_names.FRONTEND_METRICS, number)
        self._requests = metrics.counter(metric_names.REQUESTS)
        self._on_begun = metrics.histogram(metric_names.DISPATCH_SECONDS).observe  # bound once, for all timers
        self._on_text = metrics.histogram(metric_names.FIRST_TOKEN_SECONDS).observe
        self._slow_client_cuts = metrics.counter(metric_names.SLOW_CLIENT_CUTS)
        self._cancel_seconds = metrics.histogram(metric_names.CANCEL_SECONDS)
        self._texts_before = 0  # of streams that have ended

    # -- what happens -------------------------------------------------------------------------------

    def request_answered(self, route: str, status: int, rejected_as: str | None) -> None:
        """Count a request by its route's pattern, not its path; one that was refused also by its error's code."""
        self._requests.labels(route, str(status)).inc()
        if rejected_as is not None:
            self._metrics.counter(metric_names.REJECTED, rejected_as if rejected_as in _REASONS else "other").inc()

    def reader_closed(self, run: StreamPump | Collector) -> None:
        """Take over what a run's reader has counted, once: it ends."""
        if isinstance(run, StreamPump):
            self._texts_before += run.text_count
        if run.given_up_code:
            self._metrics.counter(metric_names.GIVEN_UP, run.given_up_code).inc()

    def slow_client_cut(self) -> None:
        """Count a stream cut because its client took nothing."""
        self._slow_client_cuts.inc()

    def cancel_requested(self, cause: str) -> None:
        """Count a cancel by who asked for it, one of metric_names.CANCEL_CAUSES."""
        self._metrics.counter(metric_names.CANCELS, cause).inc()

    def cancel_took(self, seconds: float) -> None:
        """Take how long a run went on after its cancel was asked for."""
        self._cancel_seconds.observe(seconds)

    def latency_timer(self) -> LatencyTimer:
        """Return what takes the times of a new run, from now on."""
        return LatencyTimer(self._on_begun, self._on_text)

    # -- what is ------------------------------------------------------------------------------------

    def observe(self, runs: Iterable[OpenRun], feeds: FeedCounts, link: Link) -> None:
        """Take what this process knows of itself: its open runs, what their feeds counted, and its link."""
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
        metrics.gauge(metric_names.BROKER_RECONNECTS).set(link.reconnects)
        metrics.set_total(texts, metric_names.TOKENS)
        for cause, times in feeds.catch_ups.items():
            metrics.set_total(times, metric_names.CATCH_UPS, cause)
        metrics.set_total(feeds.gaps, metric_names.GAPS)
        metrics.set_total(feeds.duplicates, metric_names.DUPLICATES)

    def observe_pings(self, link: Link) -> None:
        """Take from now on how long the link's pings take."""
        link.on_pong = self._metrics.histogram(metric_names.BUS_LATENCY_SECONDS).observe

    def set_queue_state(self, queue: str, state: QueueState) -> None:
        """Take the state of a queue."""
        metrics = self._metrics
        metrics.gauge(metric_names.WORKERS_ALIVE, queue).set(state.workers)
        metrics.gauge(metric_names.QUEUED, queue).set(state.queued)
        metrics.gauge(metric_names.WAITING, queue).set(state.waiting)
        metrics.gauge(metric_names.OLDEST_WAITING_SECONDS, queue).set(state.oldest_s)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return self._metrics.render()
