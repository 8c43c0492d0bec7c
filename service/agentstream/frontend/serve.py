"""The front-end process: it waits for Redis, serves requests, and drains after a stop signal.

Its life, and what a proxy sees of it (PROTOCOL.md, section 2.1):

    starting    refuses connections, until it can serve
    ready       serves
    leaving     serves for ``stop_delay_s``, is not ready, and closes each connection after its next answer
    draining    refuses connections; serves the requests that come on open ones, for up to ``drain_timeout_s``
    gone
"""

import asyncio
import contextlib
import logging
from typing import Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agentstream.config import Settings
from agentstream.frontend.app import create_app
from agentstream.frontend.connection import Connection, connection_factory
from agentstream.frontend.context import CONTEXT, Context
from agentstream.frontend.listener import Listener
from agentstream.processes.stopping import done_before, stop_signals
from agentstream.telemetry.otel import exported_spans

log = logging.getLogger(__name__)

# How long handlers may run after they were cancelled at the end of the drain.
CLOSE_TIMEOUT_S: Final = 1.0

# A drain ends when no connection has been busy for this time: a client that connected just before the listener closed
# still sends its request. A proxy may not try this request again elsewhere, because it cannot know its effect.
LAST_REQUESTS_S: Final = 0.5
DRAIN_POLL_S: Final = 0.05


def _quiet_malformed_request(record: logging.LogRecord) -> bool:
    """Turn aiohttp's error about a malformed request into one debug line without a traceback or request data."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError):
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        record.msg, record.args, record.exc_info = "a malformed request was refused", (), None
        return log.isEnabledFor(logging.DEBUG)
    return True


async def serve_frontend(settings: Settings, *, number: int | None = None, parent: int | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code.

    The process listens only after it has connected to Redis: a proxy sends requests to every process that listens, and
    tries another one if a connection is refused. With a ``number`` it is one of several processes on the port.
    ``parent`` is the pipe to the process that started it (see ``StopPipe``).

    Raises StartupError if it cannot listen on the port, BrokerUnavailable if it cannot reach Redis within
    ``broker_wait_s`` seconds.
    """
    with exported_spans("frontend"):
        return await _serve(settings, number, parent)


async def _serve(settings: Settings, number: int | None, parent: int | None) -> int:
    app = create_app(settings, number=number)
    context = app[CONTEXT]
    logging.getLogger("aiohttp.server").addFilter(_quiet_malformed_request)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S)
    await runner.setup()
    manager = cast("web.Server", runner.server)  # setup() has created it
    try:
        with stop_signals(parent=parent) as stop, contextlib.ExitStack() as listening:
            if not await done_before(stop, context.link.wait_ready(settings.broker_wait_s)):
                return 0
            context.connections.apply()
            connect = connection_factory(manager, context.connections)
            listener = await Listener.open(connect, settings, context.connections, shared=number is not None)
            listening.callback(listener.close)
            log.info("serving on %s", server_url(settings.host, listener))
            await stop.wait()
            context.leaving = True
            if settings.stop_delay_s:
                log.info("stopping: not ready, accepts connections for %g s more", settings.stop_delay_s)
                await asyncio.sleep(settings.stop_delay_s)
            await listener.stop()
            await _drain(context, manager, settings.drain_timeout_s)
    finally:
        await runner.cleanup()
    return 0


async def _drain(context: Context, manager: web.Server, timeout_s: float) -> None:
    """Serve the requests on open connections, until none has been busy for LAST_REQUESTS_S.

    Give up after LAST_REQUESTS_S and ``timeout_s``, with a warning.
    """
    await asyncio.sleep(LAST_REQUESTS_S)
    context.draining = True
    log.info("draining: %d open runs", len(context.watcher))
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + timeout_s
    quiet_at_s = loop.time()
    while (busy := _busy(manager)) or loop.time() < quiet_at_s:
        if busy and loop.time() >= ends_s:
            log.warning(
                "disconnecting the clients of %d runs that did not end within %g s", len(context.watcher), timeout_s
            )
            return
        if busy:
            quiet_at_s = loop.time() + LAST_REQUESTS_S
        await asyncio.sleep(DRAIN_POLL_S)


def _busy(manager: web.Server) -> bool:
    """Return whether a request is being answered on an open connection."""
    return any(connection.busy for connection in manager.connections if isinstance(connection, Connection))


def server_url(host: str, listener: Listener) -> str:
    """Return the URL of a listener, with its real port if the port setting is 0."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.address[1]}"
