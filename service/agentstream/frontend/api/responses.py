"""The routes of the Responses API. Its runs are the same as those of chat completions."""

from collections.abc import Awaitable, Iterable
from typing import Any, Final

import orjson
from aiohttp import web
from pydantic import ValidationError

from agentstream.errors import Gone, InvalidRequest, NotFound, RunFailed
from agentstream.frontend.api.admission import AdmittedRun, admit, respond_with_run
from agentstream.frontend.api.approvals import admit_answers, find_response, not_found, segment_or_none, view_of
from agentstream.frontend.api.negotiation import stream_options
from agentstream.frontend.api.parsing import read_request, to_invalid_request
from agentstream.frontend.context import CONTEXT, Context
from agentstream.frontend.runs.attaching import ExistingRun
from agentstream.frontend.runs.cancelling import cancel_run
from agentstream.frontend.runs.guards import BrokerTimeout, refuse_over_limit
from agentstream.frontend.runs.reading import read_run, snapshot_run
from agentstream.frontend.runs.source import head_of
from agentstream.frontend.runs.streaming import stream_run
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.protocol.response_items import RESPONSE_ID, chat_messages
from agentstream.protocol.responses import SEQUENCE_NUMBER, ResponseRequest
from agentstream.store.runs import RunInfo
from agentstream.stream.chat import REQUIRES_ACTION
from agentstream.stream.response_output import ResponseFold
from agentstream.stream.views import response_view

# The echo is the part of a request that its response repeats, as JSON. Redis keeps it as long as the run. The limit is
# the same as that of a stored conversation.
MAX_ECHO_BYTES: Final = 256 << 10


def create_response(request: web.Request) -> Awaitable[web.StreamResponse]:
    """POST /v1/responses: enqueue a run; stream it, wait for its end, or leave it to the background."""
    return respond_with_run(request, _admit_response)


async def _admit_response(request: web.Request, context: Context, owner: str) -> AdmittedRun:
    response_request = await read_request(request, context.settings, ResponseRequest)
    options = stream_options(request, include_usage=False, default_format="off")
    if answers := _answers(response_request):
        return await admit_answers(request, context, response_request, answers, options)
    earlier = _EarlierResponses(request, context)
    items = await earlier.items(response_request.references)
    previous_id = response_request.previous_response_id
    history = await earlier.conversation(previous_id) if previous_id is not None else []
    echo = response_request.echo()
    if len(orjson.dumps(echo)) > MAX_ECHO_BYTES:
        message = (
            "the fields that a response repeats (instructions, tools, metadata and others) must not exceed "
            f"{MAX_ECHO_BYTES} bytes together; shorten them"
        )
        raise InvalidRequest(message)
    chat = _as_chat(response_request, items, history, context.settings.max_messages)
    view = response_view(echo, interrupt_text=context.settings.interrupt_text)
    return await admit(request, chat, owner, options, view, response=echo)


def _answers(response_request: ResponseRequest) -> dict[str, Any]:
    try:
        return response_request.answers()
    except ValueError as exc:
        previous_id = response_request.previous_response_id
        if previous_id is not None and RESPONSE_ID.fullmatch(previous_id) is None:
            raise not_found(previous_id, param="previous_response_id") from exc
        raise InvalidRequest(str(exc), param=str(exc).partition(":")[0]) from exc


def _as_chat(
    response_request: ResponseRequest,
    items: dict[str, dict[str, Any]],
    history: list[dict[str, Any]],
    max_messages: int,
) -> ChatCompletionRequest:
    """Return the chat request that the agent gets; raises InvalidRequest."""
    try:
        chat = response_request.as_chat(items, history)
    except ValidationError as exc:
        raise to_invalid_request(exc, {}) from exc
    except ValueError as exc:
        raise InvalidRequest(str(exc), param=str(exc).partition(":")[0]) from exc
    if len(chat.messages) > max_messages:
        message = (
            f"the request has {len(chat.messages)} messages, including those of earlier responses; "
            f"the limit is {max_messages}"
        )
        raise InvalidRequest(message, param="input")
    return chat


