"""Keeps an agent from ending the worker: the functions of Python that end a process or its event loop refuse an agent.

    an agent calls                                      it gets
    ==================================================  =====================================================
    os._exit, os.abort                                  SystemExit, which ends its run only
    os.kill, os.killpg, signal.raise_signal, … on       PermissionError
    the worker or its parent
    loop.stop, loop.close                               RuntimeError
    loop.shutdown_default_executor, …_asyncgens         RuntimeError, because other runs use them
    loop.set_default_executor, loop.set_task_factory    nothing: the call is ignored
    handlers of SIGTERM, SIGINT and SIGHUP on the loop  nothing: the call is ignored
    asyncio.all_tasks                                   its own tasks only

Each refusal is one line in the log, which names the agent. An exception that leaves a task or a callback and would end
the loop does not end it either: ``processes.runtime`` lets the loop go on.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

from agentstream.telemetry.log_context import AGENT_ERROR, log_extra
from agentstream.worker.current_agent import current_agent, make_task, owner_of

log = logging.getLogger(__name__)

# Signals that do nothing by default. An agent may send them to its own process.
_HARMLESS: Final = frozenset({0, signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH})
_STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
_PACKAGE: Final = "agentstream."


@contextlib.contextmanager
def refuse_exits() -> Iterator[None]:
    """Refuse calls that end this process, while the block runs. Code of this package may call them.

    Child processes that were forked from this process may call them too.
    """
    worker = os.getpid()

    def itself() -> set[int]:
        return {worker, os.getppid(), 0, -1, -os.getpgrp()}

    def group() -> set[int]:
        return {0, os.getpgrp()}

    def threads() -> set[int]:
        return {thread.ident or 0 for thread in threading.enumerate()}

    replaced: list[tuple[Any, str, Any]] = [
        (os, "_exit", _exiting("os._exit", os._exit, worker)),
        (os, "abort", _exiting("os.abort", os.abort, worker)),
        (os, "kill", _signalling("os.kill", os.kill, worker, itself)),
        (os, "killpg", _signalling("os.killpg", os.killpg, worker, group)),
        (signal, "pthread_kill", _signalling("signal.pthread_kill", signal.pthread_kill, worker, threads)),
        (signal, "raise_signal", _signalling("signal.raise_signal", signal.raise_signal, worker)),
    ]
    with _replaced(replaced):
        yield


def _exiting(name: str, function: Callable[..., Any], worker: int) -> Callable[..., NoReturn]:
    """Return a function that raises SystemExit if foreign code of the worker calls it."""

    def checked(*arguments: Any) -> NoReturn:  # noqa: ANN401 -- as the function's
        if _is_foreign(worker):
            warn("called %s; only its run ends", f"{name}{arguments}")
        else:
            function(*arguments)
        raise SystemExit(*arguments)

    return checked


def _signalling(
    name: str, function: Callable[..., Any], worker: int, targets: Callable[[], set[int]] | None = None
) -> Callable[..., None]:
    """Return a function that sends no signal to one of ``targets`` if foreign code of the worker calls it.

    Without ``targets`` the function takes only the signal, and sends it to the worker.
    """

    def checked(*arguments: int) -> None:
        is_target = targets is None or arguments[0] in targets()
        if is_target and _would_end(arguments[-1]) and _is_foreign(worker):
            warn("sent a signal to its own worker with %s; the signal was not sent", f"{name}{arguments}")
            message = "an agent may not send this signal to its worker"
            raise PermissionError(message)
        function(*arguments)

    return checked


def _is_foreign(worker: int) -> bool:
    """Return whether the caller of the caller is not of this package, in the process ``worker``."""
    caller = sys._getframe(2).f_globals.get("__name__", "")  # noqa: SLF001 -- cheaper than inspect, and rare
    return os.getpid() == worker and not caller.startswith(_PACKAGE)


@contextlib.contextmanager
def guard_loop(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Refuse calls of agents that end or change the running event loop, while the block runs."""

    def refusing(name: str) -> Callable[..., Any]:
        function = getattr(loop, name)

        def checked(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 -- as the function's
            if current_agent() is None:
                return function(*arguments, **options)
            warn("called loop.%s, which would end other runs; the call was refused", name)
            message = f"an agent may not call loop.{name}: other runs use the event loop"
            raise RuntimeError(message)

        return checked

    def ignoring(name: str, applies: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
        function = getattr(loop, name)

        def checked(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 -- as the function's
            if current_agent() is None or not applies(*arguments):
                return function(*arguments, **options)
            warn("called loop.%s; the call was ignored, because other runs use the event loop", name)
            return None

        return checked

    all_tasks = asyncio.all_tasks

    def own_tasks(of_loop: asyncio.AbstractEventLoop | None = None) -> set[asyncio.Task[Any]]:
        agent = current_agent()
        return {task for task in all_tasks(of_loop) if agent is None or owner_of(task) == agent}

    def is_stop_signal(number: int, *_: object) -> bool:
        return number in _STOP_SIGNALS

    names = ("stop", "close", "shutdown_default_executor", "shutdown_asyncgens")
    replaced: list[tuple[Any, str, Any]] = [
        *((loop, name, refusing(name)) for name in names),
        *((loop, name, ignoring(name)) for name in ("set_default_executor", "set_task_factory")),
        *((loop, name, ignoring(name, is_stop_signal)) for name in ("add_signal_handler", "remove_signal_handler")),
        (asyncio, "all_tasks", own_tasks),
        (asyncio.tasks, "all_tasks", own_tasks),
    ]
    loop.set_task_factory(make_task)
    with _replaced(replaced):
        yield
    loop.set_task_factory(None)


def warn(what: str, detail: str) -> None:
    """Log that the running agent did something; ``what`` continues the sentence. It says where in the agent's code."""
    agent = current_agent()
    extra = AGENT_ERROR | ({} if agent is None else log_extra(agent.log_context))
    name = agent.name if agent else "(unknown: a thread that it started, or its module)"
    log.error("the agent %s %s (%s)", name, what % detail, _place(), extra=extra)


def _place() -> str:
    """Return the innermost line of code that is not of this package."""
    frame = sys._getframe(1)  # noqa: SLF001
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}, in {frame.f_code.co_name}"


def _would_end(number: int) -> bool:
    """Return whether a signal would end or stop this process, or is the order to drain."""
    if number in _STOP_SIGNALS or number in {signal.SIGKILL, signal.SIGSTOP}:
        return True
    return number not in _HARMLESS and signal.getsignal(number) in {signal.SIG_DFL, None}


@contextlib.contextmanager
def _replaced(replaced: list[tuple[Any, str, Any]]) -> Iterator[None]:
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, function in replaced:
        setattr(owner, name, function)
    try:
        yield
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
