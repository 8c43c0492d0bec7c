"""The front-end process: listens, waits for Redis, drains when told to stop."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agentstream.config import Settings
from agentstream.errors import BrokerUnavailable, StartupError
from agentstream.frontend.app import create_app
from agentstream.frontend.context import CONTEXT
from agentstream.processes.runtime import stop_signals
from agentstream.telemetry.otel import exported_spans

log = logging.getLogger(__name__)

# Connections the kernel may hold for us; a burst longer than that is told to try again by TCP.
BACKLOG: Final = 128

# Redis gets this long to be there before we listen: a proxy sends requests to whoever listens, and without Redis they
# get 503. After it, callers are better told so than refused.
CONNECT_FIRST_S: Final = 1.0

# After the drain, handlers that were cut get this long to notice.
CLOSE_TIMEOUT_S: Final = 1.0

# Who connected just before the listener closed gets this long to send a request that is still served. A proxy tries
# another front end only when the connection is refused, so to turn this one away would be an error for its client.
LAST_REQUESTS_S: Final = 0.5


def _quiet_malformed_request(record: logging.LogRecord) -> bool:
    """Make one quiet line of a malformed request; aiohttp logs each with a traceback and what was sent."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError):
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        record.msg, record.args, record.exc_info = "a malformed request was refused", (), None
        return log.isEnabledFor(logging.DEBUG)
    return True


async def serve_frontend(settings: Settings, *, number: int | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    Raises StartupError if the port is taken, BrokerUnavailable if Redis is not there in ``broker_wait_s``;
    until then requests get 503. With a ``number`` this is one of several processes on the port, and listens only
    once it is connected: until then the others get the requests.
    """
    with exported_spans("frontend"):
        return await _serve(settings, number)


async def _serve(settings: Settings, number: int | None) -> int:
    app = create_app(settings, number=number)
    context = app[CONTEXT]
    logging.getLogger("aiohttp.server").addFilter(_quiet_malformed_request)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S)
    await runner.setup()
    manager = cast("web.Server", runner.server)  # there is one since the setup
    try:
        with stop_signals() as stop, contextlib.ExitStack() as listening:
            shared = number is not None
            if shared:
                await _wait_connected(context.link.wait_ready(settings.broker_wait_s), stop)
            else:
                with contextlib.suppress(BrokerUnavailable):
                    await context.link.wait_ready(CONNECT_FIRST_S)
            server = listening.enter_context(contextlib.closing(await _listen(manager, settings, shared=shared)))
            if not shared:
                await _wait_connected(context.link.wait_ready(settings.broker_wait_s), stop)
            if not stop.is_set():
                log.info("serving on %s", server_url(settings.host, server))
            await stop.wait()
            await _stop_listening(server, manager)
            await asyncio.sleep(LAST_REQUESTS_S)
            context.draining = True
            log.info("draining: %d open runs", len(context.watcher))
            if not await context.watcher.wait_empty(settings.drain_timeout_s):
                log.warning("cutting %d runs that did not end in %g s", len(context.watcher), settings.drain_timeout_s)
    finally:
        await runner.cleanup()
    return 0


async def _listen(manager: web.Server, settings: Settings, *, shared: bool) -> asyncio.Server:
    """Listen, and take connections until the server is closed; raises StartupError."""
    try:
        return await asyncio.get_running_loop().create_server(
            manager, settings.host, settings.port, backlog=BACKLOG, reuse_port=shared or None
        )
    except OSError as exc:
        message = f"cannot listen on {settings.host}:{settings.port} (AGENTSTREAM_PORT): {exc.strerror}"
        raise StartupError(message) from exc


async def _stop_listening(server: asyncio.Server, manager: web.Server) -> None:
    """Refuse new connections, and take every one the kernel has accepted.

    Closing a listener resets those it still holds, their requests sent: an error that no proxy may mend by sending
    them again. Duplicates outlive the server, so the last look and the close are microseconds apart. What cannot be
    taken (a client that is gone, no descriptor left) is lost alone: the open streams must still be drained.
    """
    listeners = [socket.socket(fileno=os.dup(listener.fileno())) for listener in server.sockets]
    server.close()
    held: list[socket.socket] = []
    for listener in listeners:
        with listener:
            listener.settimeout(0)
            held += _accept_all(listener)
    for connection in held:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(manager, connection)
        except OSError as exc:
            log.warning("a connection accepted at the last moment is lost: %s", exc)
            connection.close()


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            yield listener.accept()[0]
        except BlockingIOError:
            return
        except ConnectionAbortedError:
            continue  # that client has left; others may wait behind it
        except OSError as exc:
            log.warning("connections that wait to be accepted are lost: %s", exc)
            return


async def _wait_connected(connecting: object, stop: asyncio.Event) -> None:
    """Return once connected or told to stop; raises what connecting raised."""
    connected = asyncio.ensure_future(connecting)  # type: ignore[call-overload]
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({connected, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if connected.done():
            connected.result()
    finally:
        connected.cancel()
        stopping.cancel()


def server_url(host: str, server: asyncio.Server) -> str:
    """Return the URL a server really listens on; port 0 has become a free one."""
    port = server.sockets[0].getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
