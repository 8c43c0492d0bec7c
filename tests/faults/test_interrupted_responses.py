"""Runs that wait for people, through the Responses API with OpenAI's own client."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from openai.types.responses.response_output_item import McpApprovalRequest

from tests.faults.deployment import Deployment
from tests.helpers import TIMEOUT_S
from tests.processes import Processes

MODEL = "m1"
KEYS = "owner,stranger"


@pytest.fixture
async def deployment(processes: Processes, broker_url: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    """Start a front end with two API keys and a worker with an asking agent, and yield the deployment."""
    async with Deployment.open(processes, broker_url, tmp_path) as opened:
        await opened.frontend(AGENTSTREAM_API_KEYS=KEYS)
        await opened.worker("a", "asking_agents:asking")
        yield opened


@pytest.fixture
async def client(deployment: Deployment) -> AsyncIterator[openai.AsyncOpenAI]:
    """Yield a client with the owner's key."""
    url = f"{deployment.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="owner", max_retries=0, timeout=TIMEOUT_S) as opened:
        yield opened


def approval(response: Response, *, approve: bool = True, **fields: Any) -> list[Any]:
    """Return the input that answers all approval requests of a response."""
    asked = [item for item in response.output if isinstance(item, McpApprovalRequest)]
    assert asked
    return [
        {"type": "mcp_approval_response", "approval_request_id": each.id, "approve": approve} | fields for each in asked
    ]


async def streamed(client: openai.AsyncOpenAI, **request: Any) -> tuple[Response, list[Any]]:
    """Create a streamed response; return the last state of it, and its events."""
    events = [event async for event in await client.responses.create(model=MODEL, stream=True, **request)]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    return events[-1].response, events


async def events_of(client: openai.AsyncOpenAI, response_id: str, **query: Any) -> list[Any]:
    """Return the events of a stored response, from its start or after a number."""
    return [event async for event in await client.responses.retrieve(response_id, stream=True, **query)]


async def test_an_approval_is_asked_and_given_in_streams(client: openai.AsyncOpenAI) -> None:
    """A response ends with an approval request; the answer to it continues the run as the next response."""
    first, events = await streamed(client, input="once")
    message, asked = first.output
    assert (first.status, first.output_text) == ("completed", "before ")
    assert message.type == "message"
    assert isinstance(asked, McpApprovalRequest)
    assert (asked.name, asked.arguments, asked.server_label) == ("send_mail", '{"to":"bob"}', "agentstream")
    assert [event.type for event in events[-3:]] == [
        "response.output_item.added",
        "response.output_item.done",
        "response.completed",
    ]
    assert await client.responses.retrieve(first.id) == first
    second, more = await streamed(client, previous_response_id=first.id, input=approval(first))
    assert (second.id, second.previous_response_id) == (f"{first.id}_1", first.id)
    assert second.output_text == "approved=True "
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.total_tokens + second.usage.total_tokens == 8
    # Both stay as they are, and can be read again from any place.
    assert await client.responses.retrieve(first.id) == first
    assert await client.responses.retrieve(second.id) == second
    for response, seen in ((first, events), (second, more)):
        assert await events_of(client, response.id) == seen
        assert await events_of(client, response.id, starting_after=2) == seen[3:]


async def test_a_denial_reaches_the_agent_without_a_stream(client: openai.AsyncOpenAI) -> None:
    """An approval may be denied, in a request that is not streamed; the conversation then goes on."""
    first = await client.responses.create(model=MODEL, input="once")
    answers = approval(first, approve=False, reason="not today")
    second = await client.responses.create(model=MODEL, previous_response_id=first.id, input=answers)
    assert (second.status, second.output_text) == ("completed", "approved=False ")
    third = await client.responses.create(model=MODEL, previous_response_id=second.id, input="once")
    assert third.id.partition("_")[2] not in second.id
    assert isinstance(third.output[-1], McpApprovalRequest)


async def test_a_run_in_the_background_is_answered(client: openai.AsyncOpenAI) -> None:
    """A response in the background shows its approval request when it is retrieved; so does the answer."""
    first = await client.responses.create(model=MODEL, input="once", background=True)
    while first.status in {"queued", "in_progress"}:
        first = await client.responses.retrieve(first.id)
    assert first.status == "completed"
    second = await client.responses.create(
        model=MODEL, previous_response_id=first.id, input=approval(first), background=True
    )
    assert second.id == f"{first.id}_1"
    while second.status in {"queued", "in_progress"}:
        second = await client.responses.retrieve(second.id)
    assert second.output_text == "approved=True "


async def test_a_client_that_keeps_the_conversation_itself_answers(client: openai.AsyncOpenAI) -> None:
    """Without previous_response_id the approval request names its run, and the items before it do nothing."""
    first = await client.responses.create(model=MODEL, input="once", store=False)
    items: list[Any] = [{"role": "user", "content": "once"}, *(item.model_dump() for item in first.output)]
    second = await client.responses.create(model=MODEL, input=[*items, *approval(first)])
    assert second.output_text == "approved=True "
    items += [*approval(first), *(item.model_dump() for item in second.output), {"role": "user", "content": "once"}]
    third = await client.responses.create(model=MODEL, input=items)
    assert isinstance(third.output[-1], McpApprovalRequest)
    assert third.id[:37] != first.id


