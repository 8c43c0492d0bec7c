"""From a validated request to a run, new or known, and the answer with it: what the routes of all APIs share."""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from agentstream.errors import NotFound
from agentstream.frontend.api.parsing import idempotency_key
from agentstream.frontend.context import CONTEXT, Context
from agentstream.frontend.runs.attaching import Past, attach
from agentstream.frontend.runs.collecting import complete_run, start_run
from agentstream.frontend.runs.guards import answering, refuse_if_draining, require_broker
from agentstream.frontend.runs.new_run import Admission, new_job
from agentstream.frontend.runs.reading import fold_run
from agentstream.frontend.runs.source import Source
from agentstream.frontend.runs.streaming import stream_run
from agentstream.frontend.spans import tell_run
from agentstream.protocol.jobs import RUN_ID, Job
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.store.runs import RunInfo
from agentstream.stream.chat import StreamOptions
from agentstream.stream.views import View
from agentstream.telemetry.log_context import bind


@dataclass(frozen=True, slots=True)
class Order:
    """What a request comes to: which run, and how to answer with it. ``stays``: it outlives its client."""

    run: Admission | RunInfo
    view: View
    options: StreamOptions
    stream: bool
    background: bool
    stays: bool


async def answer_with(
    request: web.Request, take: Callable[[web.Request, Context, str], Awaitable[Order]]
) -> web.StreamResponse:
    """Answer with a new run, or the one that the request's idempotency key stands for.

    What was sent is let go with the end of ``take``: a stream may be open for long.
    """
    context = request.app[CONTEXT]
    owner = context.authenticator.owner(request)
    refuse_if_draining(context)
    order = await take(request, context, owner)
    run, view, options, stream, stays = order.run, order.view, order.options, order.stream, order.stays
    at_once = order.background and not stream
    del order  # an open stream holds what it needs
    if isinstance(run, RunInfo):
        if at_once:
            return await fold_run(context, run, view)  # as the first
        source: Source = Past(context, run)
    else:
        if at_once:
            return await start_run(run, view)
        source = run
    gone = not stays and source is run  # whose own client is waiting
    if stream:
        return await stream_run(request, context, source, view, options, cancel_when_gone=gone)
    return await complete_run(context, source, view, cancel_when_gone=gone)


async def place_order(  # noqa: PLR0913 -- what was asked, and how to answer it
    request: web.Request,
    chat: ChatCompletionRequest,
    owner: str,
    options: StreamOptions,
    view: View,
    *,
    response: dict[str, Any] | None = None,
) -> Order:
    """Return the order of a new run, or of the one its idempotency key stands for."""
    context = request.app[CONTEXT]
    job = new_job(context, chat, owner, response)
    key = idempotency_key(request)
    earlier: RunInfo | Job = job
    if key is not None:
        require_broker(context)
        async with answering():
            earlier = await attach(context, owner, key, chat, job)
    bind(run_id=earlier.run_id)
    return Order(
        earlier if isinstance(earlier, RunInfo) else Admission(context, earlier),
        view,
        options,
        stream=bool(chat.stream),
        background=bool(chat.background),
        stays=bool(chat.background) or key is not None,
    )


async def own_run(context: Context, request: web.Request, shown_id: str, run_id: str | None = None) -> RunInfo:
    """Return the run that an id stands for; NotFound if there is none, or it was created with another key.

    ``shown_id`` is the id as it was sent, ``run_id`` the run's own if that is another.
    """
    owner = context.authenticator.owner(request)
    require_broker(context)
    run_id = run_id or shown_id
    if RUN_ID.fullmatch(run_id) is not None:
        async with answering():
            info = await context.runs.describe(run_id)
        if info is not None and hmac.compare_digest(info.owner, owner):
            bind(run_id=run_id)
            tell_run(info)
            return info
    message = f"no such run: {shown_id[:60]!r}; runs are kept for a while after their end and for their creator only"
    raise NotFound(message, param="id")
