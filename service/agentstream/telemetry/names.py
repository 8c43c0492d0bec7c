"""Every metric: its name, kind, unit, labels and meaning. Tests check dashboards and alerts against them.

The units are those of Prometheus: seconds and bytes. The values of a label form a small set that no client can extend:
our routes, statuses and codes, the queues in the settings, and the addresses of Redis servers. A label never holds a
model, a run, a key or the path of a request.
"""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
Combination = Literal["sum", "latest", "lowest"]

# Upper bounds in seconds for one way through Redis, for the time that a client waits, and for a whole run.
HOP_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
WAIT_BUCKETS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
)
RUN_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
# Upper bounds in seconds for the time that people take to answer: from a click to a week.
PEOPLE_BUCKETS_S: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 604_800.0)

# Why a stream read the replay log: a message was missing, a newer attempt began, the connection to Redis was lost and
# made again, the run was silent, the client had been too slow, or the reader joined a run that already existed.
CATCH_UP_CAUSES: Final = ("gap", "attempt", "reconnect", "silence", "slow_client", "joined")
# Why a cancel was requested: a client's request, or no client waits for the run any more.
CANCEL_CAUSES: Final = ("request", "abandoned")
GIVEN_UP_CODES: Final = ("queue_timeout", "stream_lost")
REJECTIONS: Final = (
    "invalid_request_error",
    "invalid_json",
    "invalid_api_key",
    "forbidden_host",
    "not_found",
    "model_not_found",
    "previous_response_not_found",
    "method_not_allowed",
    "request_timeout",
    "idempotency_key_reused",
    "not_waiting",
    "already_answered",
    "interrupt_expired",
    "input_not_taken",
    "too_much_input",
    "stream_trimmed",
    "request_too_large",
    "unsupported_media_type",
    "queue_full",
    "rate_limit_exceeded",
    "internal_error",
    "broker_unavailable",
    "too_many_connections",
    "run_not_ended",
    "other",
)
# How an attempt ended on a worker: its terminal event (for run_failed the failure code), or another worker continues
# the run (handed_back, lease_lost), or the run waits for people (parked), or its end could not be stored (not_stored).
OUTCOMES: Final = (
    "completed",
    "cancelled",
    "agent_error",
    "resume_failed",
    "model_error",
    "context_length_exceeded",
    "invalid_agent_output",
    "invalid_request",
    "queue_timeout",
    "run_timeout",
    "worker_shutdown",
    "worker_lost",
    "handed_back",
    "parked",
    "lease_lost",
    "not_stored",
)
CLAIM_KINDS: Final = ("new", "reclaimed")
# Why a run could not publish more events: a newer attempt has begun, Redis refused them, or its end was not stored in
# time.
PUBLISH_FAILURES: Final = ("fenced", "refused", "not_stored")

REQUESTS: Final = "agentstream_requests_total"
REJECTED: Final = "agentstream_rejected_total"
OPEN_RUNS: Final = "agentstream_open_runs"
OPEN_STREAMS: Final = "agentstream_open_streams"
OPEN_CONNECTIONS: Final = "agentstream_open_connections"
MAX_CONNECTIONS: Final = "agentstream_max_connections"
BUFFERED_BYTES: Final = "agentstream_buffered_bytes"
TOKENS: Final = "agentstream_tokens_total"
DISPATCH_SECONDS: Final = "agentstream_dispatch_seconds"
FIRST_TOKEN_SECONDS: Final = "agentstream_time_to_first_token_seconds"  # noqa: S105 -- no secret
BUS_LATENCY_SECONDS: Final = "agentstream_bus_latency_seconds"
CATCH_UPS: Final = "agentstream_catch_ups_total"
GAPS: Final = "agentstream_gaps_total"
DUPLICATES: Final = "agentstream_duplicates_total"
SLOW_CLIENT_CUTS: Final = "agentstream_slow_client_cuts_total"
GIVEN_UP: Final = "agentstream_given_up_total"
CANCELS: Final = "agentstream_cancels_total"
CANCEL_SECONDS: Final = "agentstream_cancel_seconds"
BROKER_RECONNECTS: Final = "agentstream_broker_reconnects"
BROKER_CONNECTED: Final = "agentstream_broker_connected"
WORKERS_ALIVE: Final = "agentstream_workers_alive"
QUEUED: Final = "agentstream_queued_jobs"
WAITING: Final = "agentstream_waiting_jobs"
OLDEST_WAITING_SECONDS: Final = "agentstream_oldest_waiting_job_seconds"
PARKED_RUNS: Final = "agentstream_parked_runs"
PARKED_SECONDS: Final = "agentstream_parked_seconds"
ANSWERS: Final = "agentstream_answers_total"

