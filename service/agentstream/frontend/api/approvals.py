"""The responses of a run that waits for people: finds them, and answers their approval requests.

A response that was parked has ended. The answers let its run go on, and the rest of the run is the next response.
"""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from agentstream.errors import Conflict, InvalidRequest, NotFound
from agentstream.frontend.api.admission import AdmittedRun, find_owned_run
from agentstream.frontend.context import Context
from agentstream.frontend.runs.answering import answer_run
from agentstream.frontend.runs.guards import BrokerTimeout, require_broker
from agentstream.protocol.response_items import (
    APPROVAL_REQUEST,
    RESPONSE_ID,
    Segment,
    interrupt_id_of,
    item_id,
    response_id,
    segment_of,
)
from agentstream.protocol.responses import ResponseRequest
from agentstream.store.runs import RunInfo
from agentstream.stream.chat import REQUIRES_ACTION, StreamOptions
from agentstream.stream.views import View, response_view


async def find_response(context: Context, request: web.Request, public_id: str, *, to_answer: bool = False) -> RunInfo:
    """Return the run of a response or an item; raises NotFound, also if the run has not come to that response.

    ``to_answer`` is explained in ``find_owned_run``.
    """
    segment = segment_or_none(public_id)
    info = await find_owned_run(context, request, public_id, segment.run_id, to_answer=to_answer)
    if segment.number > info.resumes:
        message = f"no such response: {public_id[:60]!r}; its run has not been resumed so often"
        raise NotFound(message, param="id")
    return info


def segment_or_none(public_id: str) -> Segment:
    """Return the run and the number of a response or an item; a run id that does not exist for any other text."""
    return segment_of(public_id) or Segment("none", 0)


def view_of(context: Context, info: RunInfo, public_id: str, after: int | None = None) -> View:
    """Return the view of a response, from the sequence number ``after`` on."""
    number = segment_or_none(public_id).number
    return response_view(info.response or {}, after, segment=number, interrupt_text=context.settings.interrupt_text)


def not_found(public_id: str, *, param: str) -> NotFound:
    """Return the error for a response or an item that a request refers to."""
    message = (
        f"{public_id[:80]!r} was not found: a response is kept for a limited time, and only the API key that created "
        "it can read it; send the conversation as input"
    )
    code = "previous_response_not_found" if param == "previous_response_id" else None
    return NotFound(message, param=param, code=code)


async def admit_answers(
    request: web.Request,
    context: Context,
    response_request: ResponseRequest,
    answers: Mapping[str, Any],
    options: StreamOptions,
) -> AdmittedRun:
    """Answer the approval requests of a response, and return the next response of the same run.

    ``answers`` are by the ids of the approval requests. The run keeps the request that it began with: of this request
    only ``stream`` and ``background`` have an effect. Raises InvalidRequest if the answers are not those that the
    response waits for, NotFound, and the errors of ``answer_run``. Nothing is changed then.
    """
    response, named = _response_of(answers, response_request.previous_response_id)
    try:
        info = await find_response(context, request, response_id(*response), to_answer=True)
    except NotFound as exc:
        raise not_found(named, param="input") from exc
    given = {interrupt_id_of(approval_id) or "": answer for approval_id, answer in answers.items()}
    await _require_all(context, info, response, given)
    try:
        info, _ = await answer_run(context, info, given)
    except (InvalidRequest, Conflict) as exc:
        exc.param = "input"
        raise
    # An agent that waits in its worker goes on in the same response.
    number = min(response.number + 1, info.resumes)
    return AdmittedRun(
        info,
        view_of(context, info, response_id(info.run_id, number)),
        options,
        stream=bool(response_request.stream),
        background=bool(response_request.background),
        outlives_client=True,
    )


def _response_of(answers: Mapping[str, Any], previous_response_id: str | None) -> tuple[Segment, str]:
    """Return the response whose approval requests are answered, and the id of one of them.

    Raises NotFound if an id is not of this server, and InvalidRequest if they belong to several responses.
    """
    responses = {each: segment_of(each) for each in answers if interrupt_id_of(each) is not None}
    if unknown := [each for each in answers if each not in responses]:
        message = (
            f"{unknown[0][:80]!r} is not an approval request of this server; send the id of an mcp_approval_request"
        )
        raise NotFound(message, param="input")
    if previous_response_id is not None and RESPONSE_ID.fullmatch(previous_response_id) is None:
        raise not_found(previous_response_id, param="previous_response_id")
    named, response = next(iter(responses.items()))
    expected = response if previous_response_id is None else segment_of(previous_response_id)
    if response is None or any(each != expected for each in responses.values()):
        message = (
            f"{named[:80]!r} belongs to another response than the other answers or previous_response_id; answer the "
            "approval requests of one response at a time"
        )
        raise InvalidRequest(message, param="input")
    return response, named


async def _require_all(context: Context, info: RunInfo, response: Segment, given: Mapping[str, Any]) -> None:
    """Raise InvalidRequest if the run waits for more answers: the next response would have nothing to show."""
    require_broker(context)
    async with BrokerTimeout(context):
        waiting = await context.interrupts.read(info.run_id)
    if waiting is None or waiting.status != REQUIRES_ACTION:
        return
    missing = [asked.id for asked in waiting.open if asked.id not in given]
    if response.number != info.resumes and not set(given) <= set(waiting.answers):
        message = f"{response_id(*response)} waits for nothing: its run has gone on"
        raise Conflict(message, param="input", code="not_waiting")
    if missing and response.number == info.resumes:
        ids = ", ".join(item_id(APPROVAL_REQUEST, info.run_id, each, response.number) for each in missing)
        message = f"the response waits for more answers; send all of them together, also those to: {ids[:400]}"
        raise InvalidRequest(message, param="input")
