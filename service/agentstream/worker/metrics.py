"""What a worker counts, for its GET /metrics."""

from collections.abc import Iterable
from typing import Protocol

from agentstream.errors import CANCELLED
from agentstream.store.bus.counts import PublishCounts
from agentstream.store.queue import BegunAttempt
from agentstream.telemetry import names as metric_names
from agentstream.telemetry.metrics import Metrics
from agentstream.worker.execution import LEASE_LOST

HANDED_BACK = "handed_back"
NOT_STORED = "not_stored"


class WorkerStats(Protocol):
    """What is going on in a queue's worker."""

    @property
    def active(self) -> int:
        """How many of its runs hold a slot."""
        ...

    @property
    def tokens(self) -> int:
        """How many pieces of text its agents have written since it began."""
        ...

    @property
    def unflushed_bytes(self) -> int:
        """How much waits to be published."""
        ...


class WorkerMetrics:
    """The numbers of one worker process, or of all that share its port."""

    def __init__(self, number: int | None = None, *, slots: int) -> None:
        """Register everything; see ``metric_names.metrics.Metrics`` for ``number``. ``slots`` are for runs at once."""
        self._all = Metrics(metric_names.WORKER_METRICS, number)
        self._all.gauge(metric_names.WORKER_SLOTS).set(slots)

    def queue(self, name: str) -> "QueueMetrics":
        """Return the part of one queue."""
        return QueueMetrics(self._all, name)

    def observe(self, workers: Iterable[tuple[str, WorkerStats]], published: PublishCounts, *, reconnects: int) -> None:
        """Take what this process knows of itself: its queues' workers, and what they published."""
        every = self._all
        unflushed_bytes = 0
        for queue, worker in workers:
            every.gauge(metric_names.WORKER_ACTIVE_RUNS, queue).set(worker.active)
            every.set_total(worker.tokens, metric_names.WORKER_TOKENS, queue)
            unflushed_bytes += worker.unflushed_bytes
        every.gauge(metric_names.WORKER_UNFLUSHED_BYTES).set(unflushed_bytes)
        every.set_total(published.retries, metric_names.WORKER_PUBLISH_RETRIES)
        every.set_total(published.fenced, metric_names.WORKER_PUBLISH_FAILURES, "fenced")
        every.set_total(published.refused, metric_names.WORKER_PUBLISH_FAILURES, "refused")
        every.set_total(published.trimmed, metric_names.WORKER_LOG_TRIMS)
        every.set_total(reconnects, metric_names.WORKER_RECONNECTS)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return self._all.render()


class QueueMetrics:
    """What a run passes once, by its queue."""

    def __init__(self, every: Metrics, queue: str) -> None:
        """Make every series of the queue: one that is not there before its first count has no rate then."""
        self._runs = {
            outcome: every.counter(metric_names.WORKER_RUNS, queue, outcome) for outcome in metric_names.OUTCOMES
        }
        self._claims = {
            kind: every.counter(metric_names.WORKER_CLAIMS, queue, kind) for kind in metric_names.CLAIM_KINDS
        }
        self._tool_calls = {
            success: every.counter(metric_names.WORKER_TOOL_CALLS, queue, str(success).lower())
            for success in (True, False)
        }
        every.counter(metric_names.WORKER_TOKENS, queue)
        self._retries = every.counter(metric_names.WORKER_RETRIES, queue)
        self._leases_lost = every.counter(metric_names.WORKER_LEASES_LOST, queue)
        self._terminal_events_not_stored = every.counter(metric_names.WORKER_PUBLISH_FAILURES, NOT_STORED)
        self._run_seconds = every.histogram(metric_names.WORKER_RUN_SECONDS, queue)
        self._dispatch_seconds = every.histogram(metric_names.WORKER_DISPATCH_SECONDS, queue)
        self._cancel_seconds = every.histogram(metric_names.WORKER_CANCEL_SECONDS, queue)
        self._publish_seconds = every.histogram(metric_names.WORKER_PUBLISH_SECONDS)

    def claimed(self, *, again: bool) -> None:
        """Count a job that was taken; ``again`` if another worker had it before."""
        self._claims["reclaimed" if again else "new"].inc()

    def attempt_begun(self, begun: BegunAttempt) -> None:
        """Take how long a job waited for its first attempt."""
        if begun.attempt == 1:
            self._dispatch_seconds.observe(begun.waited_s)

    def called_again(self) -> None:
        """Count a run whose agent is called in a later attempt."""
        self._retries.inc()

    def tool_ended(self, *, success: bool) -> None:
        """Count the end of a tool call; from any thread."""
        self._tool_calls[success].inc()

    def terminal_event_stored(self, seconds: float) -> None:
        """Take how long a run's last event took to be stored."""
        self._publish_seconds.observe(seconds)

    def ended(self, outcome: str, *, seconds: float, cancel_seconds: float | None) -> None:
        """Count a run's end, one of metric_names.OUTCOMES, after ``seconds``, and how long its cancel had been known."""
        self._runs[outcome].inc()
        self._run_seconds.observe(seconds)
        if outcome == CANCELLED and cancel_seconds is not None:
            self._cancel_seconds.observe(cancel_seconds)
        elif outcome == LEASE_LOST:
            self._leases_lost.inc()

    def terminal_event_not_stored(self) -> None:
        """Count a run whose end could not be stored in time."""
        self._terminal_events_not_stored.inc()
