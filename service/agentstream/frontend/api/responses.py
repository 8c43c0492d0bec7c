"""The routes of the Responses API. Its runs are the same as those of chat completions."""

from collections.abc import Awaitable, Iterable
from typing import Any, Final

import orjson
from aiohttp import web
from pydantic import ValidationError

from agentstream.errors import Gone, InvalidRequest, NotFound, RunFailed
from agentstream.frontend.api.admission import AdmittedRun, admit, find_owned_run, respond_with_run
from agentstream.frontend.api.negotiation import stream_options
from agentstream.frontend.api.parsing import read_request, to_invalid_request
from agentstream.frontend.context import CONTEXT, Context
from agentstream.frontend.runs.attaching import ExistingRun
from agentstream.frontend.runs.cancelling import cancel_run
from agentstream.frontend.runs.guards import broker_timeout, refuse_over_limit
from agentstream.frontend.runs.reading import read_run, snapshot_run
from agentstream.frontend.runs.source import head_of
from agentstream.frontend.runs.streaming import stream_run
from agentstream.protocol.openai import ChatCompletionRequest
from agentstream.protocol.response_items import RESPONSE_ID, chat_messages, run_id_of
from agentstream.protocol.responses import SEQUENCE_NUMBER, ResponseRequest
from agentstream.store.runs import RunInfo
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
    return await admit(request, chat, owner, options, response_view(echo), response=echo)


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
                for item in await self._output(reference, param="input"):
                    found[item["id"]] = item
            if reference not in found:
                raise _not_found(reference, param="input")
        return found

    async def conversation(self, response_id: str) -> list[dict[str, Any]]:
        """Return the chat messages of a conversation up to and including the answer of this response.

        Raises NotFound, and InvalidRequest if the response cannot be continued.
        """
        param = "previous_response_id"
        if RESPONSE_ID.fullmatch(response_id) is None:  # the id of another server
            raise _not_found(response_id, param=param)
        answer = await self._output(response_id, param=param)
        async with broker_timeout(self._context):
            messages = await self._context.runs.conversation(run_id_of(response_id) or "")
        if messages is None:
            message = (
                f"{response_id} cannot be continued: it was created with store=false, or its conversation is too long "
                "to be kept; send the conversation as input"
            )
            raise InvalidRequest(message, param=param)
        return [*messages, *chat_messages(answer)]

    async def _output(self, public_id: str, *, param: str) -> list[dict[str, Any]]:
        info = await self._info(public_id, param)
        if not info.ended:
            message = f"{public_id} belongs to a response that has not ended; wait for its end, then try again"
            raise InvalidRequest(message, param=param)
        fold = ResponseFold(head_of(info), info.response or {})
        try:
            await read_run(self._context, info, fold)
        except (Gone, RunFailed) as exc:
            raise _not_found(public_id, param=param) from exc
        self._remaining_bytes -= len(orjson.dumps(fold.items))
        if self._remaining_bytes < 0:
            limit = self._context.settings.max_body_bytes
            message = f"the earlier items that the request refers to exceed {limit} bytes together; refer to fewer"
            raise InvalidRequest(message, param=param)
        return fold.items

    async def _info(self, public_id: str, param: str) -> RunInfo:
        try:
            return await find_owned_run(self._context, self._request, public_id, run_id_of(public_id))
        except NotFound as exc:
            raise _not_found(public_id, param=param) from exc


def _not_found(public_id: str, *, param: str) -> NotFound:
    message = (
        f"{public_id[:80]!r} was not found: a response is kept for a limited time, and only the API key that created "
        "it can read it; send the conversation as input"
    )
    code = "previous_response_not_found" if param == "previous_response_id" else None
    return NotFound(message, param=param, code=code)


async def retrieve_response(request: web.Request) -> web.StreamResponse:
    """GET /v1/responses/{id}: the run's current state; with ?stream=true its stream, after a number if given."""
    context = request.app[CONTEXT]
    info = await _find_owned_response(request)
    if request.query.get("stream", "false").lower() not in {"true", "1"}:
        return await snapshot_run(context, info, response_view(info.response or {}))
    refuse_over_limit(request)
    options = stream_options(request, include_usage=False, default_format="off")
    view = response_view(info.response or {}, _starting_after(request))
    return await stream_run(request, context, ExistingRun(context, info), view, options, cancel_on_disconnect=False)


async def cancel_response(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses/{id}/cancel: cancel the run, and answer after it has ended."""
    context = request.app[CONTEXT]
    info = await _find_owned_response(request)
    return await cancel_run(context, info, response_view(info.response or {}))


async def _find_owned_response(request: web.Request) -> RunInfo:
    public_id = request.match_info["response_id"]
    run_id = run_id_of(public_id) if public_id.startswith("resp_") else None
    return await find_owned_run(request.app[CONTEXT], request, public_id, run_id or "none")


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
