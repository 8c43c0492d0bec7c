"""What the lines of a log are about: the run, the request and the attempt, known to every line without being passed on.

A task or a thread that a run's or a request's own starts inherits its scope, as any context variable. Lines that come
from elsewhere, such as a callback of the connection that all runs share, name theirs: ``extra=log_extra(log_context)``.
"""

from contextvars import ContextVar
from typing import Any, NamedTuple

from agentstream.protocol.jobs import Job


class LogContext(NamedTuple):
    """Log fields by their fixed names; None is left out. A tuple, as every open stream holds one."""

    run_id: str | None = None
    request_id: str | None = None
    queue: str | None = None
    attempt: int | None = None
    worker: str | None = None


_log_context: ContextVar[LogContext] = ContextVar("log_context", default=LogContext())  # noqa: B039 -- a named tuple cannot be changed


def current_log_context() -> LogContext:
    """Return the scope of whoever calls."""
    return _log_context.get()


def bind(**fields: Any) -> None:  # noqa: ANN401 -- a LogContext's fields
    """Add fields to the scope of the running task, and of what it starts from now on."""
    _log_context.set(_log_context.get()._replace(**fields))


def log_extra(log_context: LogContext) -> dict[str, LogContext]:
    """Return the ``extra`` of a line that is about another scope than its caller's."""
    return {"log_context": log_context}


def log_context_of(job: Job) -> LogContext:
    """Return what log lines about a job say of it."""
    return LogContext(run_id=job.run_id, request_id=job.request_id)
