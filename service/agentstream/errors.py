"""The tree of all errors that agentstream raises on purpose.

    AgentStreamError
    |-- RequestError                 the client's mistake: HTTP 4xx, no job was enqueued
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
    |-- ServiceError                 our failure: HTTP 5xx
    |   |-- BrokerUnavailable        503  broker_unavailable (with Retry-After)
    |   |-- TooManyConnections       503  too_many_connections (with Retry-After)
    |   |-- RunNotEnded              504  run_not_ended
    |   `-- RunFailed                the run failed; the HTTP status depends on the failure code
    |-- BusError                     an error of the store; clients get a ServiceError instead
    |   |-- ConnectionRefused        the broker refuses a new connection; has the broker's own words
    |   |   `-- WrongBroker          REDIS_URL leads to another kind of broker than it names
    |   |-- Fenced                   a newer attempt of the run has begun
    |   |-- LogTrimmed               the replay log no longer holds the events that the reader needs
    |   |-- NotResumable             no attempt can continue the run: something of it is gone or unreadable
    |   `-- BufferFull               too many events of the run wait to be published
    |-- AgentError                   an error of the agent; it ends the run, never the worker
    |   |-- InvalidAgentOutput       wrong return type, forbidden event, data that is not JSON
    |   |-- RunCancelled             raised inside an agent when its run is cancelled or over
    |   `-- InterruptTimeout         raised by run.interrupt if nobody answers in time
    `-- StartupError                 a process cannot start; the message names the setting and the fix

A class that clients can see has an HTTP ``status``, and the ``code`` and ``error_type`` of an OpenAI error.
"""

import os
import re
from pathlib import Path
from typing import Any, ClassVar, Final

MASK: Final = "***"  # shown in place of a secret


class AgentStreamError(Exception):
    """Root of the tree."""


class RequestError(AgentStreamError):
    """A request that is refused before it has any effect. ``param`` names the wrong field."""

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
        """Store the fields of the error body. ``code`` replaces the code of the class."""
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
    """401: the request has no API key, or an unknown one."""

    status = 401
    code = "invalid_api_key"
    error_type = "authentication_error"


class ForbiddenHost(RequestError):
    """403: the ``Host`` header does not name this machine (PROTOCOL.md, section 2.2)."""

    status = 403
    code = "forbidden_host"


class NotFound(RequestError):
    """404: the route or run does not exist, or the run belongs to another owner."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """405: the route does not support the method."""

    status = 405
    code = "method_not_allowed"


class BodyTimeout(RequestError):
    """408: the client did not send the whole body in time."""

    status = 408
    code = "request_timeout"


class Conflict(RequestError):
    """409: the idempotency key was used for a different request."""

    status = 409
    code = "idempotency_key_reused"


class Gone(RequestError):
    """410: the replay log of the run is incomplete or gone."""

    status = 410
    code = "stream_trimmed"


class BodyTooLarge(RequestError):
    """413: the body is larger than the limit."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(RequestError):
    """415: the body is not declared as JSON, or its Content-Encoding is not supported."""

    status = 415
    code = "unsupported_media_type"


class QueueFull(RequestError):
    """429: the queue holds the maximum number of outstanding jobs."""

    status = 429
    code = "queue_full"
    error_type = "rate_limit_error"


class LimitReached(RequestError):
    """429: the API key has reached its limit of active runs or of requests per minute."""

    status = 429
    code = "rate_limit_exceeded"
    error_type = "rate_limit_error"


class ServiceError(RequestError):
    """5xx: the request was valid, but the service failed."""

    status = 500
    code = "internal_error"
    error_type = "server_error"


class BrokerUnavailable(ServiceError):
    """503: Redis is unreachable, refuses the command, or does not answer in time."""

    status = 503
    code = "broker_unavailable"


class TooManyConnections(ServiceError):
    """503: this front end has as many connections as its limit of open files allows."""

    status = 503
    code = "too_many_connections"


