"""The front-end process: listens, waits for Redis, drains when told to stop."""

import asyncio
import logging
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from service.config import Settings
from service.errors import StartupError
from service.frontend.app import create_app
from service.frontend.context import CONTEXT
from service.process import stop_signals

log = logging.getLogger(__name__)

# After the drain, handlers that were cut get this long to notice.
CLOSE_TIMEOUT_S: Final = 1.0


def _calmly(record: logging.LogRecord) -> bool:
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
    app = create_app(settings, number=number)
    context = app[CONTEXT]
    logging.getLogger("aiohttp.server").addFilter(_calmly)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S)
    await runner.setup()
    try:
        with stop_signals() as stop:
            shared = number is not None
            site = web.TCPSite(runner, settings.host, settings.port, reuse_port=shared or None)
            connecting = context.link.wait_ready(settings.broker_wait_s)
            if shared:
                await _until_connected(connecting, stop)
                await _listen(site, settings)
            else:
                await _listen(site, settings)
                await _until_connected(connecting, stop)
            if not stop.is_set():
                log.info("serving on %s", address(settings.host, runner))
            await stop.wait()
            context.draining = True
            await site.stop()
            log.info("draining: %d open runs", len(context.watcher))
            if not await context.watcher.wait_empty(settings.drain_timeout_s):
                log.warning("cutting %d runs that did not end in %g s", len(context.watcher), settings.drain_timeout_s)
    finally:
        await runner.cleanup()
    return 0


async def _listen(site: web.TCPSite, settings: Settings) -> None:
    try:
        await site.start()
    except OSError as exc:
        message = f"cannot listen on {settings.host}:{settings.port} (AGENTSTREAM_PORT): {exc.strerror}"
        raise StartupError(message) from exc


async def _until_connected(connecting: object, stop: asyncio.Event) -> None:
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


def address(host: str, runner: web.AppRunner) -> str:
    """Return the URL the process really listens on; port 0 has become a free one."""
    port = runner.addresses[0][1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
