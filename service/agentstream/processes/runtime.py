"""The common parts of every process: event loop, logging and exit codes."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Final

from agentstream.config import Settings
from agentstream.errors import AgentStreamError, BrokerUnavailable, StartupError
from agentstream.processes.file_limit import raise_file_limit
from agentstream.telemetry.log_context import AGENT_ERROR
from agentstream.telemetry.log_format import JsonFormatter, TextFormatter, TraceIds
from agentstream.telemetry.masking import register_secrets

log = logging.getLogger(__name__)

# Time for cancelled tasks to end when the process ends.
CANCEL_TASKS_TIMEOUT_S: Final = 2.0

# Libraries that log at debug the texts that they send and receive.
NOISY: Final = ("asyncio", "httpcore", "httpcore2", "httpx", "httpx2", "mcp", "openai")

EXIT_FAILED = 1
EXIT_WRONG_SETTINGS = 2  # another start would not help
EXIT_UNREACHABLE: Final = 3  # Redis, or for a command the front end; a retry may help
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report ctrl-C


def configure_logging(settings: Settings, process: str, *, trace_ids: TraceIds | None = None) -> None:
    """Log to standard error in the form of the settings, without secrets. Log uncaught exceptions too.

    ``trace_ids`` returns the ids of the trace and of the current span in hex, or None if there is no span.
    """
    form = JsonFormatter if settings.log_format == "json" else TextFormatter
    handler = logging.StreamHandler(sys.stderr)
    register_secrets(settings.secrets())
    errors = settings.log_errors and process.startswith("worker")  # only workers run agents
    handler.setFormatter(form(process, content=settings.log_content, errors=errors, trace_ids=trace_ids))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level.upper())))
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    if settings.log_content:
        log.warning("log_content is on: the log may contain texts of users, models and tools")


def _log_uncaught(kind: type[BaseException], exc: BaseException, traceback: TracebackType | None) -> None:
    log.critical("the process ends with an uncaught error", exc_info=(kind, exc, traceback))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        log.error("a thread ended with an uncaught error", exc_info=args.exc_value, extra=AGENT_ERROR)


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run ``main`` on uvloop, or on asyncio's loop where there is no uvloop. Return its exit code.

    Raises the limit of open files first.

    Raises StartupError. Other errors of this package are logged. They become EXIT_UNREACHABLE if Redis cannot be
    reached, or else EXIT_FAILED.
    """
    raise_file_limit()
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):  # not on Windows
        import uvloop  # noqa: PLC0415

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            return _run_to_end(runner, main)
        except StartupError:
            raise
        except AgentStreamError as exc:
            log.error("%s", exc)  # noqa: TRY400 -- the operator needs the message, not the traceback
            return EXIT_UNREACHABLE if isinstance(exc, BrokerUnavailable) else EXIT_FAILED


def _run_to_end(runner: asyncio.Runner, main: Coroutine[Any, Any, int]) -> int:
    """Run ``main`` to its end, also if other code ends the event loop before.

    A SystemExit or KeyboardInterrupt that leaves a task or a callback ends the loop, and so does ``loop.stop``. In a
    worker this may come from an agent. It must not end the runs of others, so the loop goes on.
    """
    tasks: list[asyncio.Task[int]] = []

    async def remembered() -> int:
        if (task := asyncio.current_task()) is not None:
            tasks.append(task)
        return await _until_ended(main)

    loop, run = runner.get_loop(), partial(runner.run, remembered())
    while True:
        try:
            return run()
        except BaseException as exc:
            if not tasks or tasks[0].done() or _is_from_signal(exc):
                raise
            raised = "called loop.stop" if isinstance(exc, RuntimeError) else f"raised {type(exc).__name__}"
            log.error(  # noqa: TRY400 -- the place says enough
                "code outside of the service %s and would have ended this process; it goes on (%s; running: %s)",
                raised,
                _place_of(exc),
                ", ".join(sorted(_running_agents(loop))) or "no agent",
                extra=AGENT_ERROR,
            )
            run = partial(loop.run_until_complete, tasks[0])


def _is_from_signal(exc: BaseException) -> bool:
    """Return whether an exception is ctrl-C, of a process that does not handle this signal itself (yet)."""
    return isinstance(exc, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _place_of(exc: BaseException) -> str:
    frames = traceback.extract_tb(exc.__traceback__)
    return f"{frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}" if frames else "no place known"


def _running_agents(loop: asyncio.AbstractEventLoop) -> list[str]:
    """Return the names of the tasks of agents."""
    return [task.get_name() for task in asyncio.all_tasks(loop) if task.get_name().startswith("agent ")]


async def _until_ended(main: Coroutine[Any, Any, int]) -> int:
    """Await ``main``, then cancel all other tasks.

    If a task ignores its cancellation, exit: the event loop would wait for it for ever.
    """
    try:
        return await main
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left and (stuck := (await asyncio.wait(left, timeout=CANCEL_TASKS_TIMEOUT_S))[1]):
            log.critical("%d tasks ignore their cancellation; the process exits without them", len(stuck))
            os._exit(EXIT_FAILED)


def free_port() -> int:
    """Return a loopback port that no process listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
