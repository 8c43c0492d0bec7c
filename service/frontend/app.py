"""The front end's composition: settings in, an aiohttp application out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from aiohttp import web

from service.config import Settings
from service.errors import StartupError
from service.frontend import metrics, middleware, playground, routes
from service.frontend.auth import Authenticator
from service.frontend.context import CONTEXT, Context
from service.frontend.errands import Errands
from service.frontend.streaming import Outbox
from service.frontend.watch import Watcher
from service.protocol.keys import Keys
from service.store.bus import Bus
from service.store.endpoint import Endpoint
from service.store.link import Link
from service.store.queue import JobSubmitter
from service.store.runs import RunStore

log = logging.getLogger(__name__)


def create_app(settings: Settings, *, keys: Keys | None = None) -> web.Application:
    """Return the application; its link to Redis opens and closes with it. Raises StartupError without REDIS_URL."""
    if settings.redis_url is None:
        message = "REDIS_URL is not set: a front end of its own needs a Redis (`agentstream up` brings one)"
        raise StartupError(message)
    link = Link(Endpoint(settings.redis_url), name="agentstream-frontend")
    keys = keys or Keys()
    # Then it is a loopback address: the settings see to it.
    unprotected = not (settings.api_keys or settings.allow_open)
    middlewares = [middleware.openai_errors(local_hosts_only=unprotected)]
    if settings.cors_origins:
        middlewares.insert(0, middleware.cors(settings.cors_origins))
    app = web.Application(client_max_size=settings.max_body_bytes, middlewares=middlewares)
    app[CONTEXT] = Context(
        settings=settings,
        link=link,
        bus=Bus(link, keys),
        submitter=JobSubmitter(link, keys, settings.queue, max_queued=settings.max_queued),
        authenticator=Authenticator(settings.api_keys),
        runs=RunStore(link, keys),
        watcher=Watcher(),
        outbox=Outbox(),
        errands=Errands(),
        metrics=metrics.FrontendMetrics(),
    )
    app.cleanup_ctx.append(_open_link)
    app.cleanup_ctx.append(_watch_runs)
    app.cleanup_ctx.append(_finish_errands)
    app.add_routes(routes.ROUTES)
    app.add_routes(playground.routes())
    return app


async def _open_link(app: web.Application) -> AsyncIterator[None]:
    link = app[CONTEXT].link
    link.open()
    yield
    await link.close()


async def _watch_runs(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(app[CONTEXT].watcher.sweep(), name="watcher")
    task.add_done_callback(_die_loudly)
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _finish_errands(app: web.Application) -> AsyncIterator[None]:
    yield
    await app[CONTEXT].errands.finish()


def _die_loudly(task: asyncio.Task[None]) -> None:
    """Log a side task's death; without the watcher no stream would have a deadline any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the watcher died: %r", error)
        raise SystemExit(1)
