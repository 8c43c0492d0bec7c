"""The HTTP surface; handlers are thin."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from service.errors import InvalidRequest, NotFound
from service.frontend.context import CONTEXT, Context
from service.frontend.dispatch import QueueState
from service.frontend.negotiate import stream_options
from service.frontend.openapi import show_openapi
from service.frontend.parsing import idempotency_key, read_request
from service.frontend.sessions import (
    Admission,
    Past,
    Source,
    answering,
    attach,
    cancel_bound_s,
    complete_run,
    fold_run,
    new_job,
    refuse_if_draining,
    require_broker,
    start_run,
    stream_run,
)
from service.frontend.views import CHAT, TEXT, View
from service.protocol.completions import CompletionRequest
from service.protocol.events import Cursor
from service.protocol.jobs import RUN_ID, Job
from service.protocol.openai import ChatCompletionRequest
from service.store.runs import RunInfo
from service.stream import StreamOptions

HEALTH_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Order:
    """What a request comes to: which run, and how to answer with it. ``stays``: it outlives its client."""

    run: Admission | RunInfo
    view: View
    options: StreamOptions
    stream: bool
    background: bool
    stays: bool


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions: enqueue a run; stream it, or wait for it."""
    return await _create(request, _take_chat)


async def create_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions: the same for a prompt; agent events are sent only if asked for."""
    return await _create(request, _take_prompt)


async def _create(
    request: web.Request, take: Callable[[web.Request, Context, str], Awaitable[_Order]]
) -> web.StreamResponse:
    """Answer with a new run, or the one that the request's idempotency key stands for.

    What was sent is let go with the end of ``take``: a stream may be open for long.
    """
    context = request.app[CONTEXT]
    owner = context.authenticator.owner(request)
    refuse_if_draining(context)
    order = await take(request, context, owner)
    run, view = order.run, order.view
    at_once = order.background and not order.stream
    if isinstance(run, RunInfo):
        if at_once:
            return await fold_run(context, run, view)  # as the first
        source: Source = Past(context, run)
    else:
        if at_once:
            return await start_run(run, view)
        source = run
    gone = not order.stays and source is run  # whose own client is waiting
    if order.stream:
        return await stream_run(request, context, source, view, order.options, cancel_when_gone=gone)
    return await complete_run(context, source, view, cancel_when_gone=gone)


async def _take_chat(request: web.Request, context: Context, owner: str) -> _Order:
    chat = await read_request(request, context.settings, ChatCompletionRequest)
    options = stream_options(request, include_usage=chat.include_usage)
    return await _order(request, chat, owner, options, CHAT)


async def _take_prompt(request: web.Request, context: Context, owner: str) -> _Order:
    asked = await read_request(request, context.settings, CompletionRequest)
    options = stream_options(request, include_usage=asked.include_usage, unasked="off")
    return await _order(request, asked.as_chat(), owner, options, TEXT)


async def _order(
    request: web.Request, chat: ChatCompletionRequest, owner: str, options: StreamOptions, view: View
) -> _Order:
    context = request.app[CONTEXT]
    job = new_job(context, chat, owner)
    key = idempotency_key(request)
    earlier: RunInfo | Job = job
    if key is not None:
        require_broker(context)
        async with answering():
            earlier = await attach(context, owner, key, chat, job)
    return _Order(
        earlier if isinstance(earlier, RunInfo) else Admission(context, earlier),
        view,
        options,
        stream=bool(chat.stream),
        background=bool(chat.background),
        stays=bool(chat.background) or key is not None,
    )


async def retrieve_chat_completion(request: web.Request) -> web.StreamResponse:
    """GET /v1/chat/completions/{id}: the run as far as it is; with ?stream=true its stream, from a cursor on."""
    context = request.app[CONTEXT]
    info = await _own_run(request)
    if request.query.get("stream", "false").lower() not in {"true", "1"}:
        return await fold_run(context, info, CHAT)
    refuse_if_draining(context)
    options = stream_options(request, include_usage=info.include_usage)
    past = Past(context, info, _cursor(request))
    return await stream_run(request, context, past, CHAT, options, cancel_when_gone=False)


async def cancel_chat_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions/{id}/cancel: end the run, and answer when it has really ended."""
    context = request.app[CONTEXT]
    info = await _own_run(request)
    async with answering():
        await context.runs.cancel(info.run_id, ttl_s=context.settings.run_ttl_s)
    return await fold_run(context, info, CHAT, until_ended_s=cancel_bound_s(context.settings.lease_s))


async def _own_run(request: web.Request) -> RunInfo:
    """Return the run named in the path; NotFound if there is none, or it was created with another key."""
    context = request.app[CONTEXT]
    owner = context.authenticator.owner(request)
    run_id = request.match_info["run_id"]
    require_broker(context)
    if RUN_ID.fullmatch(run_id) is not None:
        async with answering():
            info = await context.runs.describe(run_id)
        if info is not None and hmac.compare_digest(info.owner, owner):
            return info
    message = f"no such run: {run_id[:60]!r}; runs are kept for a while after their end and for their creator only"
    raise NotFound(message, param="id")


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
    context.observe()
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            states = await context.submitter.states()
    except TimeoutError:
        states = dict.fromkeys(context.submitter.queues, QueueState(workers=-1, queued=-1))
    for queue, state in states.items():
        metrics.workers.labels(queue).set(state.workers)
        metrics.queued.labels(queue).set(state.queued)
    return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


ROUTES: Final = [
    web.post("/v1/chat/completions", create_chat_completion),
    web.post("/v1/completions", create_completion),
    web.get("/v1/chat/completions/{run_id}", retrieve_chat_completion),
    web.post("/v1/chat/completions/{run_id}/cancel", cancel_chat_completion),
    web.get("/v1/models", list_models),
    web.get("/v1/models/{model}", retrieve_model),
    web.get("/openapi.json", show_openapi),
    web.get("/health/live", live),
    web.get("/health/ready", ready),
    web.get("/metrics", show_metrics),
]
