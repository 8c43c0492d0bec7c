"""What every process of ours does around its work: the event loop, logging, signals."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

from service.errors import AgentStreamError, StartupError

log = logging.getLogger(__name__)

# How long tasks that nobody waits for any more may take to be cancelled.
LAST_TASKS_S: Final = 2.0

EXIT_FAILED = 1
EXIT_WRONG_SETTINGS = 2  # starting again would not help


def configure_logging(level: str, process: str) -> None:
    """Log to standard error, one line a record, with the process's name."""
    logging.basicConfig(
        level=level.upper(),
        format=f"%(asctime)s %(levelname)-7s {process} %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
    for noisy in ("httpx2", "httpx", "httpcore2", "openai", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run ``main`` on the fastest event loop there is and return its exit code; raises StartupError."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ImportError):  # not on Windows
        import uvloop  # noqa: PLC0415

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            return runner.run(_until_ended(main))
        except StartupError:
            raise
        except AgentStreamError as exc:
            log.error("%s", exc)  # noqa: TRY400 -- the message is meant for the operator; the trace is not
            return EXIT_FAILED


async def _until_ended(main: Coroutine[Any, Any, int]) -> int:
    """Await ``main``; then end the process by force if a task swallows its cancel, as the loop would wait for ever."""
    try:
        return await main
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left and (stuck := (await asyncio.wait(left, timeout=LAST_TASKS_S))[1]):
            log.critical("%d tasks ignore their cancel; the process ends without them", len(stuck))
            os._exit(EXIT_FAILED)


def free_port() -> int:
    """Return a loopback port nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def stop_signals() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set; the second signal of a kind acts as usual."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    caught = (signal.SIGTERM, signal.SIGINT)

    def on_signal(number: signal.Signals) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in caught:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
