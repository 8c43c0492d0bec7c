"""What the front end counts, for GET /metrics."""

from collections.abc import Iterable
from typing import Final

from agentstream.frontend.runs.collector import Collector
from agentstream.frontend.runs.dispatch import QueueState
from agentstream.frontend.runs.pump import StreamPump
from agentstream.frontend.runs.run_clock import RunClock
from agentstream.frontend.runs.watcher import OpenRun
from agentstream.store.bus.counts import FeedCounts
from agentstream.store.connection.link import Link
from agentstream.telemetry import names as telemetry
from agentstream.telemetry.metrics import Metrics

_REASONS: Final = frozenset(telemetry.REJECTIONS)


class FrontendMetrics:
    """The numbers of one front-end process, or of all that share its port."""

    def __init__(self, number: int | None = None) -> None:
        """Register everything; see ``agentstream.telemetry.metrics.Metrics`` for ``number``."""
        self._all = every = Metrics(telemetry.FRONTEND, number)
        self._requests = every.counter(telemetry.REQUESTS)
        self._on_begun = every.histogram(telemetry.DISPATCH_SECONDS).observe  # bound once: each stream's clock has them
        self._on_text = every.histogram(telemetry.FIRST_TOKEN_SECONDS).observe
        self._slow_client_cuts = every.counter(telemetry.SLOW_CLIENT_CUTS)
        self._cancel_seconds = every.histogram(telemetry.CANCEL_SECONDS)
        self._texts_before = 0  # of streams that have ended

    # -- what happens -------------------------------------------------------------------------------

    def answered(self, route: str, status: int, rejected_as: str | None) -> None:
        """Count a request by its route's pattern, not its path; one that was refused also by its error's code."""
        self._requests.labels(route, str(status)).inc()
        if rejected_as is not None:
            self._all.counter(telemetry.REJECTED, rejected_as if rejected_as in _REASONS else "other").inc()

    def left(self, run: StreamPump | Collector) -> None:
        """Take over what a run's reader has counted, once: it ends."""
        if isinstance(run, StreamPump):
            self._texts_before += run.texts
        if run.given_up:
            self._all.counter(telemetry.GIVEN_UP, run.given_up).inc()

    def slow_client_cut(self) -> None:
        """Count a stream cut because its client took nothing."""
        self._slow_client_cuts.inc()

    def cancel_asked(self, cause: str) -> None:
        """Count a cancel by who asked for it, one of telemetry.CANCEL_CAUSES."""
        self._all.counter(telemetry.CANCELS, cause).inc()

    def cancel_took(self, seconds: float) -> None:
        """Take how long a run went on after its cancel was asked for."""
        self._cancel_seconds.observe(seconds)

    def clock(self) -> RunClock:
        """Return what takes the times of a new run, from now on."""
        return RunClock(self._on_begun, self._on_text)

    # -- what is ------------------------------------------------------------------------------------

    def observe(self, runs: Iterable[OpenRun], feeds: FeedCounts, link: Link) -> None:
        """Take what this process knows of itself: its open runs, what their feeds counted, and its link."""
        every = self._all
        open_runs = streams = buffered_bytes = 0
        texts = self._texts_before
        for run in runs:
            open_runs += 1
            if isinstance(run, StreamPump):
                streams += 1
                texts += run.texts
                buffered_bytes += run.buffered_bytes
        every.gauge(telemetry.OPEN_RUNS).set(open_runs)
        every.gauge(telemetry.OPEN_STREAMS).set(streams)
        every.gauge(telemetry.BUFFERED_BYTES).set(buffered_bytes)
        every.gauge(telemetry.BROKER_RECONNECTS).set(link.reconnects)
        every.count_to(texts, telemetry.TOKENS)
        for cause, times in feeds.catch_ups.items():
            every.count_to(times, telemetry.CATCH_UPS, cause)
        every.count_to(feeds.gaps, telemetry.GAPS)
        every.count_to(feeds.duplicates, telemetry.DUPLICATES)

    def watch(self, link: Link) -> None:
        """Take from now on how long the link's pings take."""
        link.on_pong = self._all.histogram(telemetry.BUS_LATENCY_SECONDS).observe

    def queue_is(self, queue: str, state: QueueState) -> None:
        """Take the state of a queue."""
        every = self._all
        every.gauge(telemetry.WORKERS_ALIVE, queue).set(state.workers)
        every.gauge(telemetry.QUEUED, queue).set(state.queued)
        every.gauge(telemetry.WAITING, queue).set(state.waiting)
        every.gauge(telemetry.OLDEST_WAITING_SECONDS, queue).set(state.oldest_s)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return self._all.render()
