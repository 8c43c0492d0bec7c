"""The HTTP surface; handlers are thin."""

import asyncio
from collections.abc import Awaitable
from typing import Any, Final

from aiohttp import web

from agentstream.errors import InvalidRequest, NotFound
from agentstream.frontend.api.admission import Order, answer_with, own_run, place_order
from agentstream.frontend.api.negotiation import stream_options
from agentstream.frontend.api.openapi import show_openapi
from agentstream.frontend.api.parsing import read_request
from agentstream.frontend.api.responses import cancel_response, create_response, retrieve_response
from agentstream.frontend.context import CONTEXT, Context
from agentstream.frontend.runs.dispatch import QueueState
from agentstream.frontend.runs.sessions import (
    Past,
    answering,
    cancel_run,
    fold_run,
    refuse_if_draining,
    require_broker,
    stream_run,
)
from agentstream.protocol.completions import CompletionRequest
from agentstream.protocol.events import Cursor
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.stream.views import CHAT, TEXT
from agentstream.telemetry.metrics import CONTENT_TYPE

HEALTH_TIMEOUT_S: Final = 2.0


def create_chat_completion(request: web.Request) -> Awaitable[web.StreamResponse]:
    """POST /v1/chat/completions: enqueue a run; stream it, or wait for it.

    No coroutine of its own, which every open stream would hold.
    """
    return answer_with(request, _take_chat)


def create_completion(request: web.Request) -> Awaitable[web.StreamResponse]:
    """POST /v1/completions: the same for a prompt; agent events are sent only if asked for."""
    return answer_with(request, _take_prompt)


async def _take_chat(request: web.Request, context: Context, owner: str) -> Order:
    chat = await read_request(request, context.settings, ChatCompletionRequest)
    options = stream_options(request, include_usage=chat.include_usage)
    return await place_order(request, chat, owner, options, CHAT)


async def _take_prompt(request: web.Request, context: Context, owner: str) -> Order:
    asked = await read_request(request, context.settings, CompletionRequest)
    options = stream_options(request, include_usage=asked.include_usage, unasked="off")
    return await place_order(request, asked.as_chat(), owner, options, TEXT)


async def retrieve_chat_completion(request: web.Request) -> web.StreamResponse:
    """GET /v1/chat/completions/{id}: the run as far as it is; with ?stream=true its stream, from a cursor on."""
    context = request.app[CONTEXT]
    info = await own_run(context, request, request.match_info["run_id"])
    if request.query.get("stream", "false").lower() not in {"true", "1"}:
        return await fold_run(context, info, CHAT)
    refuse_if_draining(context)
    options = stream_options(request, include_usage=info.include_usage)
    past = Past(context, info, _cursor(request))
    return await stream_run(request, context, past, CHAT, options, cancel_when_gone=False)


async def cancel_chat_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions/{id}/cancel: end the run, and answer when it has really ended."""
    context = request.app[CONTEXT]
    info = await own_run(context, request, request.match_info["run_id"])
    return await cancel_run(context, info, CHAT)


def _cursor(request: web.Request) -> Cursor | None:
    """Return the position after which to resume: query ``starting_after``, or header Last-Event-ID."""
    text = request.query.get("starting_after") or request.headers.get("Last-Event-ID")
    if not text:
        return None
    try:
        return Cursor.parse(text)
    except ValueError as exc:
        raise InvalidRequest(str(exc), param="starting_after") from exc


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: those that have a live worker."""
    names = await _available_models(request)
    return web.json_response({"object": "list", "data": [_model(name) for name in names]})


async def retrieve_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}: one of them."""
    name = request.match_info["model"]
    if name not in await _available_models(request):
        queue = request.app[CONTEXT].submitter.queue_of(name)
        message = f"the model {name[:80]!r} cannot be had now: its queue {queue!r} has no live worker"
        raise NotFound(message, code="model_not_found", param="model")
    return web.json_response(_model(name))


async def _available_models(request: web.Request) -> list[str]:
    context = request.app[CONTEXT]
    context.authenticator.owner(request)
    require_broker(context)
    async with answering():
        return await context.submitter.available()


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "agentstream"}


async def live(_request: web.Request) -> web.Response:
    """GET /health/live: the process answers."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """GET /health/ready: 200 if requests can be taken; says if they would wait for a worker."""
    context = request.app[CONTEXT]
    if context.draining:
        return web.json_response({"status": "draining"}, status=503)
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            await context.link.call("PING")
            queues = await context.submitter.states()
    except TimeoutError:
        return web.json_response({"status": "unavailable", "redis": "does not answer"}, status=503)
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
            states = await context.submitter.states()
    except TimeoutError:
        unknown = QueueState(workers=-1, queued=-1, waiting=-1, oldest_s=-1)
        states = dict.fromkeys(context.submitter.queues, unknown)
    for queue, state in states.items():
        metrics.queue_is(queue, state)
    context.observe()
    return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})


ROUTES: Final = [
    web.post("/v1/chat/completions", create_chat_completion),
    web.post("/v1/completions", create_completion),
    web.get("/v1/chat/completions/{run_id}", retrieve_chat_completion),
    web.post("/v1/chat/completions/{run_id}/cancel", cancel_chat_completion),
    web.post("/v1/responses", create_response),
    web.get("/v1/responses/{response_id}", retrieve_response),
    web.post("/v1/responses/{response_id}/cancel", cancel_response),
    web.get("/v1/models", list_models),
    web.get("/v1/models/{model}", retrieve_model),
    web.get("/openapi.json", show_openapi),
    web.get("/health/live", live),
    web.get("/health/ready", ready),
    web.get("/metrics", show_metrics),
]
