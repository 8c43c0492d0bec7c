"""The routes of the chat completions API."""

from collections.abc import Awaitable
from typing import Any, Final

from aiohttp import web

from agentstream.errors import InvalidRequest
from agentstream.frontend.api.admission import AdmittedRun, admit, find_owned_run, respond_with_run
from agentstream.frontend.api.negotiation import stream_options
from agentstream.frontend.api.parsing import read_request
from agentstream.frontend.context import CONTEXT, Context
from agentstream.frontend.runs.answering import answer_run
from agentstream.frontend.runs.attaching import ExistingRun, last_event
from agentstream.frontend.runs.cancelling import cancel_run
from agentstream.frontend.runs.collecting import wait_for_run
from agentstream.frontend.runs.guards import refuse_over_limit
from agentstream.frontend.runs.inputs import send_input
from agentstream.frontend.runs.reading import snapshot_run
from agentstream.frontend.runs.streaming import stream_run
from agentstream.protocol.answers import InputRequest, ResumeRequest
from agentstream.protocol.events import Cursor
from agentstream.protocol.older_forms import in_current_form
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.stream.views import CHAT_VIEW, OLDER_CHAT_VIEW, View

# Kept with a run whose client sent ``functions``. Its conversation is not kept for ``previous_response_id``.
_OLDER_CALLS: Final = {"store": False, "older_calls": True}


def create_chat_completion(request: web.Request) -> Awaitable[web.StreamResponse]:
    """POST /v1/chat/completions: enqueue a run; stream it, wait for its end, or leave it to the background.

    This is not a coroutine function, because each open stream would keep the coroutine in memory.
    """
    return respond_with_run(request, _admit_chat_completion)


async def _admit_chat_completion(request: web.Request, context: Context, owner: str) -> AdmittedRun:
    sent = await read_request(request, context.settings, ChatCompletionRequest)
    chat = in_current_form(sent)
    options = stream_options(request, include_usage=chat.include_usage)
    kept = _OLDER_CALLS if sent.functions else None
    return await admit(request, chat, owner, options, _view_of(kept), response=kept)


async def retrieve_chat_completion(request: web.Request) -> web.StreamResponse:
    """GET /v1/chat/completions/{id}: the run's current state; with ?stream=true its stream, after a cursor if given."""
    context = request.app[CONTEXT]
    info = await find_owned_run(context, request, request.match_info["run_id"], to_answer=True)
    if request.query.get("stream", "false").lower() not in {"true", "1"}:
        return await snapshot_run(context, info, _view_of(info.response))
    refuse_over_limit(request)
    options = stream_options(request, include_usage=info.include_usage)
    existing_run = ExistingRun(context, info, _cursor(request))
    view = _view_of(info.response)
    return await stream_run(request, context, existing_run, view, options, cancel_on_disconnect=False)


async def cancel_chat_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions/{id}/cancel: cancel the run, and answer after it has ended."""
    context = request.app[CONTEXT]
    info = await find_owned_run(context, request, request.match_info["run_id"])
    return await cancel_run(context, info, _view_of(info.response))


async def resume_chat_completion(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions/{id}/resume: answer interrupts; stream the rest of the run, or wait for it."""
    context = request.app[CONTEXT]
    info = await find_owned_run(context, request, request.match_info["run_id"], to_answer=True)
    body = await read_request(request, context.settings, ResumeRequest)
    options = stream_options(request, include_usage=info.include_usage)
    view = _view_of(info.response)
    asked_at = await last_event(context, info)
    resumes = info.resumes
    info, repeated = await answer_run(context, info, body.answers)
    if body.background:
        return await snapshot_run(context, info, view)
    # Repeated answers get the same rest as the first ones: from the place where the run went on.
    went_on = repeated or info.resumes > resumes
    run = ExistingRun(context, info, info.resumed_at if went_on and info.resumed_at else asked_at)
    if body.stream:
        refuse_over_limit(request)
        return await stream_run(request, context, run, view, options, cancel_on_disconnect=False)
    return await wait_for_run(context, run, view, cancel_on_disconnect=False)


async def send_chat_completion_input(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions/{id}/input: send messages to a run that is going on."""
    context = request.app[CONTEXT]
    info = await find_owned_run(context, request, request.match_info["run_id"])
    body = await read_request(request, context.settings, InputRequest)
    ids = await send_input(context, info, body.messages)
    return web.json_response({"id": info.run_id, "object": "chat.completion.input", "inputs": ids})


def _view_of(kept: dict[str, Any] | None) -> View:
    """Return the view of a run: the older form of calls if its client sent ``functions``."""
    return OLDER_CHAT_VIEW if kept and kept.get("older_calls") else CHAT_VIEW


def _cursor(request: web.Request) -> Cursor | None:
    """Return the cursor after which to resume: query ``starting_after``, else header Last-Event-ID."""
    text = request.query.get("starting_after") or request.headers.get("Last-Event-ID")
    if not text:
        return None
    try:
        return Cursor.parse(text)
    except ValueError as exc:
        raise InvalidRequest(str(exc), param="starting_after") from exc


ROUTES: Final = [
    web.post("/v1/chat/completions", create_chat_completion),
    web.get("/v1/chat/completions/{run_id}", retrieve_chat_completion),
    web.post("/v1/chat/completions/{run_id}/cancel", cancel_chat_completion),
    web.post("/v1/chat/completions/{run_id}/resume", resume_chat_completion),
    web.post("/v1/chat/completions/{run_id}/input", send_chat_completion_input),
]
