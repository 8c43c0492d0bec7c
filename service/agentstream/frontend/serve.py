"""The front-end process: it waits for Redis, serves requests, and drains after a stop signal."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Final, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from agentstream.config import Settings, env_name
from agentstream.errors import BrokerUnavailable, StartupError
from agentstream.frontend.app import create_app
from agentstream.frontend.connection import ConnectionFactory, connection_factory
from agentstream.frontend.context import CONTEXT
from agentstream.processes.shared_port import explain_listen_error
from agentstream.processes.stopping import stop_signals
from agentstream.telemetry.otel import exported_spans

log = logging.getLogger(__name__)

# Connections that may wait in the kernel's accept queue. If it is full, TCP makes further clients retry.
BACKLOG: Final = 128

# How long to wait for Redis before listening. A proxy sends requests to every process that listens, and without Redis
# they get 503. After this time a 503 helps clients more than a refused connection.
CONNECT_FIRST_S: Final = 1.0

# How long handlers may run after they were cancelled at the end of the drain.
CLOSE_TIMEOUT_S: Final = 1.0

# A client that connected just before the listener closed has this long to send a request, which is still served. A
# proxy retries with another front end only if the connection is refused; a 503 here would reach the client.
LAST_REQUESTS_S: Final = 0.5


def _quiet_malformed_request(record: logging.LogRecord) -> bool:
    """Turn aiohttp's error about a malformed request into one debug line without a traceback or request data."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError):
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        record.msg, record.args, record.exc_info = "a malformed request was refused", (), None
        return log.isEnabledFor(logging.DEBUG)
    return True


async def serve_frontend(settings: Settings, *, number: int | None = None, parent: int | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code.

    Without a ``number`` the process listens before Redis is reachable; requests get 503 until it is. With a ``number``
    it is one of several processes on the port. It then listens only after it has connected to Redis, and the other
    processes get the requests until then. ``parent`` is the pipe to the process that started it (see ``StopPipe``).

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
            shared = number is not None
            if shared:
                await _wait_connected(context.link.wait_ready(settings.broker_wait_s), stop)
            else:
                with contextlib.suppress(BrokerUnavailable):
                    await context.link.wait_ready(CONNECT_FIRST_S)
            connect = connection_factory(manager)
            server = listening.enter_context(contextlib.closing(await _listen(connect, settings, shared=shared)))
            if not shared:
                await _wait_connected(context.link.wait_ready(settings.broker_wait_s), stop)
            if not stop.is_set():
                log.info("serving on %s", server_url(settings.host, server))
            await stop.wait()
            await _stop_listening(server, connect)
            await asyncio.sleep(LAST_REQUESTS_S)
            context.draining = True
            log.info("draining: %d open runs", len(context.watcher))
            if not await context.watcher.wait_empty(settings.drain_timeout_s):
                log.warning(
                    "disconnecting the clients of %d runs that did not end within %g s",
                    len(context.watcher),
                    settings.drain_timeout_s,
                )
    finally:
        await runner.cleanup()
    return 0


async def _listen(connect: ConnectionFactory, settings: Settings, *, shared: bool) -> asyncio.Server:
    """Listen and accept connections until the server is closed; raises StartupError if the port cannot be used."""
    try:
        return await asyncio.get_running_loop().create_server(
            connect, settings.host, settings.port, backlog=BACKLOG, reuse_port=shared or None
        )
    except OSError as exc:
        message = explain_listen_error(exc, settings.host, settings.port, env_name("port"))
        raise StartupError(message) from exc


async def _stop_listening(server: asyncio.Server, connect: ConnectionFactory) -> None:
    """Refuse new connections, and serve every connection that the kernel has already accepted.

    When a listening socket is closed, the kernel resets the connections in its accept queue. Their clients may have
    sent a request, so a proxy must not retry it. Therefore this function duplicates the listening sockets, closes the
    server, and then empties the accept queues through the duplicates, which it closes microseconds later. A connection
    that cannot be served (its client has left, no file descriptor is free) is logged and dropped: the open streams must
    still drain.
    """
    listeners = [socket.socket(fileno=os.dup(listener.fileno())) for listener in server.sockets]
    server.close()
    accepted: list[socket.socket] = []
    for listener in listeners:
        with listener:
            listener.settimeout(0)
            accepted += _accept_all(listener)
    for connection in accepted:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(connect, connection)
        except OSError as exc:
            log.warning("dropped a connection that was accepted during the stop: %s", exc)
            connection.close()


def _accept_all(listener: socket.socket) -> Iterator[socket.socket]:
    while True:
        try:
            yield listener.accept()[0]
        except BlockingIOError:
            return
        except ConnectionAbortedError:
            continue  # this client has left; other clients may follow in the queue
        except OSError as exc:
            log.warning("dropped the connections that waited to be accepted during the stop: %s", exc)
            return


async def _wait_connected(connecting: object, stop: asyncio.Event) -> None:
    """Return when ``connecting`` is done or ``stop`` is set; raises any error of ``connecting``."""
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
    """Return the URL of a server, with its real port if the port setting is 0."""
    port = server.sockets[0].getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
