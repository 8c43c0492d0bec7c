"""Finds or creates the run of a validated request and answers with it. The routes of all APIs use this."""

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from agentstream.errors import NotFound
from agentstream.frontend.api.caller_headers import answer_keys, caller_headers
from agentstream.frontend.api.parsing import idempotency_key
from agentstream.frontend.context import CONTEXT, Context
from agentstream.frontend.runs.attaching import ExistingRun, resolve_idempotency_key
from agentstream.frontend.runs.collecting import start_run, wait_for_run
from agentstream.frontend.runs.guards import BrokerTimeout, refuse_over_limit, require_broker
from agentstream.frontend.runs.new_run import NewRun, new_job
from agentstream.frontend.runs.reading import snapshot_run
from agentstream.frontend.runs.source import RunSource
from agentstream.frontend.runs.streaming import stream_run
from agentstream.frontend.spans import set_run_attributes
from agentstream.protocol.jobs import RUN_ID, Job
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.store.runs import RunInfo
from agentstream.stream.chat import StreamOptions
from agentstream.stream.views import View
from agentstream.telemetry.log_context import bind


@dataclass(frozen=True, slots=True)
class AdmittedRun:
    """The run of a request, and how to answer with it. ``outlives_client``: the run continues if the client leaves.

    ``run`` is a ``RunInfo`` if the run exists already.
    """

    run: NewRun | RunInfo
    view: View
    options: StreamOptions
    stream: bool
    background: bool
    outlives_client: bool


async def respond_with_run(
    request: web.Request, admit_request: Callable[[web.Request, Context, str], Awaitable[AdmittedRun]]
) -> web.StreamResponse:
    """Answer with a new run, or with the run that the request's idempotency key stands for.

    Only ``admit_request`` reads the request body, so the body is released before a stream begins. A stream may stay
    open for hours.
    """
    context = request.app[CONTEXT]
    owner = context.authenticator.authenticate(request)
    refuse_over_limit(request)
    admitted = await admit_request(request, context, owner)
    run, view, options, stream, outlives_client = (
        admitted.run,
        admitted.view,
        admitted.options,
        admitted.stream,
        admitted.outlives_client,
    )
    answer_at_once = admitted.background and not stream
    del admitted  # saves memory in each open stream
    if isinstance(run, RunInfo):
        if answer_at_once:
            return await snapshot_run(context, run, view)
        source: RunSource = ExistingRun(context, run)
    else:
        if answer_at_once:
            return await start_run(run, view)
        source = run
    cancel_on_disconnect = not outlives_client and source is run  # a client that joined an existing run never cancels
    if stream:
        return await stream_run(request, context, source, view, options, cancel_on_disconnect=cancel_on_disconnect)
    return await wait_for_run(context, source, view, cancel_on_disconnect=cancel_on_disconnect)


async def admit(  # noqa: PLR0913 -- the parsed request, and how to answer it
    request: web.Request,
    chat: ChatCompletionRequest,
    owner: str,
    options: StreamOptions,
    view: View,
    *,
    response: dict[str, Any] | None = None,
) -> AdmittedRun:
    """Return a new run, or the run that the request's idempotency key stands for. Nothing is enqueued yet.

    Raises NotFound if no agent serves the model, InvalidRequest or Conflict for a wrong idempotency key, and
    BrokerUnavailable.
    """
    context = request.app[CONTEXT]
    headers = caller_headers(request, context.settings.caller_headers)
    job = new_job(context, chat, owner, response, headers=headers, answer_keys=answer_keys(request))
    key = idempotency_key(request)
    earlier: RunInfo | Job = job
    if key is not None:
        require_broker(context)
        async with BrokerTimeout(context):
            earlier = await resolve_idempotency_key(context, owner, key, chat, job)
    bind(run_id=earlier.run_id)
    return AdmittedRun(
        earlier if isinstance(earlier, RunInfo) else NewRun(context, earlier, repeatable=key is not None),
        view,
        options,
        stream=bool(chat.stream),
        background=bool(chat.background),
        outlives_client=bool(chat.background) or key is not None,
    )


async def find_owned_run(
    context: Context, request: web.Request, public_id: str, run_id: str | None = None, *, to_answer: bool = False
) -> RunInfo:
    """Return the run with this id; raises NotFound if it does not exist or belongs to another owner.

    ``public_id`` is the id as the client sent it. ``run_id`` is the run's own id, if it differs from ``public_id``.
    With ``to_answer`` the API keys that may answer the interrupts of the run find it, too.
    Also raises Unauthenticated and BrokerUnavailable.
    """
    owner = context.authenticator.authenticate(request)
    require_broker(context)
    run_id = run_id or public_id
    if RUN_ID.fullmatch(run_id) is not None:
        async with BrokerTimeout(context):
            info = await context.runs.get_info(run_id)
        if info is not None and _may_use(info, owner, to_answer=to_answer):
            bind(run_id=run_id)
            set_run_attributes(info)
            return info
    message = (
        f"no such run: {public_id[:60]!r}; a run is kept for a limited time after its end, and only the API key that "
        "created it, and the keys that may answer it, can read it"
    )
    raise NotFound(message, param="id")


def _may_use(info: RunInfo, owner: str, *, to_answer: bool) -> bool:
    """Return whether a run belongs to ``owner`` or, with ``to_answer``, lets it answer. Takes the same time for all."""
    allowed = (info.owner, *info.answer_keys) if to_answer else (info.owner,)
    matches = [hmac.compare_digest(known, owner) for known in allowed]
    return any(matches)
