"""Agents with a start and an end: the worker enters their async context manager once, and leaves it when it stops.

given as                                            the agent is
==================================================  =========================================================
an object with ``__aenter__`` and ``__aexit__``     the value of ``__aenter__``; the object itself if it is None
a plain function without parameters, for example    the value of the context manager that the function returns
one with ``@asynccontextmanager``
"""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, cast

from agentstream.agents.contract import Agent, AgentResult, Run
from agentstream.agents.import_errors import explain_import_error
from agentstream.agents.shapes import as_agent, name_of, takes_nothing
from agentstream.errors import StartupError

log = logging.getLogger(__name__)

# Time for all agents of a process to close their connections. Its runs have ended before.
LEAVE_TIMEOUT_S: Final = 5.0
# After this time more, the process exits although an agent ignores its cancellation or blocks the event loop.
EXIT_AFTER_S: Final = 1.0

ContextManager = AbstractAsyncContextManager[object, Any]


class ManagedAgent:
    """An agent that must be started: ``enter`` makes it, and ``leave`` ends it. Both run in the same task."""

    def __init__(self, label: str, source: object) -> None:
        """``source`` is the context manager, or the function that returns it. ``label`` names it in errors."""
        self.name = name_of(source)
        self.source = source
        self._label = label
        self._manager: ContextManager | None = None
        self._agent: Agent | None = None

    @property
    def agent(self) -> Agent:
        """The started agent. Raises RuntimeError if it is not started."""
        if self._agent is None:
            message = f"{self._label} was not started"
            raise RuntimeError(message)
        return self._agent

    async def __call__(self, run: Run) -> AgentResult:
        """Raise RuntimeError: only the started agent can be called."""
        message = f"{self._label} is called without its context manager: call its ``agent`` with the run {run.id}"
        raise RuntimeError(message)

    async def enter(self) -> None:
        """Enter the context manager. Raises StartupError if that fails or gives no agent."""
        try:
            manager = self._find_manager()
            value = await manager.__aenter__()
            self._manager = manager
        except (StartupError, asyncio.CancelledError):
            raise
        except (Exception, SystemExit) as exc:  # the user's code may raise anything
            message = f"{self._label} could not start: {explain_import_error(exc, '')}"
            raise StartupError(message) from exc
        try:
            self._agent = as_agent(_agent_of(manager, value))
        except TypeError as exc:
            await self.leave()
            message = f"{self._label}: its context manager gave a value that {exc}"
            raise StartupError(message) from exc

    def _find_manager(self) -> ContextManager:
        manager: object = cast("Any", self.source)() if takes_nothing(self.source) else self.source
        if is_context_manager(manager):
            return cast("ContextManager", manager)
        if asyncio.iscoroutine(manager):
            manager.close()  # Python must not warn that nobody awaited it
        message = (
            f"{self._label} takes no parameter and returned a {type(manager).__name__}. An agent takes the run. A "
            "function without parameters must return an async context manager: decorate it with "
            "@contextlib.asynccontextmanager"
        )
        raise StartupError(message)

    async def leave(self) -> None:
        """Leave the context manager. An error is logged and not raised, because the process ends."""
        manager, self._manager, self._agent = self._manager, None, None
        if manager is None:
            return
        try:
            await manager.__aexit__(None, None, None)
        except (Exception, SystemExit):  # the user's code may raise anything
            log.exception("%s could not be closed", self._label)


@asynccontextmanager
async def started(agents: Sequence[ManagedAgent], *, limit_s: float, stop: asyncio.Event) -> AsyncIterator[None]:
    """Start the agents one after the other, and end them in the opposite order.

    If ``stop`` is set meanwhile, the start is given up without an error; the caller checks ``stop``. Raises
    StartupError if an agent fails to start or all together need more than ``limit_s``.
    """
    entered: list[ManagedAgent] = []
    try:
        await _enter_all(agents, entered, limit_s, stop)
        yield
    finally:
        await _leave_all(entered)


async def _enter_all(
    agents: Sequence[ManagedAgent], entered: list[ManagedAgent], limit_s: float, stop: asyncio.Event
) -> None:
    current = ""
    try:
        async with asyncio.timeout(limit_s) as limit, _call_when_set(stop, lambda: limit.reschedule(0)):
            for agent in agents:
                current = agent.name
                await agent.enter()
                entered.append(agent)
    except TimeoutError as exc:
        if not stop.is_set():
            message = (
                f"agent {current!r} did not start within {limit_s:g} s; if it needs longer, "
                "raise AGENTSTREAM_AGENT_START_TIMEOUT_S"
            )
            raise StartupError(message) from exc


@asynccontextmanager
async def _call_when_set(event: asyncio.Event, callback: Callable[[], None]) -> AsyncIterator[None]:
    async def wait() -> None:
        await event.wait()
        callback()

    waiting = asyncio.create_task(wait(), name="stop")
    try:
        yield
    finally:
        waiting.cancel()


async def _leave_all(entered: list[ManagedAgent]) -> None:
    if not entered:
        return
    exiting = threading.Timer(LEAVE_TIMEOUT_S + EXIT_AFTER_S, _exit)
    exiting.daemon = True
    exiting.start()
    try:
        async with asyncio.timeout(LEAVE_TIMEOUT_S):
            for agent in reversed(entered):
                await agent.leave()
    except TimeoutError:
        log.error("agents did not close within %g s", LEAVE_TIMEOUT_S)  # noqa: TRY400 -- the traceback is of no use
    finally:
        exiting.cancel()


def _exit() -> None:
    """End the process. It runs in a thread of its own, because the event loop may be blocked."""
    log.critical("an agent keeps the process from its end; the process exits without it")
    os._exit(1)


def is_context_manager(found: object) -> bool:
    """Return whether an object, not a class, is an async context manager."""
    return not isinstance(found, type) and all(hasattr(type(found), name) for name in ("__aenter__", "__aexit__"))


def _agent_of(manager: ContextManager, value: object) -> object:
    """Return the agent that a context manager gives: its value, or itself if the value is None."""
    # The managers of contextlib can be called too, but only as decorators.
    if value is None and type(manager).__module__ != "contextlib":
        return manager
    return value