async def test_other_questions_are_answered_as_the_output_of_a_call(client: openai.AsyncOpenAI) -> None:
    """A question of another kind is a sentence and a field of the response; a call output answers it."""
    response, _ = await streamed(client, input="form")
    assert response.output_text == "Waiting for an answer: Where?"
    [asked] = (response.model_extra or {})["interrupts"]
    assert (asked["kind"], asked["payload"]) == ("form", {"message": "Where?"})
    wrong = {"type": "function_call_output", "call_id": asked["call_id"], "output": "Oslo"}
    with pytest.raises(openai.BadRequestError, match="expected an object"):
        await client.responses.create(model=MODEL, previous_response_id=response.id, input=[wrong])  # type: ignore[list-item]
    right = wrong | {"output": '{"city": "Oslo"}'}
    answer = await client.responses.create(model=MODEL, previous_response_id=response.id, input=[right])  # type: ignore[list-item]
    assert answer.output_text == "{'city': 'Oslo'}"


async def test_a_run_that_asks_twice_has_three_responses(client: openai.AsyncOpenAI) -> None:
    """Each answer begins another response, and the texts of earlier ones are not repeated."""
    texts, response = [], await client.responses.create(model=MODEL, input="twice")
    for word in ("yes", "no"):
        [asked] = (response.model_extra or {})["interrupts"]
        answer: Any = {"type": "function_call_output", "call_id": asked["call_id"], "output": word}
        response, _ = await streamed(client, previous_response_id=response.id, input=[answer])
        texts.append(response.output_text)
    assert response.id.endswith("_2")
    assert texts == ["yes \n\nWaiting for an answer: number 1?", "no "]


async def test_wrong_answers_are_refused_and_change_nothing(client: openai.AsyncOpenAI, deployment: Deployment) -> None:
    """Each wrong answer is an error in OpenAI's form, and the run still waits."""
    first = await client.responses.create(model=MODEL, input="both")
    asked = (first.model_extra or {})["interrupts"]
    answers = [{"type": "function_call_output", "call_id": each["call_id"], "output": "1"} for each in asked]
    unknown = {
        "type": "mcp_approval_response",
        "approval_request_id": answers[0]["call_id"][:-1] + "z",
        "approve": True,
    }
    message = {"role": "user", "content": "hello"}
    for sent, expected in (
        (answers[:1], "more answers"),
        ([unknown, *answers], "no interrupt 'z'"),
        ([message, *answers], "stands alone"),
        ([*answers, message], "send them first"),
        ([*answers, answers[0] | {"output": "2"}], "each id once"),
    ):
        with pytest.raises(openai.BadRequestError, match=expected) as refused:
            await client.responses.create(model=MODEL, previous_response_id=first.id, input=sent)  # type: ignore[arg-type]
        assert refused.value.body is not None
    for name in ("mcpr_elsewhere", None):
        nowhere: Any = [unknown | {"approval_request_id": name}]
        with pytest.raises(openai.NotFoundError, match="not an approval request of this server"):
            await client.responses.create(model=MODEL, previous_response_id=first.id, input=nowhere)
    stranger = client.with_options(api_key="stranger")
    with pytest.raises(openai.NotFoundError, match="was not found"):
        await stranger.responses.create(model=MODEL, previous_response_id=first.id, input=answers)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(f"{first.id}_1")
    assert await deployment.field_of("chatcmpl-" + first.id.removeprefix("resp_"), "status") == "requires_action"
    second = await client.responses.create(model=MODEL, previous_response_id=first.id, input=answers)  # type: ignore[arg-type]
    assert second.output_text == "1+1 "
    again = await client.responses.create(model=MODEL, previous_response_id=first.id, input=answers)  # type: ignore[arg-type]
    assert again == second
    changed: Any = [each | {"output": "2"} for each in answers]
    with pytest.raises(openai.ConflictError, match="answered already") as twice:
        await client.responses.create(model=MODEL, previous_response_id=first.id, input=changed)
    assert twice.value.code == "already_answered"


async def test_a_cancelled_run_is_not_answered(client: openai.AsyncOpenAI) -> None:
    """A response that waits can be cancelled; an approval afterwards is refused."""
    first = await client.responses.create(model=MODEL, input="once")
    assert (await client.responses.cancel(first.id)).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="waits for nothing") as refused:
        await client.responses.create(model=MODEL, previous_response_id=first.id, input=approval(first))
    assert refused.value.code == "not_waiting"


async def test_an_agent_that_waits_in_its_worker_goes_on_in_the_same_response(
    client: openai.AsyncOpenAI, deployment: Deployment
) -> None:
    """The stream of an agent that cannot be put down stays open; the answer comes in the same response."""
    await deployment.worker("b", None, AGENTSTREAM_AGENTS="place=asking_agents:waiting_in_place@place")
    client.base_url = (
        await deployment._processes.frontend(
            AGENTSTREAM_API_KEYS=KEYS, AGENTSTREAM_AGENTS="place=asking_agents:waiting_in_place@place"
        )
        + "/v1"
    )
    answers = []
    async for event in await client.responses.create(model="place", input="once", stream=True):
        if event.type == "response.output_item.done" and isinstance(event.item, McpApprovalRequest):
            answer: Any = {"type": "mcp_approval_response", "approval_request_id": event.item.id, "approve": True}
            answers.append(await client.responses.create(model="place", input=[answer]))
    [same] = answers
    assert same.output_text == "before approved=True "
    assert event.type == "response.completed"
    assert event.response == same
