"""Names of metrics, in one place so that dashboards and alerts can be checked against them."""

from typing import Final

REQUESTS: Final = "agentstream_requests_total"
OPEN_RUNS: Final = "agentstream_open_runs"
CATCH_UPS: Final = "agentstream_catch_ups_total"
BROKER_RECONNECTS: Final = "agentstream_broker_reconnects"
WORKERS_ALIVE: Final = "agentstream_workers_alive"
QUEUED: Final = "agentstream_queued_jobs"
