"""Every error this project raises on purpose, drawn once.

    AgentStreamError
    |-- RequestError                 the caller's mistake; HTTP 4xx, nothing was enqueued
    |   |-- InvalidRequest           400  invalid_request_error
    |   |-- Unauthenticated          401  invalid_api_key
    |   |-- ForbiddenHost            403  forbidden_host
    |   |-- NotFound                 404  not_found
    |   |-- MethodNotAllowed         405  method_not_allowed
    |   |-- BodyTimeout              408  request_timeout
    |   |-- Conflict                 409  idempotency_key_reused
    |   |-- Gone                     410  stream_trimmed
    |   |-- BodyTooLarge             413  request_too_large
    |   |-- UnsupportedMediaType     415  unsupported_media_type
    |   |-- QueueFull                429  queue_full (with Retry-After)
    |   `-- LimitReached             429  rate_limit_exceeded (with Retry-After)
    |-- ServiceError                 our side; HTTP 5xx
    |   |-- BrokerUnavailable        503  broker_unavailable (with Retry-After)
    |   |-- Draining                 503  draining (with Retry-After)
    |   |-- RunNotEnded              504  run_not_ended
    |   `-- RunFailed                the run's own failure; status by its code
    |-- BusError                     store internals, never shown as they are
    |   |-- Fenced                   a newer attempt owns the run's log
    |   |-- LogTrimmed               the log no longer reaches back to the cursor
    |   `-- BufferFull               the broker is away and the run's buffer is full
    |-- AgentError                   what an agent did wrong; ends its run, never the worker
    |   |-- InvalidAgentOutput       wrong return type, forbidden event, unserialisable data
    |   `-- RunCancelled             raised inside an agent whose run was cancelled
    `-- StartupError                 a process cannot start: says which setting and what to do

A class has an HTTP ``status`` and an OpenAI-style ``code`` and ``error_type`` where a client can see it.
"""

from typing import Any, ClassVar


class AgentStreamError(Exception):
    """Root of the tree."""


class RequestError(AgentStreamError):
    """A request that is refused before anything happens. ``param`` names the offending field."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "invalid_request_error"
    error_type: ClassVar[str] = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """Keep what the error body needs; ``code`` overrides the class's own."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code or self.code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the OpenAI-shaped error body."""
        return error_body(self.message, self.error_type, code=self.error_code, param=self.param)


class InvalidRequest(RequestError):
    """400: the body or a parameter is wrong."""


class Unauthenticated(RequestError):
    """401: no API key, or not one of ours."""

    status = 401
    code = "invalid_api_key"
    error_type = "authentication_error"


class ForbiddenHost(RequestError):
    """403: the Host header names another machine; see ``middleware.openai_errors``."""

    status = 403
    code = "forbidden_host"


class NotFound(RequestError):
    """404: no such route or run (or not the caller's)."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """405: the route exists, the method does not."""

    status = 405
    code = "method_not_allowed"


class BodyTimeout(RequestError):
    """408: the body did not come in time."""

    status = 408
    code = "request_timeout"


class Conflict(RequestError):
    """409: the idempotency key stands for a different request."""

    status = 409
    code = "idempotency_key_reused"


class Gone(RequestError):
    """410: the run's log no longer reaches back so far."""

    status = 410
    code = "stream_trimmed"


class BodyTooLarge(RequestError):
    """413: the body is over the limit."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(RequestError):
    """415: the body is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"


class QueueFull(RequestError):
    """429: as many jobs as allowed are outstanding."""

    status = 429
    code = "queue_full"
    error_type = "rate_limit_error"


class LimitReached(RequestError):
    """429: the API key has as many runs, or has sent as many requests, as it may."""

    status = 429
    code = "rate_limit_exceeded"
    error_type = "rate_limit_error"


class ServiceError(RequestError):
    """5xx: the request was fine, we were not. Shares the body's shape with RequestError."""

    status = 500
    code = "internal_error"
    error_type = "server_error"


class BrokerUnavailable(ServiceError):
    """503: Redis cannot be reached."""

    status = 503
    code = "broker_unavailable"


