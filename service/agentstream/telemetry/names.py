"""Every metric: its name, kind, unit, labels and meaning, so that dashboards and alerts can be checked against them.

Units are Prometheus' own (seconds, bytes); labels take values from small sets that no client can widen: routes,
statuses and codes of ours, and the queues that the settings name. Never a model, a run, a key or a path.
"""

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]

# Upper bounds in seconds: of one hop through the broker, of what somebody waits for, of a whole run.
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

# Why a stream read the log: a message did not follow, a newer attempt began, the connection to the broker was made
# anew, the run was silent, its client had fallen behind, or a reader joined a run that exists.
CATCH_UP_CAUSES: Final = ("gap", "attempt", "reconnect", "silence", "slow_client", "joined")
# Who asked for a run's end: a request, or nobody is left who waits for it.
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
    "stream_trimmed",
    "request_too_large",
    "unsupported_media_type",
    "queue_full",
    "rate_limit_exceeded",
    "internal_error",
    "broker_unavailable",
    "draining",
    "run_not_ended",
    "other",
)
# How a run ended at a worker: its terminal event (for run_failed: its code), or that another worker has it, or that
# its end could not be stored.
OUTCOMES: Final = (
    "completed",
    "cancelled",
    "agent_error",
    "model_error",
    "context_length_exceeded",
    "invalid_agent_output",
    "invalid_request",
    "queue_timeout",
    "run_timeout",
    "worker_shutdown",
    "worker_lost",
    "handed_back",
    "lease_lost",
    "not_stored",
)
CLAIM_KINDS: Final = ("new", "reclaimed")
# Why nothing more of a run could be published: a newer attempt has begun, the broker refused, its end was not stored
# in time.
PUBLISH_FAILURES: Final = ("fenced", "refused", "not_stored")

REQUESTS: Final = "agentstream_requests_total"
REJECTED: Final = "agentstream_rejected_total"
OPEN_RUNS: Final = "agentstream_open_runs"
OPEN_STREAMS: Final = "agentstream_open_streams"
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
WORKERS_ALIVE: Final = "agentstream_workers_alive"
QUEUED: Final = "agentstream_queued_jobs"
WAITING: Final = "agentstream_waiting_jobs"
OLDEST_WAITING_SECONDS: Final = "agentstream_oldest_waiting_job_seconds"

