"""What the front end counts, for GET /metrics."""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service import telemetry


class FrontendMetrics:
    """Counters of one front-end process, or of all that share its port, in a registry of their own."""

    def __init__(self, number: int | None = None) -> None:
        """Register everything; ``number`` is this process's among those that share a port (see common_metrics).

        Then its counts are kept in a file of that number: whichever process is asked tells the sum of all, and one
        that is started again goes on counting where its predecessor ended.
        """
        self._common = number is not None
        if number is not None:
            values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            telemetry.REQUESTS, "HTTP requests by route and status", ["route", "status"], registry=registry
        )
        self.catch_ups = Counter(telemetry.CATCH_UPS, "Times a feed was compared with its log", registry=registry)
        self._open_runs = self._gauge(telemetry.OPEN_RUNS, "Runs a client is waiting for", "livesum")
        self._reconnects = self._gauge(telemetry.BROKER_RECONNECTS, "Reconnects to Redis", "livesum")
        self.workers = self._gauge(telemetry.WORKERS_ALIVE, "Live workers; -1 if unknown", "mostrecent", "queue")
        self.queued = self._gauge(telemetry.QUEUED, "Outstanding jobs; -1 if unknown", "mostrecent", "queue")

    def _gauge(self, name: str, what: str, mode: Literal["livesum", "mostrecent"], *labels: str) -> Gauge:
        """Register a gauge that tells the sum over the live processes, or what one of them has seen last."""
        return Gauge(name, what, labels, registry=self._registry, multiprocess_mode=mode)

    def observe(self, *, open_runs: int, reconnects: int) -> None:
        """Take what this process knows of itself."""
        self._open_runs.set(open_runs)
        self._reconnects.set(reconnects)

    def render(self) -> bytes:
        """Return the text exposition format."""
        if not self._common:
            return generate_latest(self._registry)
        every = CollectorRegistry()
        MultiProcessCollector(every)  # type: ignore[no-untyped-call]
        return generate_latest(every)


def common_metrics(folder: str) -> dict[str, str]:
    """Return the variables with which front ends that share a port count into one folder."""
    return {"PROMETHEUS_MULTIPROC_DIR": folder}


def forget_process(folder: str, number: int) -> None:
    """Count out the gauges of a process that has ended; its counters stay in the sums."""
    mark_process_dead(number, folder)  # type: ignore[no-untyped-call]
