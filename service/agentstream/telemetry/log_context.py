"""What the lines of a log are about: the run, the request and the attempt, known to every line without being passed on.

A task or a thread that a run's or a request's own starts inherits its scope, as any context variable. Lines that come
from elsewhere, such as a callback of the connection that all runs share, name theirs: ``extra=about(scope)``.
"""

from contextvars import ContextVar
from typing import Any, NamedTuple

from agentstream.protocol.jobs import Job


class Scope(NamedTuple):
    """Log fields by their fixed names; None is left out. A tuple, as every open stream holds one."""

    run_id: str | None = None
    request_id: str | None = None
    queue: str | None = None
    attempt: int | None = None
    worker: str | None = None


_scope: ContextVar[Scope] = ContextVar("scope", default=Scope())  # noqa: B039 -- a named tuple cannot be changed


def current() -> Scope:
    """Return the scope of whoever calls."""
    return _scope.get()


def bind(**fields: Any) -> None:  # noqa: ANN401 -- a Scope's fields
    """Add fields to the scope of the running task, and of what it starts from now on."""
    _scope.set(_scope.get()._replace(**fields))


def about(scope: Scope) -> dict[str, Scope]:
    """Return the ``extra`` of a line that is about another scope than its caller's."""
    return {"scope": scope}


def scope_of(job: Job) -> Scope:
    """Return what log lines about a job say of it."""
    return Scope(run_id=job.run_id, request_id=job.request_id)