class RunNotEnded(ServiceError):
    """504: the cancel was stored, but the run has not ended within the time limit."""

    status = 504
    code = "run_not_ended"


class RunFailed(ServiceError):
    """The run of a request that is not streamed ended with ``run_failed``."""

    def __init__(self, message: str, *, code: str, status: int | None = None) -> None:
        """Take the failure code of the terminal event, and its status if it has one."""
        super().__init__(message, code=code)
        self.run_status = failure_status(code, status)

    def body(self) -> dict[str, Any]:
        """Return the error object that a strict stream sends for the same failure."""
        text = failure_text(self.error_code, self.message)
        return error_body(text, failure_type(self.error_code, self.run_status), code=self.error_code)


class BusError(AgentStreamError):
    """An error of the store: a command failed, or stored data is invalid."""


class ConnectionRefused(BusError):
    """The broker refuses a new connection, for example because the password is wrong or it is not the primary."""

    def __init__(self, message: str, *, words: str) -> None:
        """Store the message, which may have a hint, and the broker's own words."""
        super().__init__(message)
        self.words = words


class WrongBroker(ConnectionRefused):
    """REDIS_URL leads to another kind of broker than it names: only another URL or other servers help."""

    def __init__(self, message: str) -> None:
        """Store the message. It says what to change."""
        super().__init__(message, words=message)


class Fenced(BusError):
    """A newer attempt of the run has begun: this attempt may publish nothing more."""


class LogTrimmed(BusError):
    """The replay log no longer holds the events at a position: they were trimmed at the size limit, or lost."""


class NotResumable(BusError):
    """No attempt can continue the run: its replay log was trimmed, or its checkpoint has an unknown form."""


class BufferFull(BusError):
    """The unpublished events of a run exceed their bound, for example because Redis is unreachable."""


class AgentError(AgentStreamError):
    """An agent cannot answer. An agent raises it to choose the error code and the HTTP status that its clients get."""

    default_code: ClassVar[str] = "agent_error"

    def __init__(self, message: str = "", *, code: str | None = None, status: int | None = None) -> None:
        """``code`` is a letter, then up to 63 letters, digits or ``_ . -``; the default is ``agent_error``.

        ``status`` is the HTTP status of an answer that is not streamed, from 400 to 599; the default is the status of
        the code, or 500. Raises ValueError for a wrong or reserved value.
        """
        super().__init__(message)
        self.code = code or self.default_code
        self.status = status
        if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", self.code) is None or self.code in SERVICE_CODES:
            text = f"AgentError: the code {self.code!r} is malformed or reserved: use a name such as quota_exceeded"
            raise ValueError(text)
        if status is not None and not 400 <= status <= 599:  # noqa: PLR2004 -- the range of HTTP errors
            text = f"AgentError: the status {status!r} is no HTTP error: use a number from 400 to 599"
            raise ValueError(text)


class InvalidAgentOutput(AgentError):
    """The agent returned or emitted a value that cannot be sent."""

    default_code = "invalid_agent_output"


class RunCancelled(AgentError):
    """The run was cancelled, or this attempt is over; ``emit`` and ``write`` raise it inside the agent."""


class InterruptTimeout(AgentError):
    """Nobody has answered an interrupt within its time limit; ``run.interrupt`` raises it inside the agent."""

    default_code = "interrupt_timeout"


class StartupError(AgentStreamError):
    """A process cannot start; the message says why and what to do."""


# Failure codes: each says why a run ended without completing (PROTOCOL.md, 3.8).
INVALID_REQUEST = "invalid_request"
CONTEXT_LENGTH = "context_length_exceeded"
MODEL_ERROR = "model_error"
AGENT_ERROR = "agent_error"
RESUME_FAILED = "resume_failed"
INVALID_AGENT_OUTPUT = "invalid_agent_output"
QUEUE_TIMEOUT = "queue_timeout"
RUN_TIMEOUT = "run_timeout"
WORKER_SHUTDOWN = "worker_shutdown"
STREAM_LOST = "stream_lost"
WORKER_LOST = "worker_lost"
CANCELLED = "cancelled"
CANCELLED_MESSAGE = "the run was cancelled"

