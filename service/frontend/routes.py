"""The HTTP surface; handlers are thin."""

import asyncio
import time
from typing import Any, Final

from aiohttp import web

from service.errors import BrokerUnavailable, Draining, NotFound
from service.frontend.context import CONTEXT, Context
from service.frontend.middleware import BROKER_RETRY_AFTER_S
from service.frontend.negotiate import stream_options
from service.frontend.parsing import read_chat_request
from service.frontend.rawwriter import ClientGone, RawWriter
from service.frontend.streaming import Collector, StreamPump
from service.frontend.watch import Deadlines
from service.protocol.jobs import Job, new_run_id, open_ttl_s
from service.protocol.openai import ChatCompletionRequest, completion_body
from service.store.feed import RunFeed
from service.stream import ChunkStream, StreamHead

# Subscribing and enqueueing take about 1 ms; a broker that needs this long is as good as down.
ADMISSION_TIMEOUT_S: Final = 5.0
HEALTH_TIMEOUT_S: Final = 2.0
STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions: enqueue a run; stream it, or wait for it."""
    context = request.app[CONTEXT]
    owner = context.authenticator.owner(request)
    if context.draining:
        message = "this front end is shutting down; try again"
        raise Draining(message, retry_after_s=1)
    chat = await read_chat_request(request, max_messages=context.settings.max_messages)
    now = time.time()
    job = Job(
        run_id=new_run_id(),
        request=chat.model_dump(mode="json", exclude_unset=True),
        created=int(now),
        start_by=now + context.settings.queue_timeout_s,
        owner=owner,
    )
    if chat.stream:
        return await _stream(request, context, job, chat)
    return await _complete(context, job, chat)


async def _stream(request: web.Request, context: Context, job: Job, chat: ChatCompletionRequest) -> web.StreamResponse:
    head = StreamHead(run_id=job.run_id, created=job.created, model=chat.model)
    response = web.StreamResponse(headers=STREAM_HEADERS | _extra_headers(request))
    writer = RawWriter(request, response, write_timeout_s=context.settings.write_timeout_s)
    pump = StreamPump(
        ChunkStream(head, stream_options(request, chat)),
        writer,
        replay_word_delay_ms=context.settings.replay_word_delay_ms,
    )
    feed = context.bus.feed(job.run_id, pump.on_events, pump.on_failure)
    pump.attach(feed, _deadlines(context, feed))
    try:
        await _admit(context, feed, job)
        context.watcher.add(pump)
        await pump.run()
    except ClientGone:
        writer.abort()
    except BaseException:
        if response.prepared:
            writer.abort()  # never a clean end without the final chunk
        raise
    finally:
        _leave(context, pump, feed)
    return response


async def _complete(context: Context, job: Job, chat: ChatCompletionRequest) -> web.Response:
    collector = Collector()
    feed = context.bus.feed(job.run_id, collector.on_events, collector.on_failure)
    collector.attach(_deadlines(context, feed))
    try:
        await _admit(context, feed, job)
        context.watcher.add(collector)
        content, finish = await collector.result()
    finally:
        _leave(context, collector, feed)
    return web.json_response(
        completion_body(
            run_id=job.run_id,
            created=job.created,
            model=chat.model,
            content=content,
            finish_reason=finish.reason,
            usage=finish.usage,
        ),
    )


async def _admit(context: Context, feed: RunFeed, job: Job) -> None:
    """Subscribe, then enqueue: nothing can be missed. Raises BrokerUnavailable or QueueFull."""
    settings = context.settings
    if not context.link.connected:
        message = "Redis cannot be reached; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S)
    try:
        async with asyncio.timeout(ADMISSION_TIMEOUT_S):
            await feed.open()
            await context.submitter.submit(job, ttl_s=open_ttl_s(settings.queue_timeout_s, settings.run_timeout_s))
    except TimeoutError as exc:
        message = f"Redis did not answer within {ADMISSION_TIMEOUT_S:g} s; try again"
        raise BrokerUnavailable(message, retry_after_s=BROKER_RETRY_AFTER_S) from exc


def _deadlines(context: Context, feed: RunFeed) -> Deadlines:
    settings = context.settings
    return Deadlines(
        feed,
        asyncio.get_running_loop().time(),
        queue_timeout_s=settings.queue_timeout_s,
        run_timeout_s=settings.run_timeout_s,
    )


def _leave(context: Context, run: StreamPump | Collector, feed: RunFeed) -> None:
    feed.close()
    context.watcher.remove(run)
    context.metrics.catch_ups.inc(feed.catch_ups)


def _extra_headers(request: web.Request) -> dict[str, str]:
    cors_headers: dict[str, str] = request.get("cors_headers", {})
    return {"X-Request-Id": request["request_id"], **cors_headers}


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: the configured names."""
    context = request.app[CONTEXT]
    context.authenticator.owner(request)
    return web.json_response({"object": "list", "data": [_model(name) for name in context.settings.models]})


async def retrieve_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}: one of them."""
    context = request.app[CONTEXT]
    context.authenticator.owner(request)
    name = request.match_info["model"]
    if name not in context.settings.models:
        message = f"no such model: {name[:80]!r}"
        raise NotFound(message, code="model_not_found", param="model")
    return web.json_response(_model(name))


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
            workers = await context.submitter.workers_alive()
    except TimeoutError:
        return web.json_response({"status": "unavailable", "redis": "does not answer"}, status=503)
    body: dict[str, Any] = {"status": "ok", "redis": "ok", "workers": workers}
    if workers == 0:
        body |= {"status": "degraded", "detail": "no worker is alive; requests wait in the queue"}
    return web.json_response(body)


async def show_metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text format."""
    context = request.app[CONTEXT]
    metrics = context.metrics
    metrics.open_runs.set(len(context.watcher))
    metrics.reconnects.set(context.link.reconnects)
    try:
        async with asyncio.timeout(HEALTH_TIMEOUT_S):
            workers, queued = await context.submitter.workers_alive(), await context.submitter.outstanding()
    except TimeoutError:
        workers = queued = -1
    metrics.workers.set(workers)
    metrics.queued.set(queued)
    return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


ROUTES: Final = [
    web.post("/v1/chat/completions", create_chat_completion),
    web.get("/v1/models", list_models),
    web.get("/v1/models/{model}", retrieve_model),
    web.get("/health/live", live),
    web.get("/health/ready", ready),
    web.get("/metrics", show_metrics),
]
