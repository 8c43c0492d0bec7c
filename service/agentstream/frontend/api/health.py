"""The routes for health checks and Prometheus."""

import asyncio
from typing import Any, Final

from aiohttp import web

from agentstream.errors import BusError
from agentstream.frontend.context import CONTEXT
from agentstream.frontend.runs.model_router import QueueState
from agentstream.telemetry.metrics import CONTENT_TYPE

HEALTH_TIMEOUT_S: Final = 2.0


async def live(_request: web.Request) -> web.Response:
    """GET /health/live: the process answers."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """GET /health/ready: 200 if the front end accepts requests, else 503.

    It accepts requests if Redis runs scripts and accepts writes; the answer has Redis' own words if it refuses.
    The status is "degraded" if a queue has no live worker: its requests are accepted and wait.
    """
    context = request.app[CONTEXT]
    if context.leaving:
        return web.json_response({"status": "draining"}, status=503)
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            await context.link.prove_writable()
            queues = await context.model_router.states()
    except (TimeoutError, BusError) as exc:
        reason = str(exc) or context.link.refusal or "does not answer"
        return web.json_response({"status": "unavailable", "redis": reason}, status=503)
    body: dict[str, Any] = {
        "status": "ok",
        "redis": "ok",
        "workers": min(state.workers for state in queues.values()),
        "queues": {queue: {"workers": state.workers, "queued": state.queued} for queue, state in queues.items()},
    }
    if idle := [queue for queue, state in queues.items() if state.workers == 0]:
        detail = f"no worker is alive for {', '.join(idle)}; requests wait in the queue"
        body |= {"status": "degraded", "detail": detail}
    return web.json_response(body)


async def show_metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text format."""
    context = request.app[CONTEXT]
    metrics = context.metrics
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            states = await context.model_router.states()
    except (TimeoutError, BusError):
        unknown = QueueState(workers=-1, queued=-1, waiting=-1, oldest_s=-1, parked=-1)
        states = dict.fromkeys(context.model_router.queues, unknown)
    for queue, state in states.items():
        metrics.set_queue_state(queue, state)
    context.observe()
    return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})


ROUTES: Final = [
    web.get("/health/live", live),
    web.get("/health/ready", ready),
    web.get("/metrics", show_metrics),
]
