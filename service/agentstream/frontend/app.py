"""Assembles the front end: ``create_app`` turns settings into an aiohttp application."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any

from aiohttp import web

from agentstream.config import Settings
from agentstream.errors import StartupError
from agentstream.frontend import middleware, spans
from agentstream.frontend.api import routes
from agentstream.frontend.auth import Authenticator
from agentstream.frontend.background import BackgroundTasks
from agentstream.frontend.connection import is_over_limit
from agentstream.frontend.connection_limit import ConnectionLimit
from agentstream.frontend.context import CONTEXT, Context
from agentstream.frontend.metrics import FrontendMetrics
from agentstream.frontend.page import routes as playground
from agentstream.frontend.runs.model_router import ModelRouter
from agentstream.frontend.runs.pump import FlushScheduler
from agentstream.frontend.runs.recovery import Recovery
from agentstream.frontend.runs.watcher import Watcher
from agentstream.protocol.keys import Keys
from agentstream.store.bus.bus import Bus
from agentstream.store.connection.endpoint import Endpoint
from agentstream.store.connection.link import Link
from agentstream.store.connection.new_link import new_link
from agentstream.store.inputs import InputStore
from agentstream.store.interrupts import InterruptStore
from agentstream.store.replicas import Replicas
from agentstream.store.runs import RunStore
from agentstream.telemetry import tracing
from agentstream.telemetry.masking import register_secrets
from agentstream.telemetry.metrics import observe_periodically

log = logging.getLogger(__name__)


def create_app(settings: Settings, *, keys: Keys | None = None, number: int | None = None) -> web.Application:
    """Return the application. It opens its link to Redis when it starts and closes it when it stops.

    ``number`` is the number of this process if several processes share a port and their metrics; None if it is alone.
    Raises StartupError if REDIS_URL is not set.
    """
    if settings.redis_url is None:
        message = "REDIS_URL is not set; set it, or run `agentstream up`, which starts its own Redis"
        raise StartupError(message)
    register_secrets(settings.secrets())
    keys = keys or Keys(settings.key_prefix)
    endpoint = Endpoint(settings.redis_url)
    link = new_link(endpoint, keys, name="agentstream-frontend")
    replicas = None
    if settings.admission_replicas:
        replicas = Replicas(new_link(endpoint, keys, name="agentstream-admissions"), settings.admission_replicas)
    background_tasks = BackgroundTasks()
    recovery = Recovery(background_tasks)
    link.on_reconnect[recovery.on_reconnect] = None
    middlewares = [middleware.cors(settings.cors_origins)] if settings.cors_origins else []
    app = web.Application(client_max_size=settings.max_body_bytes, middlewares=middlewares)
    app[CONTEXT] = Context(
        settings=settings,
        link=link,
        bus=Bus(link, keys),
        model_router=ModelRouter(
            link,
            keys,
            queue_of={route.model: route.queue for route in settings.routes},
            default_queue=settings.queue,
            default_models=settings.models,
            max_queued=settings.max_queued,
            replicas=replicas,
        ),
        authenticator=Authenticator(settings.api_keys),
        runs=RunStore(link, keys),
        interrupts=InterruptStore(link, keys),
        inputs=InputStore(link, keys),
        watcher=Watcher(),
        flush_scheduler=FlushScheduler(),
        background_tasks=background_tasks,
        recovery=recovery,
        metrics=FrontendMetrics(number),
        connections=ConnectionLimit(),
    )
    app[CONTEXT].metrics.observe_pings(link)
    app.on_response_prepare.append(_close_connection)
    app.cleanup_ctx.append(partial(_open_link, link))
    if replicas is not None:
        app.cleanup_ctx.append(partial(_open_link, replicas.link))
    app.cleanup_ctx.append(_watch_runs)
    app.cleanup_ctx.append(_finish_background_tasks)
    if number is not None:
        app.cleanup_ctx.append(_share_metrics)
    # The settings refuse an unprotected front end on an address that is not loopback.
    unprotected = not (settings.api_keys or settings.allow_open)
    for route in [*routes.ROUTES, *playground.routes(), web.route("*", r"/{path:[\s\S]*}", middleware.no_such_route)]:
        handler = middleware.openai_errors(route.handler, local_hosts_only=unprotected)
        if tracing.enabled() and route.path.startswith(spans.TRACED_PREFIX):
            handler = spans.traced(handler)
        web.RouteDef(route.method, route.path, handler, route.kwargs).register(app.router)
    return app


async def _open_link(link: Link, _app: web.Application) -> AsyncIterator[None]:
    link.open()
    yield
    await link.close()


async def _watch_runs(app: web.Application) -> AsyncIterator[None]:
    async with _lifetime_task(app[CONTEXT].watcher.sweep(), "watcher"):
        yield


async def _close_connection(request: web.Request, response: web.StreamResponse) -> None:
    """Close a connection after this answer if the front end stops, or has too many connections."""
    if request.app[CONTEXT].leaving or is_over_limit(request):
        response.force_close()
        response.headers["Connection"] = "close"  # this header is chosen before this function is called


async def _share_metrics(app: web.Application) -> AsyncIterator[None]:
    async with _lifetime_task(observe_periodically(app[CONTEXT].observe), "metrics"):
        yield


@contextlib.asynccontextmanager
async def _lifetime_task(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run ``work`` in a task for as long as the application runs. If the task fails, the process exits."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_exit_on_failure)
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _finish_background_tasks(app: web.Application) -> AsyncIterator[None]:
    yield
    await app[CONTEXT].background_tasks.finish()


def _exit_on_failure(task: asyncio.Task[None]) -> None:
    """Log the failure of a lifetime task and exit with code 1: without the watcher, streams have no deadlines."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the %s task failed, so the process exits: %r", task.get_name(), error)
        raise SystemExit(1)