class _EarlierResponses:
    """Reads the earlier responses that a request refers to: those of the same owner, folded from their replay logs."""

    def __init__(self, request: web.Request, context: Context) -> None:
        self._request = request
        self._context = context
        self._remaining_bytes = context.settings.max_body_bytes  # the limit is that of a body with the same items

    async def items(self, references: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the referenced output items by id, with the other items of the same responses.

        Raises NotFound, and InvalidRequest if a response has not ended or the items are too large.
        """
        found: dict[str, dict[str, Any]] = {}
        for reference in references:
            if reference not in found:
                for item in (await self._fold(reference, param="input")).items:
                    found[item["id"]] = item
            if reference not in found:
                raise not_found(reference, param="input")
        return found

    async def conversation(self, response_id: str) -> list[dict[str, Any]]:
        """Return the chat messages of a conversation up to and including the answer of this response.

        Raises NotFound, and InvalidRequest if the response cannot be continued.
        """
        param = "previous_response_id"
        if RESPONSE_ID.fullmatch(response_id) is None:  # the id of another server
            raise not_found(response_id, param=param)
        fold = await self._fold(response_id, param=param)
        async with BrokerTimeout(self._context):
            messages = await self._context.runs.conversation(segment_or_none(response_id).run_id)
        if messages is None:
            message = (
                f"{response_id} cannot be continued: it was created with store=false, or its conversation is too long "
                "to be kept; send the conversation as input"
            )
            raise InvalidRequest(message, param=param)
        return [*messages, *chat_messages([*fold.earlier_items, *fold.items])]

    async def _fold(self, public_id: str, *, param: str) -> ResponseFold:
        segment = segment_or_none(public_id)
        info = await self._info(public_id, param)
        if not info.ended and segment.number >= info.resumes:
            message = (
                f"{public_id} waits for the answers to its approval requests; send them first, as mcp_approval_response"
                if info.status == REQUIRES_ACTION
                else f"{public_id} belongs to a response that has not ended; wait for its end, then try again"
            )
            raise InvalidRequest(message, param=param)
        fold = ResponseFold(head_of(info), info.response or {}, segment.number, interrupt_text=False)
        try:
            await read_run(self._context, info, fold)
        except (Gone, RunFailed) as exc:
            raise not_found(public_id, param=param) from exc
        self._remaining_bytes -= len(orjson.dumps([*fold.earlier_items, *fold.items]))
        if self._remaining_bytes < 0:
            limit = self._context.settings.max_body_bytes
            message = f"the earlier items that the request refers to exceed {limit} bytes together; refer to fewer"
            raise InvalidRequest(message, param=param)
        return fold

    async def _info(self, public_id: str, param: str) -> RunInfo:
        try:
            return await find_response(self._context, self._request, public_id)
        except NotFound as exc:
            raise not_found(public_id, param=param) from exc


async def retrieve_response(request: web.Request) -> web.StreamResponse:
    """GET /v1/responses/{id}: the run's current state; with ?stream=true its stream, after a number if given."""
    context = request.app[CONTEXT]
    public_id = request.match_info["response_id"]
    info = await find_response(context, request, public_id, to_answer=True)
    if request.query.get("stream", "false").lower() not in {"true", "1"}:
        return await snapshot_run(context, info, view_of(context, info, public_id))
    refuse_over_limit(request)
    options = stream_options(request, include_usage=False, default_format="off")
    view = view_of(context, info, public_id, _starting_after(request))
    return await stream_run(request, context, ExistingRun(context, info), view, options, cancel_on_disconnect=False)


async def cancel_response(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses/{id}/cancel: cancel the run, and answer after it has ended."""
    context = request.app[CONTEXT]
    public_id = request.match_info["response_id"]
    info = await find_response(context, request, public_id)
    return await cancel_run(context, info, view_of(context, info, public_id))


def _starting_after(request: web.Request) -> int | None:
    """Return the sequence number after which to resume: query ``starting_after``, else header Last-Event-ID."""
    text = request.query.get("starting_after") or request.headers.get("Last-Event-ID")
    if not text:
        return None
    if SEQUENCE_NUMBER.fullmatch(text) is None:
        message = f"{text[:40]!r} is not a sequence number; send the number of the last event that you received"
        raise InvalidRequest(message, param="starting_after")
    return int(text)


ROUTES: Final = [
    web.post("/v1/responses", create_response),
    web.get("/v1/responses/{response_id}", retrieve_response),
    web.post("/v1/responses/{response_id}/cancel", cancel_response),
]