WORKER_SLOTS: Final = "agentstream_worker_slots"
WORKER_ACTIVE_RUNS: Final = "agentstream_worker_active_runs"
WORKER_RUNS: Final = "agentstream_worker_runs_total"
WORKER_RUN_SECONDS: Final = "agentstream_worker_run_seconds"
WORKER_DISPATCH_SECONDS: Final = "agentstream_worker_dispatch_seconds"
WORKER_CLAIMS: Final = "agentstream_worker_claims_total"
WORKER_RETRIES: Final = "agentstream_worker_retries_total"
WORKER_LEASES_LOST: Final = "agentstream_worker_leases_lost_total"
WORKER_CANCEL_SECONDS: Final = "agentstream_worker_cancel_seconds"
WORKER_TOKENS: Final = "agentstream_worker_tokens_total"
WORKER_TOOL_CALLS: Final = "agentstream_worker_tool_calls_total"
WORKER_PUBLISH_SECONDS: Final = "agentstream_worker_publish_seconds"
WORKER_PUBLISH_RETRIES: Final = "agentstream_worker_publish_retries_total"
WORKER_PUBLISH_FAILURES: Final = "agentstream_worker_publish_failures_total"
WORKER_UNFLUSHED_BYTES: Final = "agentstream_worker_unflushed_bytes"
WORKER_LOG_TRIMS: Final = "agentstream_worker_log_trims_total"
WORKER_RECONNECTS: Final = "agentstream_worker_broker_reconnects_total"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, with its labels and, for each, the values it may take; none are told for queues, routes, statuses.

    Of a gauge, processes that share a port tell the sum, or, if it is ``shared``, what one of them saw last.
    """

    name: str
    kind: Kind
    help_text: str
    labels: dict[str, tuple[str, ...]] | None = None
    buckets_s: tuple[float, ...] = ()
    shared: bool = False


_QUEUE_LABEL: Final[dict[str, tuple[str, ...]]] = {"queue": ()}

FRONTEND_METRICS: Final = (
    Metric(REQUESTS, "counter", "HTTP requests by route and status", {"route": (), "status": ()}),
    Metric(REJECTED, "counter", "Requests answered with an error of ours, by its code", {"reason": REJECTIONS}),
    Metric(OPEN_RUNS, "gauge", "Runs a client is waiting for, streamed or not"),
    Metric(OPEN_STREAMS, "gauge", "Streams open to clients"),
    Metric(BUFFERED_BYTES, "gauge", "Bytes of open streams that wait for their clients to take them"),
    Metric(TOKENS, "counter", "Pieces of answer text handed to streams"),
    Metric(
        DISPATCH_SECONDS,
        "histogram",
        "From a request's admission until its run's first event (a worker began it) arrived here",
        buckets_s=WAIT_BUCKETS_S,
    ),
    Metric(
        FIRST_TOKEN_SECONDS,
        "histogram",
        "From a streamed request's admission to its first piece of answer text; of new runs whose answer had any",
        buckets_s=WAIT_BUCKETS_S,
    ),
    Metric(
        BUS_LATENCY_SECONDS,
        "histogram",
        "From here through the broker and back, behind the messages of all streams, until those were written to "
        "their clients; by this process's clock alone, every 2 s",
        buckets_s=HOP_BUCKETS_S,
    ),
    Metric(CATCH_UPS, "counter", "Times a stream read its run's log, by cause", {"cause": CATCH_UP_CAUSES}),
    Metric(GAPS, "counter", "Times pub/sub had not brought all messages of a stream; the log gave them"),
    Metric(DUPLICATES, "counter", "Messages dropped because their events had been delivered already"),
    Metric(SLOW_CLIENT_CUTS, "counter", "Streams cut because their client took no bytes for the write timeout"),
    Metric(GIVEN_UP, "counter", "Runs whose end this front end had to make up, by code", {"code": GIVEN_UP_CODES}),
    Metric(CANCELS, "counter", "Cancels asked for, by a request or because nobody waits", {"cause": CANCEL_CAUSES}),
    Metric(CANCEL_SECONDS, "histogram", "From a cancel's request until the run had ended", buckets_s=WAIT_BUCKETS_S),
    Metric(BROKER_RECONNECTS, "gauge", "Reconnects to Redis"),
    Metric(WORKERS_ALIVE, "gauge", "Live workers; -1 if unknown", _QUEUE_LABEL, shared=True),
    Metric(QUEUED, "gauge", "Outstanding jobs, waiting and running; -1 if unknown", _QUEUE_LABEL, shared=True),
    Metric(WAITING, "gauge", "Jobs no worker has taken yet; -1 if unknown", _QUEUE_LABEL, shared=True),
    Metric(
        OLDEST_WAITING_SECONDS,
        "gauge",
        "Age of the oldest job no worker has taken, by the broker's clock; 0 if there is none, -1 if unknown",
        _QUEUE_LABEL,
        shared=True,
    ),
)

WORKER_METRICS: Final = (
    Metric(WORKER_SLOTS, "gauge", "Runs that may go on at once"),
    Metric(WORKER_ACTIVE_RUNS, "gauge", "Runs that hold a slot", _QUEUE_LABEL),
    Metric(WORKER_RUNS, "counter", "Runs that ended here, by outcome", {**_QUEUE_LABEL, "outcome": OUTCOMES}),
    Metric(WORKER_RUN_SECONDS, "histogram", "From an attempt's begin to its end, stored", _QUEUE_LABEL, RUN_BUCKETS_S),
    Metric(
        WORKER_DISPATCH_SECONDS,
        "histogram",
        "From enqueueing a job to the begin of its first attempt, by the broker's clock, to the millisecond",
        _QUEUE_LABEL,
        WAIT_BUCKETS_S,
    ),
    Metric(
        WORKER_CLAIMS,
        "counter",
        "Jobs taken: new ones, and those whose worker was lost or had handed them back",
        {**_QUEUE_LABEL, "kind": CLAIM_KINDS},
    ),
    Metric(WORKER_RETRIES, "counter", "Runs whose agent was called again, in a later attempt", _QUEUE_LABEL),
    Metric(WORKER_LEASES_LOST, "counter", "Runs that went on at another worker while this one held them", _QUEUE_LABEL),
    Metric(
        WORKER_CANCEL_SECONDS,
        "histogram",
        "From hearing of a run's cancel until its end was stored",
        _QUEUE_LABEL,
        WAIT_BUCKETS_S,
    ),
    Metric(WORKER_TOKENS, "counter", "Pieces of answer text that agents wrote", _QUEUE_LABEL),
    Metric(
        WORKER_TOOL_CALLS,
        "counter",
        "Ends of tool calls that agents announced, by success",
        {**_QUEUE_LABEL, "success": ("true", "false")},
    ),
    Metric(
        WORKER_PUBLISH_SECONDS,
        "histogram",
        "From a run's last event until it and all before it were stored and published",
        buckets_s=HOP_BUCKETS_S,
    ),
    Metric(WORKER_PUBLISH_RETRIES, "counter", "Batches sent again because the log did not take or have them"),
    Metric(
        WORKER_PUBLISH_FAILURES,
        "counter",
        "Runs of which nothing more could be published, by reason",
        {"reason": PUBLISH_FAILURES},
    ),
    Metric(WORKER_UNFLUSHED_BYTES, "gauge", "Bytes of events that wait to be published"),
    Metric(WORKER_LOG_TRIMS, "counter", "Runs whose log outgrew its bound and lost its beginning"),
    Metric(WORKER_RECONNECTS, "counter", "Reconnects to Redis"),
)