# When each failure code is used. The generated reference of errors shows these sentences.
FAILURE_MEANINGS: dict[str, str] = {
    CONTEXT_LENGTH: "The conversation is longer than the context window of the model.",
    MODEL_ERROR: "The model server refused the request of the agent, failed, or cannot be reached.",
    AGENT_ERROR: "The agent raised any other error.",
    RESUME_FAILED: "The agent raised an error before it continued a run from its checkpoint.",
    INVALID_AGENT_OUTPUT: "The agent returned or emitted a value that cannot be sent.",
    INVALID_REQUEST: "The worker cannot read the request, or has no agent for its model.",
    QUEUE_TIMEOUT: "No worker began the job in time.",
    RUN_TIMEOUT: "The attempt took longer than its time limit.",
    WORKER_SHUTDOWN: "The worker was stopped before the run ended, and no other worker could continue it.",
    WORKER_LOST: "The worker of the run died, and its agent can neither continue nor repeat the run.",
    STREAM_LOST: "The front end can no longer read the events of the run.",
}

# The codes of refused requests that are passed to a class above: status, code and when it is used. The generated
# reference of errors shows these rows.
REQUEST_CODES: tuple[tuple[int, str, str], ...] = (
    (400, "invalid_json", "The body is not JSON."),
    (400, "headers_too_large", "The request line or a header is too long."),
    (404, "model_not_found", "No agent has this model, or no worker serves it now."),
    (404, "previous_response_not_found", "The response that `previous_response_id` names is not stored, or not yours."),
    (409, "not_waiting", "The run waits for no answer: it works, or it has ended."),
    (409, "already_answered", "The interrupt has another answer already."),
    (409, "interrupt_expired", "Nobody has answered the interrupt in time. The run goes on without an answer."),
    (409, "input_not_taken", "The run takes no messages now: its agent takes none, or it waits, or it has ended."),
    (429, "too_much_input", "The run has as many messages as one run takes."),
)

MAX_MESSAGE_CHARACTERS = 4000  # limit for an agent's error text, because it goes into a frame and a log line

# Codes that an agent may not choose: they say what happened to the run outside of the agent.
SERVICE_CODES = frozenset({QUEUE_TIMEOUT, RUN_TIMEOUT, WORKER_SHUTDOWN, WORKER_LOST, STREAM_LOST, CANCELLED})

# HTTP status by failure code, for requests that are not streamed; 500 for all other codes. An event may have another
# status, which an error of the model server or the agent has chosen.
RUN_FAILURE_STATUS: dict[str, int] = {
    CONTEXT_LENGTH: 400,
    MODEL_ERROR: 400,
    QUEUE_TIMEOUT: 503,
    RUN_TIMEOUT: 504,
}
# The OpenAI error type by HTTP status. Other statuses below 500 are invalid_request_error, others server_error.
_ERROR_TYPES: dict[int, str] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_FIRST_SERVER_ERROR = 500

# The status for clients when the model server answered with this one. The client did not choose the server's key or
# address, and cannot pay its bill: those failures are ours (502). Other statuses below 500 stay.
_STATUS_OF_UPSTREAM: dict[int, int] = {401: 502, 402: 502, 403: 502, 407: 502, 408: 504, 503: 503, 504: 504, 529: 503}
UPSTREAM_FAILED = 502
UPSTREAM_TIMEOUT = 504
_TOO_LONG_STATUSES = frozenset({400, 413, 422})


def error_body(message: str, error_type: str, *, code: str | None, param: str | None = None) -> dict[str, Any]:
    """Return ``{"error": {...}}`` with the four keys that every OpenAI SDK reads."""
    return {"error": {"message": message, "type": error_type, "param": param, "code": code}}


