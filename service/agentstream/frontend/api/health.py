"""The routes for health checks and Prometheus."""

import asyncio
from typing import Any, Final

from aiohttp import web

from agentstream.errors import BusError
from agentstream.frontend.context import CONTEXT
from agentstream.telemetry.metrics import CONTENT_TYPE

HEALTH_TIMEOUT_S: Final = 2.0


async def live(_request: web.Request) -> web.Response:
    """GET /health/live: the process answers."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """GET /health/ready: 200 if the front end accepts requests, else 503.

    It accepts requests if Redis runs scripts and accepts writes; the answer has Redis' own words if it refuses.
    The status is "degraded" if a queue has no live worker: its requests are accepted and wait. It is so, too, if the
    state of a queue is unknown (-1), because a cluster has lost a primary: other requests are served.
    """
    context = request.app[CONTEXT]
    if context.leaving:
        return web.json_response({"status": "draining"}, status=503)
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            await context.link.prove_writable()
    except (TimeoutError, BusError) as exc:
        reason = str(exc) or context.link.refusal or "does not answer"
        return web.json_response({"status": "unavailable", "redis": reason}, status=503)
    queues = await context.model_router.states(HEALTH_TIMEOUT_S)
    body: dict[str, Any] = {
        "status": "ok",
        "redis": "ok",
        "workers": min(state.workers for state in queues.values()),
        "queues": {queue: {"workers": state.workers, "queued": state.queued} for queue, state in queues.items()},
    }
    if idle := [queue for queue, state in queues.items() if state.workers == 0]:
        detail = f"no worker is alive for {', '.join(idle)}; requests wait in the queue"
        body |= {"status": "degraded", "detail": detail}
    if unknown := [queue for queue, state in queues.items() if state.workers < 0 or state.queued < 0]:
        detail = f"Redis does not return the state of {', '.join(unknown)}; requests that need a lost server wait"
        body |= {"status": "degraded", "detail": detail}
    return web.json_response(body)


async def show_metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text format."""
    context = request.app[CONTEXT]
    metrics = context.metrics
    for queue, state in (await context.model_router.states(HEALTH_TIMEOUT_S)).items():
        metrics.set_queue_state(queue, state)
    context.observe()
    return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})


ROUTES: Final = [
    web.get("/health/live", live),
    web.get("/health/ready", ready),
    web.get("/metrics", show_metrics),
]
