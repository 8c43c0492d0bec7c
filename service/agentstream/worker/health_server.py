"""The worker's small HTTP port: /metrics, /health/live and /health/ready. It is closed unless a port is set."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiohttp import web

from agentstream.errors import BusError, StartupError
from agentstream.processes.shared_port import explain_listen_error
from agentstream.store.connection.link import Link
from agentstream.telemetry.metrics import CONTENT_TYPE, observe_periodically

log = logging.getLogger(__name__)

PING_TIMEOUT_S: Final = 2.0
# Time for open requests to end when the worker stops. There are no streams here.
CLOSE_TIMEOUT_S: Final = 1.0


class HealthServer:
    """Serves metrics and health. Set ``taking_jobs`` when the worker takes jobs; ``stop`` is set when it drains."""

    def __init__(
        self, link: Link, stop: asyncio.Event, *, observe: Callable[[], None], render: Callable[[], bytes]
    ) -> None:
        """Bind the parts. ``observe`` updates the metrics that ``render`` returns."""
        self._link = link
        self._stop = stop
        self._observe = observe
        self._render = render
        self.taking_jobs = False

    @contextlib.asynccontextmanager
    async def serve(self, host: str, port: int, *, shared: bool) -> AsyncIterator[None]:
        """Listen while the block runs. With ``shared``, several processes listen on the port.

        Raises StartupError if the port is taken.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._show_metrics),
                web.get("/health/live", self._live),
                web.get("/health/ready", self._ready),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S)
        await runner.setup()
        observing = asyncio.create_task(observe_periodically(self._observe), name="metrics") if shared else None
        try:
            await _listen(web.TCPSite(runner, host, port, reuse_port=shared or None), host, port)
            yield
        finally:
            if observing is not None:
                observing.cancel()
            await runner.cleanup()

    async def _show_metrics(self, _request: web.Request) -> web.Response:
        """GET /metrics: Prometheus text format."""
        self._observe()
        return web.Response(body=self._render(), headers={"Content-Type": CONTENT_TYPE})

    async def _live(self, _request: web.Request) -> web.Response:
        """GET /health/live: 200. If no answer comes, an agent blocks the event loop."""
        return web.json_response({"status": "ok"})

    async def _ready(self, _request: web.Request) -> web.Response:
        """GET /health/ready: 200 while the worker takes jobs, even if all slots are taken, and Redis accepts writes."""
        if self._stop.is_set():
            return web.json_response({"status": "draining"}, status=503)
        if not self.taking_jobs:
            return web.json_response({"status": "starting"}, status=503)
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                await self._link.prove_writable()
        except (TimeoutError, BusError) as exc:
            reason = str(exc) or self._link.refusal or "does not answer"
            return web.json_response({"status": "unavailable", "redis": reason}, status=503)
        return web.json_response({"status": "ok", "redis": "ok"})


async def _listen(site: web.TCPSite, host: str, port: int) -> None:
    """Start to listen. Raises StartupError."""
    try:
        await site.start()
    except OSError as exc:
        raise StartupError(explain_listen_error(exc, host, port, "AGENTSTREAM_METRICS_PORT")) from exc
    log.info("metrics and health on %s", site.name)
