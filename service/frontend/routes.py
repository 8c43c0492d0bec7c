"""The HTTP surface; handlers are thin."""

import asyncio
import hmac
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from service.errors import InvalidRequest, NotFound
from service.frontend.context import CONTEXT, Context
from service.frontend.dispatch import QueueState
from service.frontend.negotiate import stream_options
from service.frontend.openapi import show_openapi
from service.frontend.parsing import idempotency_key, read_chat_request
from service.frontend.sessions import (
    Admission,
    Past,
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
from service.protocol.events import Cursor
from service.protocol.jobs import RUN_ID, Job
from service.store.runs import RunInfo
from service.stream import StreamOptions

HEALTH_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class _Order:
    """What a request comes to: which run, and how to answer with it. ``stays``: it outlives its client."""

    run: Admission | RunInfo
    options: StreamOptions
    stream: bool
    background: bool
    stays: bool


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions: enqueue a run; stream it, or wait for it."""
    context = request.app[CONTEXT]
    order = await _take_order(request, context)
    run = order.run
    if isinstance(run, RunInfo):
        if order.background and not order.stream:
            return await fold_run(context, run)  # as the first: at once
        return await _answer(request, context, run, order.options, stream=order.stream)
    if order.stream:
        return await stream_run(request, context, run, order.options, cancel_when_gone=not order.stays)
    if order.background:
        return await start_run(run)
    return await complete_run(context, run, cancel_when_gone=not order.stays)


async def _take_order(request: web.Request, context: Context) -> _Order:
    """Read a request. What was sent is let go with this function's end: a stream may be open for long."""
    owner = context.authenticator.owner(request)
    refuse_if_draining(context)
    chat = await read_chat_request(request, context.settings)
    options = stream_options(request, include_usage=chat.include_usage)
    job = new_job(context, chat, owner)
    key = idempotency_key(request)
    earlier: RunInfo | Job = job
    if key is not None:
        require_broker(context)
        async with answering():
            earlier = await attach(context, owner, key, chat, job)
    return _Order(
        earlier if isinstance(earlier, RunInfo) else Admission(context, earlier),
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
        return await fold_run(context, info)
    refuse_if_draining(context)
    options = stream_options(request, include_usage=info.include_usage)
    return await _answer(request, context, info, options, stream=True, after=_cursor(request))


async def cancel_chat_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions/{id}/cancel: end the run, and answer when it has really ended."""
    context = request.app[CONTEXT]
    info = await _own_run(request)
    async with answering():
        await context.runs.cancel(info.run_id, ttl_s=context.settings.run_ttl_s)
    return await fold_run(context, info, until_ended_s=cancel_bound_s(context.settings.lease_s))


async def _answer(  # noqa: PLR0913 -- the request, the run, and how to answer it
    request: web.Request,
    context: Context,
    info: RunInfo,
    options: StreamOptions,
    *,
    stream: bool,
    after: Cursor | None = None,
) -> web.StreamResponse:
    """Answer with a run that exists: from its log, then live."""
    past = Past(context, info, after)
    if stream:
        return await stream_run(request, context, past, options, cancel_when_gone=False)
    return await complete_run(context, past, cancel_when_gone=False)


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
    web.get("/v1/chat/completions/{run_id}", retrieve_chat_completion),
    web.post("/v1/chat/completions/{run_id}/cancel", cancel_chat_completion),
    web.get("/v1/models", list_models),
    web.get("/v1/models/{model}", retrieve_model),
    web.get("/openapi.json", show_openapi),
    web.get("/health/live", live),
    web.get("/health/ready", ready),
    web.get("/metrics", show_metrics),
]
