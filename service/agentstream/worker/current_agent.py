"""The agent whose code runs now: by the context of the running code, and by the task."""

import asyncio
import contextlib
from collections.abc import Coroutine, Generator
from contextvars import Context, ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from agentstream.telemetry.log_context import LogContext


class CurrentAgent(NamedTuple):
    """An agent that runs, and the log context of its run."""

    name: str
    log_context: LogContext

    def __str__(self) -> str:
        """Return the agent and its run, for a log line."""
        return f"{self.name} (run {self.log_context.run_id})"


_current: ContextVar[CurrentAgent | None] = ContextVar("current_agent", default=None)
_recent: set[str] = set()  # names of agents that were called since ``recent_agents``
_owners: WeakKeyDictionary[asyncio.Future[Any], CurrentAgent] = WeakKeyDictionary()


def set_current_agent(agent: CurrentAgent) -> None:
    """Name the agent of the running task or thread, and of the tasks and threads that it starts from now on."""
    _current.set(agent)
    _recent.add(agent.name)
    if (task := asyncio.current_task()) is not None:
        _owners[task] = agent


def current_agent() -> CurrentAgent | None:
    """Return the agent whose code calls this function; None for code that is not an agent's."""
    return _current.get()


def owner_of(task: asyncio.Future[Any] | None) -> CurrentAgent | None:
    """Return the agent that started a task, or None."""
    return None if task is None else _owners.get(task)


def recent_agents() -> str:
    """Return the names of the agents that run or ran since the last call of this function, for a log line."""
    names = set(_recent)
    _recent.clear()
    with contextlib.suppress(RuntimeError):  # the loop started a task while another thread reads
        names |= {agent.name for task, agent in list(_owners.items()) if not task.done()}
    return ", ".join(sorted(names)) or "none ran; an agent's module, or what it left behind"


def make_task(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **options: Any,  # noqa: ANN401 -- name and context, as asyncio passes them
) -> asyncio.Task[Any]:
    """Make a task and remember its agent. This is a task factory for an event loop."""
    task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
    context: Context | None = options.get("context")
    agent = _current.get() if context is None else context.get(_current)
    if agent is not None:
        _owners[task] = agent
    return task
