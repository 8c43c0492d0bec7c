"""What the front end counts, for GET /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from service import telemetry


class FrontendMetrics:
    """Counters of one front-end process, in a registry of their own."""

    def __init__(self) -> None:
        """Register everything."""
        self._registry = CollectorRegistry()
        self.requests = Counter(
            telemetry.REQUESTS, "HTTP requests by route and status", ["route", "status"], registry=self._registry
        )
        self.open_runs = Gauge(telemetry.OPEN_RUNS, "Runs a client is waiting for", registry=self._registry)
        self.catch_ups = Counter(telemetry.CATCH_UPS, "Times a feed was compared with its log", registry=self._registry)
        self.reconnects = Gauge(telemetry.BROKER_RECONNECTS, "Reconnects to Redis", registry=self._registry)
        self.workers = Gauge(
            telemetry.WORKERS_ALIVE, "Live workers of the queue; -1 if unknown", registry=self._registry
        )
        self.queued = Gauge(telemetry.QUEUED, "Outstanding jobs of the queue; -1 if unknown", registry=self._registry)

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self._registry)