class Draining(ServiceError):
    """503: this front end is shutting down."""

    status = 503
    code = "draining"


class RunNotEnded(ServiceError):
    """504: a cancel was stored, but the run has not ended in the time it should take."""

    status = 504
    code = "run_not_ended"


class RunFailed(ServiceError):
    """A run ended with ``run_failed`` and the request was not streamed."""

    def __init__(self, message: str, *, code: str) -> None:
        """Take the code of the run's terminal event; the status follows from it."""
        super().__init__(message, code=code)
        self.run_status = RUN_FAILURE_STATUS.get(code, 500)

    def body(self) -> dict[str, Any]:
        """Return the same error object as a strict stream's."""
        text = failure_text(self.error_code, self.message)
        return error_body(text, failure_type(self.error_code), code=self.error_code)


class BusError(AgentStreamError):
    """Something between us and Redis."""


class Fenced(BusError):
    """A newer attempt owns the run: this one may publish nothing more."""


class LogTrimmed(BusError):
    """The replay log was cut at its cap (or lost) before the wanted position."""


class BufferFull(BusError):
    """A run's unpublished events are over their bound and nothing leaves."""


class AgentError(AgentStreamError):
    """An agent broke its contract."""


class InvalidAgentOutput(AgentError):
    """The agent returned or emitted something that cannot be sent."""


class RunCancelled(AgentError):
    """The run was cancelled; raised by ``emit`` and ``write`` inside threaded agents."""


class StartupError(AgentStreamError):
    """A process refuses to start; the message says why and what to do."""


# The code of a failed run: what ended it.
INVALID_REQUEST = "invalid_request"
CONTEXT_LENGTH = "context_length_exceeded"
MODEL_ERROR = "model_error"
AGENT_ERROR = "agent_error"
INVALID_AGENT_OUTPUT = "invalid_agent_output"
QUEUE_TIMEOUT = "queue_timeout"
RUN_TIMEOUT = "run_timeout"
WORKER_SHUTDOWN = "worker_shutdown"
STREAM_LOST = "stream_lost"
WORKER_LOST = "worker_lost"
CANCELLED = "cancelled"
CANCELLED_MESSAGE = "the run was cancelled"

MAX_MESSAGE_CHARACTERS = 4000  # of an agent's own error text: it ends up in a frame and a log line

# The HTTP status of a non-streamed request whose run failed. Context length and upstream 400s are
# the caller's to mend; everything else is ours.
RUN_FAILURE_STATUS: dict[str, int] = {
    CONTEXT_LENGTH: 400,
    MODEL_ERROR: 400,
    QUEUE_TIMEOUT: 503,
    RUN_TIMEOUT: 504,
}


def error_body(message: str, error_type: str, *, code: str | None, param: str | None = None) -> dict[str, Any]:
    """Return ``{"error": {...}}`` with the four keys every OpenAI SDK reads."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def failure_code(message: str) -> str:
    """Sort an agent's error text the way the seed does: context length, upstream 400, anything else.

    Beyond the seed's "context length", llama.cpp says "context size" and others "context window".
    """
    lowered = message.lower()
    if any(f"context {word}" in lowered for word in ("length", "size", "window")) or (
        "400" in message and "too long" in lowered
    ):
        return CONTEXT_LENGTH
    if "400" in message:
        return MODEL_ERROR
    return AGENT_ERROR


def failure_type(code: str) -> str:
    """Return the OpenAI error type of a failed run."""
    if code == CANCELLED:
        return CANCELLED
    return "invalid_request_error" if code in {CONTEXT_LENGTH, MODEL_ERROR} else "server_error"


def failure_text(code: str, message: str) -> str:
    """Return the sentence shown to the user for a failed run; the seed's three texts."""
    if code == CONTEXT_LENGTH:
        return "The input is too long for the model's context window. Please try a shorter message."
    if code == MODEL_ERROR:
        return f"The model returned an error: {message}"
    return f"Sorry, an error occurred: {message}"
