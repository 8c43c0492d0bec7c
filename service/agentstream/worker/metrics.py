"""The metrics of a worker, for its GET /metrics."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from agentstream.errors import AGENT_ERROR, CANCELLED
from agentstream.store.bus.counts import PublishCounts
from agentstream.store.queue import BegunAttempt
from agentstream.telemetry import names as metric_names
from agentstream.telemetry.metrics import Metrics
from agentstream.worker.execution import LEASE_LOST

HANDED_BACK = "handed_back"
NOT_STORED = "not_stored"


class WorkerStats(Protocol):
    """The current numbers of the worker of one queue."""

    @property
    def active(self) -> int:
        """The number of its runs that hold a slot."""
        ...

    @property
    def tokens(self) -> int:
        """The number of pieces of text that its agents have written since the worker began."""
        ...

    @property
    def unflushed_bytes(self) -> int:
        """The number of bytes of events that are not yet stored."""
        ...


class WorkerMetrics:
    """The metrics of one worker process, or of all processes that share its port."""

    def __init__(self, number: int | None = None, *, slots: int) -> None:
        """Register every metric. ``slots`` is the number of runs at the same time. For ``number`` see ``Metrics``."""
        self._all = Metrics(metric_names.WORKER_METRICS, number)
        self._all.gauge(metric_names.WORKER_SLOTS).set(slots)

    def queue(self, name: str) -> "QueueMetrics":
        """Return the metrics of one queue."""
        return QueueMetrics(self._all, name)

    def loop_blocked(self, seconds: float) -> None:
        """Observe how long the event loop was blocked."""
        self._all.histogram(metric_names.WORKER_LOOP_BLOCKED_SECONDS).observe(seconds)

    def observe(
        self,
        workers: Iterable[tuple[str, WorkerStats]],
        published: PublishCounts,
        *,
        reconnects: int,
        connections: Mapping[str, bool],
    ) -> None:
        """Update the metrics of this process from the workers of its queues, its publish counts and its link."""
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
        every.set_series(connections, metric_names.WORKER_CONNECTED)

    def render(self) -> bytes:
        """Return the metrics in the Prometheus text format."""
        return self._all.render()


class QueueMetrics:
    """The metrics of the runs of one queue. Each method counts one step of a run."""

    def __init__(self, every: Metrics, queue: str) -> None:
        """Create every series of the queue at 0. Without the 0, the first count of a series has no rate."""
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
        self._pause_seconds = {
            resumes: every.histogram(metric_names.WORKER_PAUSE_SECONDS, queue, str(resumes).lower())
            for resumes in (True, False)
        }
        every.counter(metric_names.WORKER_TOKENS, queue)
        self._retries = every.counter(metric_names.WORKER_RETRIES, queue)
        self._checkpoints = every.counter(metric_names.WORKER_CHECKPOINTS, queue)
        self._interrupts = every.counter(metric_names.WORKER_INTERRUPTS, queue)
        self._interrupt_timeouts = every.counter(metric_names.WORKER_INTERRUPT_TIMEOUTS, queue)
        self._leases_lost = every.counter(metric_names.WORKER_LEASES_LOST, queue)
        self._terminal_events_not_stored = every.counter(metric_names.WORKER_PUBLISH_FAILURES, NOT_STORED)
        self._run_seconds = every.histogram(metric_names.WORKER_RUN_SECONDS, queue)
        self._dispatch_seconds = every.histogram(metric_names.WORKER_DISPATCH_SECONDS, queue)
        self._cancel_seconds = every.histogram(metric_names.WORKER_CANCEL_SECONDS, queue)
        self._publish_seconds = every.histogram(metric_names.WORKER_PUBLISH_SECONDS)

    def claimed(self, *, again: bool) -> None:
        """Count a claimed job. ``again`` means that another worker held it before."""
        self._claims["reclaimed" if again else "new"].inc()

    def attempt_begun(self, begun: BegunAttempt) -> None:
        """Observe how long a job waited for its first attempt."""
        if begun.attempt == 1:
            self._dispatch_seconds.observe(begun.waited_s)

    def called_again(self) -> None:
        """Count a run whose agent is called in a later attempt than the first."""
        self._retries.inc()

    def taken_over(self, *, resumes: bool, pause_s: float) -> None:
        """Observe how long a run stood still before this worker called its agent again."""
        self._pause_seconds[resumes].observe(pause_s)

    def checkpoint_made(self) -> None:
        """Count a checkpoint. May be called from any thread."""
        self._checkpoints.inc()

    def asked(self) -> None:
        """Count an interrupt. May be called from any thread."""
        self._interrupts.inc()

    def not_answered(self, interrupts: int) -> None:
        """Count interrupts that nobody answered in time."""
        self._interrupt_timeouts.inc(interrupts)

    def tool_ended(self, *, success: bool) -> None:
        """Count the end of a tool call. May be called from any thread."""
        self._tool_calls[success].inc()

    def terminal_event_stored(self, seconds: float) -> None:
        """Observe how long it took to store the terminal event of a run."""
        self._publish_seconds.observe(seconds)

    def ended(self, outcome: str, *, seconds: float, cancel_seconds: float | None) -> None:
        """Count the end of an attempt.

        ``outcome`` is one of metric_names.OUTCOMES; a code that an agent chose counts as ``agent_error``. ``seconds``
        is the duration of the attempt. ``cancel_seconds`` is the time since this worker received the cancel, or None.
        """
        self._runs.get(outcome, self._runs[AGENT_ERROR]).inc()
        self._run_seconds.observe(seconds)
        if outcome == CANCELLED and cancel_seconds is not None:
            self._cancel_seconds.observe(cancel_seconds)
        elif outcome == LEASE_LOST:
            self._leases_lost.inc()

    def terminal_event_not_stored(self) -> None:
        """Count a run whose terminal event could not be stored in time."""
        self._terminal_events_not_stored.inc()