WORKER_SLOTS: Final = "agentstream_worker_slots"
WORKER_ACTIVE_RUNS: Final = "agentstream_worker_active_runs"
WORKER_RUNS: Final = "agentstream_worker_runs_total"
WORKER_RUN_SECONDS: Final = "agentstream_worker_run_seconds"
WORKER_DISPATCH_SECONDS: Final = "agentstream_worker_dispatch_seconds"
WORKER_CLAIMS: Final = "agentstream_worker_claims_total"
WORKER_RETRIES: Final = "agentstream_worker_retries_total"
WORKER_PAUSE_SECONDS: Final = "agentstream_worker_pause_seconds"
WORKER_CHECKPOINTS: Final = "agentstream_worker_checkpoints_total"
WORKER_INTERRUPTS: Final = "agentstream_worker_interrupts_total"
WORKER_INTERRUPT_TIMEOUTS: Final = "agentstream_worker_interrupt_timeouts_total"
WORKER_LEASES_LOST: Final = "agentstream_worker_leases_lost_total"
WORKER_CANCEL_SECONDS: Final = "agentstream_worker_cancel_seconds"
WORKER_TOKENS: Final = "agentstream_worker_tokens_total"
WORKER_TOOL_CALLS: Final = "agentstream_worker_tool_calls_total"
WORKER_PUBLISH_SECONDS: Final = "agentstream_worker_publish_seconds"
WORKER_PUBLISH_RETRIES: Final = "agentstream_worker_publish_retries_total"
WORKER_PUBLISH_FAILURES: Final = "agentstream_worker_publish_failures_total"
WORKER_UNFLUSHED_BYTES: Final = "agentstream_worker_unflushed_bytes"
WORKER_LOG_TRIMS: Final = "agentstream_worker_log_trims_total"
WORKER_LOOP_BLOCKED_SECONDS: Final = "agentstream_worker_loop_blocked_seconds"
WORKER_RECONNECTS: Final = "agentstream_worker_broker_reconnects_total"
WORKER_CONNECTED: Final = "agentstream_worker_broker_connected"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``labels`` gives the possible values of each label; it is empty for queues, routes and the like.

    ``combined_as``: processes on one port report the sum, the latest or the lowest of their values of a gauge.
    """

    name: str
    kind: Kind
    help_text: str
    labels: dict[str, tuple[str, ...]] | None = None
    buckets_s: tuple[float, ...] = ()
    combined_as: Combination = "sum"


_QUEUE_LABEL: Final[dict[str, tuple[str, ...]]] = {"queue": ()}
_NODE_LABEL: Final[dict[str, tuple[str, ...]]] = {"node": ()}
_CONNECTED: Final = (
    "Whether this process is connected to the Redis server with this address, 1 or 0: to the primary, in a cluster to "
    "each primary that it uses. A server that is no longer one of them has no series"
)

FRONTEND_METRICS: Final = (
    Metric(REQUESTS, "counter", "HTTP requests by route and response status", {"route": (), "status": ()}),
    Metric(REJECTED, "counter", "Requests that were answered with an error, by error code", {"reason": REJECTIONS}),
    Metric(OPEN_RUNS, "gauge", "Runs that a client of this front end waits for, streamed or not"),
    Metric(OPEN_STREAMS, "gauge", "Open streams to clients"),
    Metric(OPEN_CONNECTIONS, "gauge", "Open connections of clients and proxies"),
    Metric(MAX_CONNECTIONS, "gauge", "Connections that the limit of open files allows; 0 means no limit"),
    Metric(BUFFERED_BYTES, "gauge", "Bytes of open streams that their clients have not read yet"),
    Metric(TOKENS, "counter", "Pieces of answer text that were given to streams"),
    Metric(
        DISPATCH_SECONDS,
        "histogram",
        "Seconds from the admission of a request until its run has begun and the first event has arrived here",
        buckets_s=WAIT_BUCKETS_S,
    ),
    Metric(
        FIRST_TOKEN_SECONDS,
        "histogram",
        "Seconds from the admission of a streamed request until its first piece of answer text, for new runs with text",
        buckets_s=WAIT_BUCKETS_S,
    ),
    Metric(
        BUS_LATENCY_SECONDS,
        "histogram",
        "Seconds of a PING to Redis and back, until all messages that arrived before its reply were written to their "
        "clients; measured every 2 s with the clock of this process",
        buckets_s=HOP_BUCKETS_S,
    ),
    Metric(CATCH_UPS, "counter", "Times that a stream read its replay log, by cause", {"cause": CATCH_UP_CAUSES}),
    Metric(GAPS, "counter", "Times that pub/sub lost messages of a stream and the replay log supplied them"),
    Metric(DUPLICATES, "counter", "Pub/sub messages that were ignored because the stream already had their events"),
    Metric(SLOW_CLIENT_CUTS, "counter", "Streams cut because the client took no bytes for AGENTSTREAM_WRITE_TIMEOUT_S"),
    Metric(
        GIVEN_UP,
        "counter",
        "Runs that this front end ended itself because their end never arrived, by error code",
        {"code": GIVEN_UP_CODES},
    ),
    Metric(
        CANCELS,
        "counter",
        "Cancels requested by a client, or because no client waits any more",
        {"cause": CANCEL_CAUSES},
    ),
    Metric(
        CANCEL_SECONDS,
        "histogram",
        "Seconds from the request of a cancel until the run had ended",
        buckets_s=WAIT_BUCKETS_S,
    ),
    Metric(BROKER_RECONNECTS, "gauge", "Reconnects to Redis since the process started"),
    Metric(BROKER_CONNECTED, "gauge", _CONNECTED, _NODE_LABEL, combined_as="lowest"),
    Metric(
        WORKERS_ALIVE,
        "gauge",
        "Workers with a heartbeat in the last 10 s; -1 if unknown",
        _QUEUE_LABEL,
        combined_as="latest",
    ),
    Metric(
        QUEUED, "gauge", "Jobs of the queue, waiting and running; -1 if unknown", _QUEUE_LABEL, combined_as="latest"
    ),
    Metric(WAITING, "gauge", "Jobs that no worker has claimed yet; -1 if unknown", _QUEUE_LABEL, combined_as="latest"),
    Metric(
        OLDEST_WAITING_SECONDS,
        "gauge",
        "Age in seconds of the oldest job that no worker has claimed, by Redis's clock; 0 if none waits, -1 if unknown",
        _QUEUE_LABEL,
        combined_as="latest",
    ),
    Metric(
        PARKED_RUNS,
        "gauge",
        "Runs that wait for people; they hold no worker and no place in the queue; -1 if unknown",
        _QUEUE_LABEL,
        combined_as="latest",
    ),
    Metric(
        PARKED_SECONDS,
        "histogram",
        "Seconds that a run was parked until its last interrupt was answered here; by the clocks of the worker and of "
        "this process",
        buckets_s=PEOPLE_BUCKETS_S,
    ),
    Metric(ANSWERS, "counter", "Interrupts that people have answered here"),
)

WORKER_METRICS: Final = (
    Metric(WORKER_SLOTS, "gauge", "Runs that this worker may execute at the same time"),
    Metric(WORKER_ACTIVE_RUNS, "gauge", "Runs that hold a slot", _QUEUE_LABEL),
    Metric(
        WORKER_RUNS,
        "counter",
        "Attempts at runs that ended on this worker, by outcome",
        {**_QUEUE_LABEL, "outcome": OUTCOMES},
    ),
    Metric(
        WORKER_RUN_SECONDS,
        "histogram",
        "Seconds from the start of an attempt until its end was stored",
        _QUEUE_LABEL,
        RUN_BUCKETS_S,
    ),
    Metric(
        WORKER_DISPATCH_SECONDS,
        "histogram",
        "Seconds from the enqueueing of a job until its first attempt began, by the clock of Redis, to the millisecond",
        _QUEUE_LABEL,
        WAIT_BUCKETS_S,
    ),
    Metric(
        WORKER_CLAIMS,
        "counter",
        "Claimed jobs: new ones, and reclaimed ones, whose worker was lost or had handed them back",
        {**_QUEUE_LABEL, "kind": CLAIM_KINDS},
    ),
    Metric(WORKER_RETRIES, "counter", "Runs whose agent was called again in a later attempt", _QUEUE_LABEL),
    Metric(
        WORKER_PAUSE_SECONDS,
        "histogram",
        "Seconds that a run stood still before this worker took it over, since the last renewal of its lease; by "
        "whether the agent continued the run",
        {**_QUEUE_LABEL, "resumed": ("true", "false")},
        buckets_s=WAIT_BUCKETS_S,
    ),
    Metric(WORKER_CHECKPOINTS, "counter", "Checkpoints that agents made", _QUEUE_LABEL),
    Metric(WORKER_INTERRUPTS, "counter", "Interrupts with which agents asked people", _QUEUE_LABEL),
    Metric(WORKER_INTERRUPT_TIMEOUTS, "counter", "Interrupts that nobody answered in time", _QUEUE_LABEL),
    Metric(WORKER_LEASES_LOST, "counter", "Runs that another worker took over while this one held them", _QUEUE_LABEL),
    Metric(
        WORKER_CANCEL_SECONDS,
        "histogram",
        "Seconds from the arrival of a cancel at this worker until the end of the run was stored",
        _QUEUE_LABEL,
        WAIT_BUCKETS_S,
    ),
    Metric(WORKER_TOKENS, "counter", "Pieces of answer text that agents wrote", _QUEUE_LABEL),
    Metric(
        WORKER_TOOL_CALLS,
        "counter",
        "Tool calls that ended, by success, if the agent announces them",
        {**_QUEUE_LABEL, "success": ("true", "false")},
    ),
    Metric(
        WORKER_PUBLISH_SECONDS,
        "histogram",
        "Seconds from the last event of a run until all its events were stored and published",
        buckets_s=HOP_BUCKETS_S,
    ),
    Metric(
        WORKER_PUBLISH_RETRIES,
        "counter",
        "Batches sent again because the replay log had not stored them or had lost them",
    ),
    Metric(
        WORKER_PUBLISH_FAILURES,
        "counter",
        "Runs that could not publish any more events, by reason",
        {"reason": PUBLISH_FAILURES},
    ),
    Metric(WORKER_UNFLUSHED_BYTES, "gauge", "Bytes of events that wait to be stored and published"),
    Metric(
        WORKER_LOG_TRIMS,
        "counter",
        "Runs whose replay log exceeded AGENTSTREAM_LOG_MAX_BYTES and lost its oldest events",
    ),
    Metric(
        WORKER_LOOP_BLOCKED_SECONDS,
        "histogram",
        "Seconds that code of an agent blocked the event loop of the worker, if it was more than 1 s",
        buckets_s=WAIT_BUCKETS_S,
    ),
    Metric(WORKER_RECONNECTS, "counter", "Reconnects to Redis since the process started"),
    Metric(WORKER_CONNECTED, "gauge", _CONNECTED, _NODE_LABEL, combined_as="lowest"),
)
