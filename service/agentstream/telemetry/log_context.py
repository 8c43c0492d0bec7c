"""The subject of log lines: run, request, queue, attempt and worker. Every log line gets these fields automatically.

A task or thread inherits them from the task that starts it, like every context variable. Some lines come from
elsewhere, for example from a callback of the connection that all runs share. They name their subject themselves:
``extra=log_extra(log_context)``.
"""

from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from agentstream.protocol.jobs import Job

AGENT_ERROR_FIELD: Final = "agent_error"
# The ``extra`` of a line about an error of the agent. The setting ``log_errors`` allows the text of its exception.
AGENT_ERROR: Final = {AGENT_ERROR_FIELD: True}


class LogContext(NamedTuple):
    """Log fields under their fixed names. A field that is None is left out.

    It is a tuple, because every open stream holds one.
    """

    run_id: str | None = None
    request_id: str | None = None
    queue: str | None = None
    attempt: int | None = None
    worker: str | None = None


_log_context: ContextVar[LogContext] = ContextVar("log_context", default=LogContext())  # noqa: B039 -- a named tuple cannot be changed


def current_log_context() -> LogContext:
    """Return the log context of the running task."""
    return _log_context.get()


def bind(**fields: Any) -> None:  # noqa: ANN401 -- a LogContext's fields
    """Set fields of the log context of the running task, and of the tasks and threads that it starts from now on."""
    _log_context.set(_log_context.get()._replace(**fields))


def log_extra(log_context: LogContext) -> dict[str, LogContext]:
    """Return the ``extra`` of a log line that has another subject than its caller."""
    return {"log_context": log_context}


def log_context_of(job: Job) -> LogContext:
    """Return the log context of a job."""
    return LogContext(run_id=job.run_id, request_id=job.request_id)