def upstream_failure(status: int, message: str, code: object = None) -> tuple[str, int]:
    """Return failure code and HTTP status for an error answer of a model server.

    ``code`` is the code in the server's error object. Servers say in different words that a conversation is too long:
    OpenAI and vLLM "context length", llama.cpp "context size", others "context window" or "too long".
    """
    lowered = message.lower()
    if (
        code == CONTEXT_LENGTH
        or mentions_context_length(message)
        or ("too long" in lowered and status in _TOO_LONG_STATUSES)
    ):
        return CONTEXT_LENGTH, 400
    return MODEL_ERROR, _STATUS_OF_UPSTREAM.get(status, status if status < _FIRST_SERVER_ERROR else UPSTREAM_FAILED)


def mentions_context_length(message: str) -> bool:
    """Return whether a model server's text says that the conversation does not fit into its context window."""
    lowered = message.lower()
    return any(f"context {word}" in lowered for word in ("length", "size", "window"))


def failure_status(code: str, status: int | None = None) -> int:
    """Return the HTTP status of a failed run. ``status`` is the status in its event, if it has one."""
    return RUN_FAILURE_STATUS.get(code, 500) if status is None else status


def failure_type(code: str, status: int | None = None) -> str:
    """Return the OpenAI error type of a failed run. ``status`` is the status in its event, if it has one."""
    if code == CANCELLED:
        return CANCELLED
    status = failure_status(code, status)
    return _ERROR_TYPES.get(status, "invalid_request_error" if status < _FIRST_SERVER_ERROR else "server_error")


def failure_text(code: str, message: str) -> str:
    """Return the sentence for the user about a failed run. It is one of the three sentences of the original bridge.

    For an error of the agent or the model, the text of the error decides, as in the original (PROTOCOL.md, 3.8). The
    failure code and the HTTP status do not depend on the text.
    """
    too_long = "The input is too long for the model's context window. Please try a shorter message."
    if code == CONTEXT_LENGTH:
        return too_long
    if code in {AGENT_ERROR, MODEL_ERROR}:
        cause = message.partition(" (request id ")[0]  # of ``neutral_message``; the id may contain "400"
        lowered = cause.lower()
        if "context length" in lowered or ("400" in cause and "too long" in lowered):
            return too_long
        if "400" in cause:
            return f"The model returned an error: {message}"
    return f"Sorry, an error occurred: {message}"


def neutral_message(reason: str, request_id: str) -> str:
    """Return the message of a failed run whose details clients may not see."""
    return f"{reason} (request id {request_id})"


def missing_extra(what: str, extra: str) -> str:
    """Return the message about a missing optional dependency: what needs it, and the command that installs it."""
    return f"{what} needs an optional dependency that is not installed: pip install 'agentstream[{extra}]'"


def explain_file_error(path: str, exc: OSError) -> str:
    """Return why a file cannot be read, in words that say what to do."""
    if isinstance(exc, IsADirectoryError):
        return f"{path} is a folder; Docker creates one if the file that it should mount does not exist"
    return explain_no_access(path) or f"{exc.strerror or exc}: {os.path.abspath(path)}"  # noqa: PTH100 -- keeps links


def explain_no_access(path: str) -> str:
    """Return why this process may not read a file or folder, or "" if it may or if nothing is there.

    The reason names the file or the folder above it that refuses, its mode and owner, and the user of this process.
    """
    whole = Path(os.path.abspath(path))  # noqa: PTH100 -- resolve() raises if a folder refuses
    for part in (*reversed(whole.parents), whole):
        try:
            facts = part.stat()
            wanted = "a folder" if part.is_dir() else "a file"
        except OSError:
            return ""
        needed = (os.R_OK if part == whole else 0) | (os.X_OK if wanted == "a folder" else 0)
        if not os.access(part, needed):
            return (
                f"this process runs as user {os.geteuid()} and may not read {part}, {wanted} of user {facts.st_uid} "
                f"with mode {facts.st_mode & 0o777:o}: run chmod -R a+rX on it (in a container: on the folder that is "
                f"mounted there), or run the process as user {facts.st_uid}"
            )
    return ""
